"""The physical floor of replay: what decoding, FFTs, mel and model cost at the rates this machine is measured to reach.

    python -m benchmarks.bench_floor [RECORDING] [--minutes 10] [--bundle FILE] [--hop 0.5]

Counted: 16-bit samples to float32; for each STFT frame, once, n_fft multiplications for the window, 2.5 n log2 n
operations for the real FFT, 3 a bin for the power, 2 for each FFT bin in a mel triangle; two for each multiplication
with addition of the model. Not counted: logarithms, the second opinion, tables, and all else.
"""

from __future__ import annotations

import os

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = "1"

import argparse  # noqa: E402
import math  # noqa: E402
import tempfile  # noqa: E402
from collections.abc import Callable, Sequence  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import scipy.fft  # noqa: E402
import soundfile  # noqa: E402

from benchmarks.machine import machine_line  # noqa: E402
from benchmarks.macs import count_macs  # noqa: E402
from benchmarks.workload import least_wall_s, make_folder, timed, train_bundle  # noqa: E402
from edgeasd.bundle import Bundle, read_bundle  # noqa: E402
from edgeasd.engine.onnx import OnnxEngine  # noqa: E402
from edgeasd.records import FloatArray  # noqa: E402

GEMM_SIZES = (256, 512, 1024)
FFT_ROWS = 128
BATCH_WINDOWS = 64
RUNS = 20


@dataclass(frozen=True, slots=True)
class Rates:
    """What one core of this machine reaches, the best of some runs."""

    gemm_flops: float
    """Operations a second of a float32 matrix product."""
    gemm_by: str
    """Which library and size reached it."""
    fft_flops: float
    """Operations a second, of 2.5 n log2 n, of real FFTs that stay in the cache."""


@dataclass(frozen=True, slots=True)
class Work:
    """What there is to do for a set of recordings, and the least seconds that decoding them took."""

    heard_s: float
    decode_s: float
    fft_flops: float
    mel_flops: float
    model_flops: float
    n_windows: int

    def at_gemm_rate_s(self, rates: Rates) -> float:
        """Return the seconds of one core that does everything at the speed of matrix products."""
        return self.decode_s + (self.fft_flops + self.mel_flops + self.model_flops) / rates.gemm_flops

    def at_fft_rate_s(self, rates: Rates) -> float:
        """Return the same with FFTs at the speed of FFTs."""
        return self.decode_s + self.fft_flops / rates.fft_flops + (self.mel_flops + self.model_flops) / rates.gemm_flops


def _best(work: Callable[[], object], runs: int = RUNS) -> float:
    return least_wall_s([timed(work) for _ in range(runs)])


def measure_rates(n_fft: int) -> Rates:
    """Measure matrix products in numpy and torch, where it is installed, and FFTs in scipy, each on one core."""
    rng = np.random.default_rng(0)
    found = {}
    for size in GEMM_SIZES:
        a, b = (rng.standard_normal((size, size), dtype=np.float32) for _ in range(2))
        for by, product in _products(a, b).items():
            found[f"{by}, {size} x {size}"] = 2.0 * size**3 / _best(product)
    by = max(found, key=found.__getitem__)
    rows = rng.standard_normal((FFT_ROWS, n_fft), dtype=np.float32)
    fft_s = _best(lambda: scipy.fft.rfft(rows, axis=1, workers=1), runs=10 * RUNS)
    return Rates(found[by], by, FFT_ROWS * 2.5 * n_fft * math.log2(n_fft) / fft_s)


def _products(a: FloatArray, b: FloatArray) -> dict[str, Callable[[], object]]:
    products: dict[str, Callable[[], object]] = {"numpy": lambda: a @ b}
    try:
        import torch
    except ModuleNotFoundError:
        return products
    torch.set_num_threads(1)
    ours, theirs = torch.from_numpy(a), torch.from_numpy(b)
    return products | {"torch": lambda: ours @ theirs}


