"""Choosing a front end without labels: how well mahalanobis tells clips from slightly altered copies of them.

    python -m benchmarks.bench_proxies [MACHINES]

MACHINES is a DCASE tree; default ../shared/audio/machines. Only training clips are read: in five folds the distance is
measured on four, and the clips of the fifth are told from copies of them that were played 1 to 3 % faster or slower,
equalised by up to 2 dB, given a faint chord, a pulsating band, or clicks. Prints the AUC of each kind of copy and their
mean, over UAVprop, lathe and vmc, for front ends of several resolutions and for windows of one second and of a clip.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray
from scipy import signal

from benchmarks.machine import machine_line
from edgeasd.features.mel import MelFrontEnd, MelSpec
from edgeasd.records import FloatArray
from edgeasd_train.detectors.mahalanobis import Mahalanobis, MahalanobisOptions
from edgeasd_train.detectors.options import Shapes
from edgeasd_train.judging.roc import auc

RATE_HZ = 16000
MACHINES = ("UAVprop", "lathe", "vmc")
KINDS = ("speed", "equaliser", "chord", "pulsation", "clicks")
N_FOLDS = 5
HOP_FRAMES = 400
FRONT_ENDS = (
    (1024, 64, 1.0), (1024, 128, 1.0), (4096, 256, 1.0),
    (1024, 64, 0.0), (1024, 128, 0.0), (2048, 128, 0.0), (2048, 256, 0.0), (4096, 256, 0.0), (8192, 256, 0.0),
)  # fmt: skip
"""FFT length, mel bands, window in seconds (0: the clip)."""


def alter(sound: FloatArray, random: np.random.Generator) -> Iterator[NDArray[np.floating]]:
    """Yield a copy (n,) of each of KINDS."""
    n, time_s, level = len(sound), np.arange(len(sound)) / RATE_HZ, float(sound.std())
    speed = 1.0 + random.choice([-1.0, 1.0]) * random.uniform(0.01, 0.03)
    yield np.resize(soxr.resample(sound, RATE_HZ, RATE_HZ * speed), n)
    corners_hz = np.concatenate([[0.0], np.sort(random.uniform(200.0, 7500.0, 6)), [8000.0]])
    gains = 10.0 ** (random.uniform(-2.0, 2.0, 8) / 20.0)
    yield np.convolve(sound, signal.firwin2(257, corners_hz / 8000.0, gains), "same")
    lowest_hz = random.uniform(150.0, 1500.0)
    chord = sum(np.sin(2 * np.pi * lowest_hz * k * time_s + random.uniform(0, 6)) for k in (1, 2, 3))
    yield sound + chord * level * 10.0 ** (-22.0 / 20.0) / np.std(chord)
    band = signal.lfilter(*signal.iirpeak(random.uniform(300.0, 4000.0), 2.0, fs=RATE_HZ), sound)
    yield sound + 0.5 * band * np.sin(2 * np.pi * random.uniform(3.0, 15.0) * time_s)
    clicks = np.zeros(n)
    for first in random.integers(0, n - 200, max(1, int(2 * n / RATE_HZ))):
        clicks[first : first + 100] += random.standard_normal(100) * level * 1.5
    yield sound + clicks


@dataclass(frozen=True, slots=True)
class Heard:
    """A clip, then its altered copies, each as log mel of its windows."""

    versions: tuple[FloatArray, ...]
    """Each (n_windows, n_rows, n_frames)."""


def listen(folder: Path, spec: MelSpec, *, window_s: float) -> list[Heard]:
    """Return all training clips of a machine with their copies."""
    random, front_end = np.random.default_rng(1), MelFrontEnd(spec)
    clips = [soundfile.read(path, dtype="float32")[0] for path in sorted(folder.glob("*.*"))]
    shortest_frames = min(map(len, clips))
    n_frames = spec.n_frames(round(window_s * RATE_HZ) if window_s else shortest_frames)
    step = max(1, RATE_HZ // 2 // spec.hop_frames)
    heard = []
    for clip in clips:
        rows = [front_end.window_log_mel(version.astype(np.float32)) for version in (clip, *alter(clip, random))]
        windows = (np.lib.stride_tricks.sliding_window_view(one, n_frames, axis=1)[:, ::step] for one in rows)
        heard.append(Heard(tuple(one.transpose(1, 0, 2) for one in windows)))
    return heard


def judge(clips: list[Heard]) -> list[float]:
    """Return the AUC of each kind of copy against the clips themselves, over all folds."""
    n_rows, n_frames = clips[0].versions[0].shape[1:]
    shapes = Shapes(n_rows, n_frames, n_frames * HOP_FRAMES, RATE_HZ)
    scores = np.empty((len(clips), 1 + len(KINDS)))
    for fold in range(N_FOLDS):
        detector = Mahalanobis(shapes, MahalanobisOptions())
        detector.measure({"log_mel": clip.versions[0]} for i, clip in enumerate(clips) if i % N_FOLDS != fold)
        for i in range(fold, len(clips), N_FOLDS):
            scores[i] = [detector.deviation({"log_mel": one}).mean() for one in clips[i].versions]
    labels = np.repeat([0, 1], len(clips))
    return [auc(labels, np.concatenate([scores[:, 0], scores[:, kind]])) for kind in range(1, 1 + len(KINDS))]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).resolve().parents[2] / "shared" / "audio" / "machines"
    parser.add_argument("machines", type=Path, nargs="?", default=default)
    arguments = parser.parse_args()
    print(f"{machine_line()}\n\n| FFT | bands | window | {' | '.join(KINDS)} | mean |\n{'|---' * (4 + len(KINDS))}|")
    for n_fft, n_mels, window_s in FRONT_ENDS:
        spec = MelSpec(n_fft=n_fft, hop_frames=HOP_FRAMES, n_mels=n_mels, mel_scale="slaney", norm="slaney")
        found = [judge(listen(arguments.machines / name / "train", spec, window_s=window_s)) for name in MACHINES]
        means = np.mean(found, axis=0)
        cells = " | ".join(f"{value:.3f}" for value in (*means, means.mean()))
        print(f"| {n_fft} | {n_mels} | {f'{window_s:g} s' if window_s else 'clip'} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
