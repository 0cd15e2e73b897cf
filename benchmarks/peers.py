"""The contestants of bench_peers, one to a process: each scores the same recordings with the same model.

    python -m benchmarks.peers NAME FOLDER --bundle FILE --out SCORES.csv [--hop 0.5] [--jobs 1]

Prints the cost of its inner loop, start-up left out, as JSON. With several jobs as many processes, forked once all is
loaded, share the files; edgeasd chooses itself how many it starts. NAME: edgeasd, edgeasd-model, librosa,
torchaudio, onnx.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from benchmarks.workload import Cost
from edgeasd.bundle import Bundle, read_bundle
from edgeasd.features.mel import MelSpec

WARM_S = 3.0
BATCH_WINDOWS = 64
Scores = NDArray[np.float32]
Scorer = Callable[[Path], Scores]
"""Recording -> one score for each window, (n_windows,)."""


def eager_network(bundle: Bundle) -> Any:
    """Return the bundle's model as the torch module it was trained as, from the checkpoint in the run beside it."""
    import onnx
    import torch
    from onnx import numpy_helper

    from edgeasd_train.checkpoints import load_weights
    from edgeasd_train.detectors import build_detector
    from edgeasd_train.recipe import Recipe

    torch.set_num_threads(1)
    detector: Any = build_detector(Recipe.model_validate(bundle.manifest.provenance.recipe))[0]
    load_weights(bundle.path.with_suffix(".run") / "checkpoints" / "last.ckpt", detector.network)
    buffers = dict(detector.network.named_buffers())
    for constant in onnx.load_from_string(bundle.model_onnx).graph.initializer:
        if (name := constant.name.removeprefix("network.")) in buffers:  # measured after the last checkpoint
            buffers[name].copy_(torch.from_numpy(numpy_helper.to_array(constant).copy()))
    return detector.serve()


def _front_end(bundle: Bundle) -> MelSpec:
    spec = bundle.manifest.inputs.log_mel
    assert spec is not None
    if (spec.norm, spec.scale, spec.floor_mode, spec.rows) != ("none", "db", "clamp", None):
        raise SystemExit("the contestants know only plain log mel")
    return spec


def _starts(n_frames: int, *, window_frames: int, hop_frames: int) -> range:
    return range(0, n_frames - window_frames + 1, hop_frames)


def librosa_and_torch(bundle: Bundle, hop_s: float) -> Scorer:
    """Return what users do today: librosa on each window, then the model in eager torch, window by window."""
    import librosa
    import torch

    network, spec, window_frames = eager_network(bundle), _front_end(bundle), bundle.manifest.window_frames

    @torch.inference_mode()
    def score(path: Path) -> Scores:
        sound, rate_hz = librosa.load(path, sr=spec.sample_rate_hz)
        scores = []
        for start in _starts(len(sound), window_frames=window_frames, hop_frames=round(hop_s * rate_hz)):
            mel = librosa.feature.melspectrogram(
                y=sound[start : start + window_frames], sr=rate_hz, n_fft=spec.n_fft, hop_length=spec.hop_frames,
                n_mels=spec.n_mels, fmin=spec.f_min_hz, fmax=spec.top_hz, htk=spec.mel_scale == "htk", norm=None,
                center=False,
            )  # fmt: skip
            log_mel = librosa.power_to_db(mel, amin=spec.floor, top_db=None)
            scores.append(network(torch.from_numpy(log_mel[None]))[0].item())
        return np.array(scores, np.float32)

    return score


def torchaudio_and_torch(bundle: Bundle, hop_s: float) -> Scorer:
    """Return what a careful user of torch does: torchaudio and the model on batches of windows."""
    import torch
    from torchaudio.transforms import MelSpectrogram

    network, spec, window_frames = eager_network(bundle), _front_end(bundle), bundle.manifest.window_frames
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it mentions bands that hold no FFT bin
        transform = MelSpectrogram(
            spec.sample_rate_hz, spec.n_fft, hop_length=spec.hop_frames, f_min=spec.f_min_hz, f_max=spec.top_hz,
            n_mels=spec.n_mels, center=False, norm=None, mel_scale=spec.mel_scale,
        )  # fmt: skip

    @torch.inference_mode()
    def score(path: Path) -> Scores:
        sound, rate_hz = soundfile.read(path, dtype="float32")
        windows = torch.from_numpy(sound).unfold(0, window_frames, round(hop_s * rate_hz))
        scores = []
        for batch in torch.split(windows, BATCH_WINDOWS):
            log_mel = 10.0 * transform(batch).clamp(min=spec.floor).log10()
            scores.append(network(log_mel)[0].numpy())
        return np.concatenate(scores)

    return score


def onnx_loop(bundle: Bundle, hop_s: float) -> Scorer:
    """Return the plain loop over the exported model: numpy and scipy, then a run of ONNX Runtime, for each window."""
    import onnxruntime
    import scipy.fft

    spec, window_frames = _front_end(bundle), bundle.manifest.window_frames
    session = onnxruntime.InferenceSession(bundle.model_onnx, providers=["CPUExecutionProvider"])
    triangles = spec.filter_bank()
    hann = (0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(spec.n_fft) / spec.n_fft)).astype(np.float32)

    def score(path: Path) -> Scores:
        sound, rate_hz = soundfile.read(path, dtype="float32")
        scores = []
        for start in _starts(len(sound), window_frames=window_frames, hop_frames=round(hop_s * rate_hz)):
            window = sound[start : start + window_frames]
            frames = np.lib.stride_tricks.sliding_window_view(window, spec.n_fft)[:: spec.hop_frames]
            power = np.abs(scipy.fft.rfft(frames * hann, axis=1)) ** 2
            log_mel = 10.0 * np.log10(np.maximum(triangles @ power.T, spec.floor))
            scores.append(session.run(["score"], {"log_mel": log_mel[None]})[0][0])
        return np.array(scores, np.float32)

    return score