def count_work(recordings: Sequence[Path], bundle: Bundle, hop_s: float) -> Work:
    """Count what has to be computed, and decode the recordings once for each of some runs."""
    spec, window_frames = bundle.manifest.inputs.log_mel, bundle.manifest.window_frames
    assert spec is not None
    lengths = [soundfile.info(path).frames for path in recordings]
    n_stft = sum(spec.n_frames(n) for n in lengths)
    hop_frames = round(hop_s * spec.sample_rate_hz)
    n_windows = sum(max(0, 1 + (n - window_frames) // hop_frames) for n in lengths)
    taps = np.count_nonzero(spec.filter_bank())
    return Work(
        heard_s=sum(lengths) / spec.sample_rate_hz,
        decode_s=_best(lambda: [_decode(path) for path in recordings], runs=5),
        fft_flops=n_stft * (2.5 * spec.n_fft * math.log2(spec.n_fft) + spec.n_fft),
        mel_flops=float(n_stft * (2 * taps + 3 * spec.n_bins)),
        model_flops=2.0 * count_macs(bundle.model_onnx) * n_windows,
        n_windows=n_windows,
    )


def _decode(path: Path) -> int:
    """Turn a WAV that lies in memory into float32, block by block, as nobody can avoid; return how many samples."""
    out = np.empty(1 << 14, np.float32)
    samples = np.fromfile(path, np.int16)
    for first in range(0, len(samples), len(out)):
        block = samples[first : first + len(out)]
        np.multiply(block, np.float32(1 / 32768), out=out[: len(block)])
    return len(samples)


def model_s(bundle: Bundle, n_windows: int) -> float:
    """Return the seconds ONNX Runtime takes for the model alone, in batches."""
    engine = OnnxEngine(bundle.model_onnx)
    name, array = next(iter(bundle.golden.inputs.items()))
    batch = {name: np.resize(array, (BATCH_WINDOWS, *array.shape[1:]))}
    found_s = _best(lambda: engine.score(batch))
    engine.close()
    return found_s * n_windows / BATCH_WINDOWS


def floor_lines(work: Work, rates: Rates) -> list[str]:
    """Return the table of where the floor comes from, for one core."""
    rows = {
        "decode, 16 bit to float32": (None, work.decode_s),
        "FFT at the rate of FFTs": (work.fft_flops, work.fft_flops / rates.fft_flops),
        "FFT at the rate of matrix products": (work.fft_flops, work.fft_flops / rates.gemm_flops),
        "mel": (work.mel_flops, work.mel_flops / rates.gemm_flops),
        "model": (work.model_flops, work.model_flops / rates.gemm_flops),
        "**floor, FFTs at their rate**": (None, work.at_fft_rate_s(rates)),
        "**floor, all at the rate of matrix products**": (None, work.at_gemm_rate_s(rates)),
    }
    rate = (
        f"One core: {rates.gemm_flops / 1e9:.1f} Gflop/s in matrix products ({rates.gemm_by}), "
        f"{rates.fft_flops / 1e9:.1f} Gflop/s in FFTs. {work.heard_s:.0f} s of sound, {work.n_windows} windows."
    )
    lines = [
        rate,
        "",
        "| part | Mflop a second of sound | ms | times real time |",
        "|---|---|---|---|",
    ]
    for name, (flops, seconds) in rows.items():
        counted = "" if flops is None else f"{flops / work.heard_s / 1e6:.2f}"
        lines.append(f"| {name} | {counted} | {1e3 * seconds:.1f} | {work.heard_s / seconds:.0f} |")
    return lines


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recording", type=Path, nargs="?")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--bundle", type=Path, help="default: one trained here on a minute of the recording")
    parser.add_argument("--hop", type=float, default=0.5)
    asked = parser.parse_args()
    print(machine_line(), end="\n\n")
    with tempfile.TemporaryDirectory() as folder:
        recordings = make_folder(Path(folder) / "sound", source=asked.recording, minutes=asked.minutes, n_files=1)
        bundle = read_bundle(asked.bundle or train_bundle(Path(folder) / "sound.wav", Path(folder)))
        work = count_work(recordings, bundle, asked.hop)
        assert bundle.manifest.inputs.log_mel is not None
        print("\n".join(floor_lines(work, measure_rates(bundle.manifest.inputs.log_mel.n_fft))))
        reached_s = model_s(bundle, work.n_windows)
        print(
            f"| for comparison: the model in ONNX Runtime, batches of {BATCH_WINDOWS} | "
            f"{work.model_flops / work.heard_s / 1e6:.2f} | {1e3 * reached_s:.1f} | {work.heard_s / reached_s:.0f} |"
        )


if __name__ == "__main__":
    main()
