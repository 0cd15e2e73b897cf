"""The mel front end beside librosa's and torchaudio's, one thread, identical parameters, agreement checked first.

    python -m benchmarks.bench_mel [--seconds 600] [--rounds 5]

Without overlap: log mel of one sound, long, and of a minute of it, each in one call. With overlap: windows of a second
of that minute every hop; ours in batches of 64, as replay does, and one by one, as a live node does; the others each
window for itself, as their users do, and torchaudio in batches of 64 too. The contestants take turns; the least of
several rounds counts, and ratios are of processor time, to the first row of the case.
"""

from __future__ import annotations

import os

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = "1"

import argparse  # noqa: E402
import warnings  # noqa: E402
from collections.abc import Callable, Mapping  # noqa: E402
from functools import partial  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402

from benchmarks.machine import machine_line  # noqa: E402
from benchmarks.workload import RATE_HZ, alternate, least_cpu_s, least_wall_s, noise, on_cores, timed  # noqa: E402
from edgeasd.features.mel import MelFrontEnd, MelSpec  # noqa: E402
from edgeasd.records import FloatArray, Window  # noqa: E402
from edgeasd.scoring.front import SharedFrontEnd  # noqa: E402

SPECS = {
    "1024 / 400, 64 mels": MelSpec(),
    "2048 / 1024, 128 mels": MelSpec(n_fft=2048, hop_frames=1024, n_mels=128),
}
HOPS_S = (0.5, 0.1)
BATCH_WINDOWS = 64
TOLERANCE_DB = 1e-2
TARGETS = {
    ("long", "librosa"): 2.5,
    ("long", "torchaudio"): 4.0,
    ("0.1", "librosa"): 20.0,
    ("0.1", "torchaudio"): 20.0,
}
Way = Callable[[FloatArray], FloatArray]
"""Sound (n,) -> log mel (n_rows, n_frames), dB."""


def librosa_way(spec: MelSpec) -> Way:
    """Return librosa's log mel."""
    import librosa

    def log_mel(sound: FloatArray) -> FloatArray:
        mel = librosa.feature.melspectrogram(
            y=sound, sr=spec.sample_rate_hz, n_fft=spec.n_fft, hop_length=spec.hop_frames, n_mels=spec.n_mels,
            htk=True, norm=None, center=False,
        )  # fmt: skip
        decibels: FloatArray = librosa.power_to_db(mel, amin=spec.floor, top_db=None)
        return decibels

    return log_mel


def torchaudio_way(spec: MelSpec) -> Callable[[Any], Any]:
    """Return torchaudio's log mel: a tensor (.., n) -> (.., n_rows, n_frames)."""
    import torch
    from torchaudio.transforms import MelSpectrogram

    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it mentions bands that hold no FFT bin
        transform = MelSpectrogram(
            spec.sample_rate_hz, spec.n_fft, hop_length=spec.hop_frames, n_mels=spec.n_mels, center=False
        )

    @torch.inference_mode()
    def log_mel(sound: Any) -> Any:
        return 10.0 * transform(sound).clamp(min=spec.floor).log10()

    return log_mel


def ours_windows(spec: MelSpec, cut: FloatArray, hop_frames: int, *, at_once: int) -> list[FloatArray]:
    """Return the log mel (n_rows, n_frames) of every window of `cut` (n_windows, n), as the node computes it."""
    front = SharedFrontEnd([spec], window_frames=cut.shape[1], hop_frames=hop_frames)
    windows = [Window("mic0", n * hop_frames, samples, 0, follows=n > 0) for n, samples in enumerate(cut)]
    found: list[FloatArray] = []
    for first in range(0, len(windows), at_once):
        batch = windows[first : first + at_once]
        found += front.push(batch, [window.samples for window in batch])[0]
    return found


def theirs_windows(way: Callable[[Any], Any], windows: Any) -> list[Any]:
    """Return the log mel of every window, or batch of windows, each computed for itself."""
    return [way(window) for window in windows]