PEERS = {"librosa": librosa_and_torch, "torchaudio": torchaudio_and_torch, "onnx": onnx_loop}
_scorer: Scorer  # of a forked process, inherited: sessions cannot be sent


def _score(path: Path) -> tuple[Scores, float]:
    """Return the scores of a recording, and the processor seconds it took to find them."""
    began_s = time.process_time()
    return _scorer(path), time.process_time() - began_s


Loop = Callable[[], list[tuple[Scores, float]]]


def run_peer(name: str, paths: list[Path], *, bundle: Path, hop_s: float, jobs: int) -> Loop:
    """Load what a contestant needs, warm it, and return its inner loop."""
    global _scorer  # noqa: PLW0603
    _scorer = PEERS[name](read_bundle(bundle), hop_s)
    if jobs == 1:
        _warm(paths[0], _scorer)
        return lambda: [_score(path) for path in paths]
    # Forked before anything has run: torch and OpenMP take no fork after their pools have started.
    pool = multiprocessing.get_context("fork").Pool(jobs)
    pool.map(partial(_warm, scorer=None), [paths[0]] * (4 * jobs), chunksize=1)

    def loop() -> list[tuple[Scores, float]]:
        found = pool.map(_score, paths, chunksize=1)
        pool.close()
        pool.join()
        return found

    return loop


def _warm(path: Path, scorer: Scorer | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (scorer or _scorer)(_beginning(path, Path(folder)))


def _beginning(path: Path, folder: Path) -> Path:
    sound, rate_hz = soundfile.read(path, dtype="int16")
    soundfile.write(folder / "warm.wav", sound[: round(WARM_S * rate_hz)], rate_hz, subtype="PCM_16")
    return folder / "warm.wav"


def run_edgeasd(
    paths: list[Path], *, bundle: Path, hop_s: float, jobs: int, novelty: bool, out: Path
) -> tuple[Callable[[], None], Callable[[], None]]:
    """Load what edgeasd needs by a replay of some seconds, and return two loops: those seconds, and the recordings.

    Each opens the engine and has it pass its golden test, so that the difference is what the sound costs; with several
    jobs the start of the other processes is in it too.
    """
    from edgeasd.archive import ArchiveOptions, replay_archive
    from edgeasd.assembly import JudgeOptions
    from edgeasd.replay import ReplayJob, TablePaths

    judges = JudgeOptions(bundle=bundle, hop_s=hop_s, novelty=novelty)

    def run(recordings: list[Path], scores: Path, n_jobs: int | None) -> None:
        tables = TablePaths(scores, scores.with_suffix(".events.csv"))
        replay_archive(ReplayJob(tuple(recordings), judges), tables, ArchiveOptions(jobs=n_jobs))

    short = _beginning(paths[0], out.parent)
    run([short], out.with_suffix(".warm.csv"), 1)
    chosen = 1 if jobs == 1 else None  # with several cores it chooses itself
    return lambda: run([short], out.with_suffix(".warm.csv"), 1), lambda: run(paths, out, chosen)


def read_scores(path: Path) -> dict[tuple[str, float], float]:
    """Return the model's scores of a table by recording and start."""
    with path.open(newline="") as file:
        return {(row["file"], float(row["start_s"])): float(row["model"]) for row in csv.DictReader(file)}


def _write_scores(path: Path, found: Mapping[Path, Scores], hop_s: float) -> None:
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "start_s", "model"])
        for recording, scores in found.items():
            rows.writerows((recording.name, f"{i * hop_s:.3f}", f"{score:.6g}") for i, score in enumerate(scores))


def main() -> None:
    """Run one contestant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=["edgeasd", "edgeasd-model", *PEERS])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--hop", type=float, default=0.5)
    parser.add_argument("--jobs", type=int, default=1)
    asked = parser.parse_args()
    paths = sorted(asked.folder.glob("*.wav"))
    common: dict[str, Any] = {"bundle": asked.bundle, "hop_s": asked.hop, "jobs": asked.jobs}
    if asked.name in PEERS:
        cost, scores = _run_peer(run_peer(asked.name, paths, **common))
        _write_scores(asked.out, dict(zip(paths, scores, strict=True)), asked.hop)
    else:
        cost = _run_edgeasd(*run_edgeasd(paths, novelty=asked.name == "edgeasd", out=asked.out, **common))
    json.dump(asdict(cost), sys.stdout)


def _run_peer(loop: Loop) -> tuple[Cost, list[Scores]]:
    began_s = time.perf_counter()
    found = loop()
    wall_s = time.perf_counter() - began_s
    return Cost(wall_s, sum(cpu_s for _, cpu_s in found)), [scores for scores, _ in found]


def _run_edgeasd(opening: Callable[[], None], whole: Callable[[], None]) -> Cost:
    costs = []
    for loop in (opening, whole):
        before_s, began_s = _cpu_s(), time.perf_counter()
        loop()
        costs.append(Cost(time.perf_counter() - began_s, _cpu_s() - before_s))
    return Cost(costs[1].wall_s - costs[0].wall_s, costs[1].cpu_s - costs[0].cpu_s)


def _cpu_s() -> float:
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in spent)


if __name__ == "__main__":
    main()
