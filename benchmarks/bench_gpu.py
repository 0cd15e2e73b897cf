"""What a GPU gives: the torch engine, the front end and training, each beside the roofline counted by hand.

    python -m benchmarks.bench_gpu [--device cuda|cpu] [--bundle FILE] [--small]

The roof of a row is the longest of three: its operations at the measured rate of matrix products, its bytes at the
measured rate of copies on the device, and, for the engine, its input at the measured rate of copies to the device.
Operations of the model are counted from the ONNX graph, those of a training step by torch's own counter; bytes are
those of the counted layers, each of which reads its input and writes its output once. `--small` is a trial of seconds.
Not yet run on a GPU; `--device cpu --small` is run by the tests.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import machine_line
from benchmarks.macs import count_bytes, count_macs
from benchmarks.workload import make_recording, noise, train_bundle
from edgeasd.bundle import Bundle, read_bundle
from edgeasd.features.mel import MelFrontEnd, MelSpec
from edgeasd_train.detectors import build_detector
from edgeasd_train.recipe import load_recipe

RATE_HZ = 16000
BATCHES = (1, 8, 64, 512, 4096)
SMALL_BATCHES = (1, 8)
RECIPES = ("bird-ae", "cnn-ae")


@dataclass(frozen=True, slots=True)
class Bench:
    """The device, and how long to measure."""

    device: torch.device
    small: bool

    def seconds(self, work: Callable[[], object]) -> float:
        """Return the median seconds of a piece of work, the device's queue drained before and after."""
        return statistics.median(self._runs(work))

    def least_seconds(self, work: Callable[[], object]) -> float:
        """Return the least seconds of a piece of work: what a roof is made of."""
        return min(self._runs(work))

    def _runs(self, work: Callable[[], object]) -> list[float]:
        for _ in range(1 if self.small else 5):
            work()
        taken_s: list[float] = []
        while len(taken_s) < (1 if self.small else 10) or (not self.small and sum(taken_s) < 0.5):
            self._drain()
            began_s = time.perf_counter()
            work()
            self._drain()
            taken_s.append(time.perf_counter() - began_s)
        return taken_s

    def _drain(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    @property
    def batches(self) -> tuple[int, ...]:
        """Return the batches to measure."""
        return SMALL_BATCHES if self.small else BATCHES


@dataclass(frozen=True, slots=True)
class Roof:
    """What the device was measured to reach."""

    flops: dict[str, float]
    """Operations a second of matrix products, by precision."""
    copy_bytes: float
    """Bytes a second read and written by a copy on the device."""
    upload_bytes: float
    """Bytes a second from pinned memory of the host to the device."""

    def seconds(self, *, flops: float, moved: float, uploaded: float = 0.0, precision: str = "fp32") -> float:
        """Return the least seconds that some work can take."""
        return max(flops / self.flops[precision], moved / self.copy_bytes, uploaded / self.upload_bytes)


def table(title: str, columns: Sequence[str]) -> None:
    """Print the head of a table."""
    print(f"\n{title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)


def row(*cells: object) -> None:
    """Print a row of a table."""
    print(f"| {' | '.join(f'{cell:.4g}' if isinstance(cell, float) else str(cell) for cell in cells)} |", flush=True)


def measure_roof(bench: Bench) -> Roof:
    """Measure matrix products and copies, and print them."""
    size = 256 if bench.small else 8192 if bench.device.type == "cuda" else 1024
    flops = {}
    for precision, dtype in {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}.items():
        a, b = (torch.randn(size, size, device=bench.device).to(dtype) for _ in range(2))
        flops[precision] = 2.0 * size**3 / bench.least_seconds(lambda a=a, b=b: a @ b)  # type: ignore[misc]
    n_bytes = (1 << 20) if bench.small else (1 << 28)
    there, other = (torch.zeros(n_bytes, dtype=torch.uint8, device=bench.device) for _ in range(2))
    here = torch.zeros(n_bytes, dtype=torch.uint8)
    here = here.pin_memory() if bench.device.type == "cuda" else here
    copied, uploaded = (bench.least_seconds(lambda source=source: other.copy_(source)) for source in (there, here))  # type: ignore[misc]
    roof = Roof(flops, 2.0 * n_bytes / copied, n_bytes / uploaded)
    table("The roof, as measured:", ["what", "rate"])
    for precision, rate in flops.items():
        row(f"matrix product in {precision}, {size} x {size}", f"{rate / 1e9:.4g} Gflop/s")
    row("copy on the device, read and written", f"{roof.copy_bytes / 1e9:.4g} GB/s")
    row("copy from the host", f"{roof.upload_bytes / 1e9:.4g} GB/s")
    return roof


def bench_engine(bench: Bench, roof: Roof, bundle: Bundle) -> None:
    """Measure the torch engine, from arrays of the host to arrays of the host."""
    if bundle.program is None:
        print(f"\nThe torch engine: {bundle.path.name} holds no torch program, nothing to measure.")
        return
    from edgeasd.engine.torch import TorchEngine

    began_s = time.perf_counter()
    engine = TorchEngine(bundle)
    opened_s = time.perf_counter() - began_s
    columns = ["batch", "ms", "windows / s", "x real time at hop 0.5 s", "roof ms", "share of the roof"]
    table(f"The torch engine on {engine.device}, opened in {opened_s:.2f} s, float32:", columns)
    flops, (moved, weights) = 2.0 * count_macs(bundle.model_onnx), count_bytes(bundle.model_onnx)
    for n_windows in bench.batches:
        inputs = {name: np.resize(each, (n_windows, *each.shape[1:])) for name, each in bundle.golden.inputs.items()}
        taken_s = bench.seconds(lambda inputs=inputs: engine.score(inputs))  # type: ignore[misc]
        uploaded = sum(each.nbytes for each in inputs.values())
        least_s = roof.seconds(flops=n_windows * flops, moved=n_windows * moved + weights, uploaded=uploaded)
        rate = n_windows / taken_s
        row(n_windows, 1e3 * taken_s, rate, 0.5 * rate, 1e3 * least_s, least_s / taken_s)
    engine.close()


class StftLogMel(torch.nn.Module):
    """Log mel by torch.stft: its FFT, then a matrix product with the triangles."""

    hann: torch.Tensor
    triangles: torch.Tensor

    def __init__(self, spec: MelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.register_buffer("hann", torch.hann_window(spec.n_fft))
        self.register_buffer("triangles", torch.from_numpy(spec.filter_bank()))

    def forward(self, sound: torch.Tensor) -> torch.Tensor:
        """Turn sound (B, n) into dB (B, n_mels, n_frames)."""
        spectra = torch.stft(
            sound, self.spec.n_fft, self.spec.hop_frames, window=self.hann, center=False, return_complex=True
        )
        mel = torch.matmul(self.triangles, spectra.real.square() + spectra.imag.square())
        return 10.0 * mel.clamp(min=self.spec.floor).log10()

    def flops(self, n_stft: int) -> float:
        """Return the operations of so many frames: FFT, power, triangles as a full matrix."""
        spec = self.spec
        return n_stft * (2.5 * spec.n_fft * math.log2(spec.n_fft) + 3 * spec.n_bins + 2 * spec.n_bins * spec.n_mels)


class MatmulLogMel(torch.nn.Module):
    """Log mel by two matrix products: framed sound times windowed cosines and sines, power times triangles."""

    waves: torch.Tensor
    triangles: torch.Tensor

    def __init__(self, spec: MelSpec) -> None:
        super().__init__()
        self.spec = spec
        angles = 2.0 * np.pi * np.outer(np.arange(spec.n_fft), np.arange(spec.n_bins)) / spec.n_fft
        waves = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
        hann = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(spec.n_fft) / spec.n_fft)
        self.register_buffer("waves", torch.from_numpy((waves * hann[:, None]).astype(np.float32)))
        self.register_buffer("triangles", torch.from_numpy(np.ascontiguousarray(spec.filter_bank().T)))

    def forward(self, sound: torch.Tensor) -> torch.Tensor:
        """Turn sound (B, n) into dB (B, n_mels, n_frames)."""
        frames = sound.unfold(1, self.spec.n_fft, self.spec.hop_frames)
        real, imaginary = torch.split(torch.matmul(frames, self.waves), self.spec.n_bins, dim=2)
        mel = torch.matmul(real.square() + imaginary.square(), self.triangles)
        return 10.0 * mel.clamp(min=self.spec.floor).log10().transpose(1, 2)

    def flops(self, n_stft: int) -> float:
        """Return the operations of so many frames."""
        spec = self.spec
        return n_stft * (4.0 * spec.n_fft * spec.n_bins + 3 * spec.n_bins + 2 * spec.n_bins * spec.n_mels)


@torch.inference_mode()
def bench_front_end(bench: Bench, roof: Roof, spec: MelSpec) -> None:
    """Measure log mel for bulk scoring: sound on the device, in pieces of a minute, each frame once."""
    piece_s = 2 if bench.small else 60
    columns = ["way", "pieces at once", "ms", "x real time", "roof ms", "share of the roof", "off the node's by dB"]
    table(f"Log mel on the device, pieces of {piece_s} s, float32:", columns)
    for way in (StftLogMel(spec).to(bench.device), MatmulLogMel(spec).to(bench.device)):
        for n_pieces in (1,) if bench.small else (1, 8, 64):
            heard = np.resize(noise(piece_s * RATE_HZ), (n_pieces, piece_s * RATE_HZ))
            sound = torch.from_numpy(heard).to(bench.device)
            ours = MelFrontEnd(spec).window_log_mel(heard[0])
            off_db = float(np.max(np.abs(way(sound[:1])[0].cpu().numpy() - ours)))
            taken_s = bench.seconds(lambda sound=sound, way=way: way(sound))  # type: ignore[misc]
            n_stft = n_pieces * spec.n_frames(piece_s * RATE_HZ)
            moved = 4.0 * (sound.numel() + n_stft * (4 * spec.n_bins + 2 * spec.n_bins + spec.n_mels))
            least_s = roof.seconds(flops=way.flops(n_stft), moved=moved)
            name, speed = type(way).__name__, n_pieces * piece_s / taken_s
            row(name, n_pieces, 1e3 * taken_s, speed, 1e3 * least_s, least_s / taken_s, off_db)


def bench_training(bench: Bench, roof: Roof) -> None:
    """Measure optimizer steps on log mel that lies on the device: forward, backward, Adam."""
    columns = ["recipe", "precision", "batch", "ms a step", "windows / s", "roof ms", "share of the roof"]
    table("Training, steps on batches that lie on the device:", columns)
    for name in RECIPES[:1] if bench.small else RECIPES:
        recipe = load_recipe(name)
        n_windows = 2 if bench.small else max(recipe.fit.batch_size, 256 if bench.device.type == "cuda" else 32)
        for precision in ("fp32", "bf16"):
            detector, spec = build_detector(recipe)
            step = training_step(
                detector, spec, bench, n_windows, window_frames=recipe.data.window_frames, mixed=precision == "bf16"
            )
            with FlopCounterMode(display=False) as counter:
                step()
            taken_s = bench.seconds(step)
            least_s = roof.seconds(flops=counter.get_total_flops(), moved=0.0, precision=precision)
            row(name, precision, n_windows, 1e3 * taken_s, n_windows / taken_s, 1e3 * least_s, least_s / taken_s)


def training_step(
    detector: Any, spec: MelSpec, bench: Bench, n_windows: int, *, window_frames: int, mixed: bool
) -> Callable[[], None]:
    """Return one step of training."""
    network = detector.network.to(bench.device).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    shape = (n_windows, spec.n_rows, spec.n_frames(window_frames))
    batch = {"log_mel": torch.randn(shape, device=bench.device), "index": torch.arange(n_windows, device=bench.device)}

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(bench.device.type, dtype=torch.bfloat16) if mixed else nullcontext():
            loss = detector.loss(batch)
        loss.backward()
        optimizer.step()

    return step


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bundle", type=Path, help="with its torch program; default: a bird-ae trained here")
    parser.add_argument("--small", action="store_true", help="small sizes: a trial, its figures mean nothing")
    asked = parser.parse_args(arguments)
    bench = Bench(torch.device(asked.device), asked.small)
    name = torch.cuda.get_device_name() if asked.device == "cuda" else "the CPU: no word about GPUs"
    print(f"{machine_line()}, torch {torch.__version__}, on {name}")
    with tempfile.TemporaryDirectory() as folder:
        bundle = asked.bundle
        if bundle is None:
            make_recording(Path(folder) / "sound.wav", source=None, minutes=1.0)
            bundle = train_bundle(Path(folder) / "sound.wav", Path(folder), program=True)
        opened = read_bundle(bundle)
        roof = measure_roof(bench)
        bench_engine(bench, roof, opened)
        bench_front_end(bench, roof, MelSpec())
        bench_training(bench, roof)


if __name__ == "__main__":
    main()