def whole(spec: MelSpec, sound: FloatArray) -> dict[str, Callable[[], object]]:
    """Return the contestants on one long sound, which have been found to agree."""
    import torch

    ours, theirs, librosas = MelFrontEnd(spec).window_log_mel, torchaudio_way(spec), librosa_way(spec)
    tensor = torch.from_numpy(sound)
    _check(ours(sound), {"librosa": librosas(sound), "torchaudio": theirs(tensor).numpy()})
    return {
        "edgeasd": partial(ours, sound),
        "librosa": partial(librosas, sound),
        "torchaudio": partial(theirs, tensor),
    }


def overlapping(spec: MelSpec, sound: FloatArray, hop_s: float) -> dict[str, Callable[[], object]]:
    """Return the contestants on windows of a second, which have been found to agree."""
    import torch

    hop_frames = round(hop_s * RATE_HZ)
    cut = np.lib.stride_tricks.sliding_window_view(sound, RATE_HZ)[::hop_frames]
    windows = torch.from_numpy(sound).unfold(0, RATE_HZ, hop_frames)
    theirs, librosas = torchaudio_way(spec), librosa_way(spec)
    ours = np.stack(ours_windows(spec, cut, hop_frames, at_once=BATCH_WINDOWS))
    _check(ours, {"librosa": np.stack(theirs_windows(librosas, cut)), "torchaudio": theirs(windows).numpy()})
    return {
        "edgeasd, batches": partial(ours_windows, spec, cut, hop_frames, at_once=BATCH_WINDOWS),
        "edgeasd, one by one": partial(ours_windows, spec, cut, hop_frames, at_once=1),
        "librosa": partial(theirs_windows, librosas, cut),
        "torchaudio": partial(theirs_windows, theirs, windows),
        "torchaudio, batches": partial(theirs_windows, theirs, torch.split(windows, BATCH_WINDOWS)),
    }


def _check(ours: FloatArray, others: Mapping[str, FloatArray]) -> None:
    for name, theirs in others.items():
        off_db = float(np.max(np.abs(ours - theirs))) if ours.shape == theirs.shape else np.inf
        if not off_db <= TOLERANCE_DB:
            raise SystemExit(f"{name} is off by {off_db:.2g} dB, shape {theirs.shape}, ours {ours.shape}")


def report(case: str, kind: str, contestants: dict[str, Callable[[], object]], *, seconds: float, rounds: int) -> None:
    """Let contestants take turns, and print a row for each."""
    for work in contestants.values():
        work()
    found = alternate([partial(timed, work) for work in contestants.values()], rounds=rounds)
    first_s = least_cpu_s(found[0])
    for name, costs in zip(contestants, found, strict=True):
        target = TARGETS.get((kind, name.partition(",")[0]))
        ratio = least_cpu_s(costs) / first_s
        asked = "" if target is None else f"{target:g}"
        print(
            f"| {case} | {name} | {1e3 * least_wall_s(costs):.2f} | {1e3 * least_cpu_s(costs):.2f} | "
            f"{seconds / least_wall_s(costs):.0f} | {ratio:.1f} | {asked} |",
            flush=True,
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    sound = noise(round(asked.seconds * RATE_HZ))
    minute = sound[: 60 * RATE_HZ]
    print(machine_line(), end="\n\n")
    print("| case | contestant | wall ms | CPU ms | x real time | its CPU to ours | target |")
    print("|---|---|---|---|---|---|---|")
    with on_cores(1):
        for name, spec in SPECS.items():
            for kind, heard in {"long": sound, "minute": minute}.items():
                case = f"{name}, {len(heard) / RATE_HZ:.0f} s without overlap"
                report(case, kind, whole(spec, heard), seconds=len(heard) / RATE_HZ, rounds=asked.rounds)
        for hop_s in HOPS_S:
            contestants = overlapping(MelSpec(), minute, hop_s)
            case = f"windows of 1 s, hop {hop_s} s"
            report(case, str(hop_s), contestants, seconds=len(minute) / RATE_HZ, rounds=asked.rounds)


if __name__ == "__main__":
    main()
