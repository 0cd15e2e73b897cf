"""Fits on generated sound, in this process or, as `python -m tests.train.fit_rig`, in one that may be killed."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from rich.console import Console
from torch import nn

from edgeasd.features.mel import MelSpec
from edgeasd.manifest import OutputName
from edgeasd_train.corpus import WindowIndex, open_corpus
from edgeasd_train.corpus.logmel import LogMelStore, LogMelWindows
from edgeasd_train.detectors import build_detector
from edgeasd_train.detectors.contract import Batch, Detector
from edgeasd_train.fit import FitData, FitResult, fit
from edgeasd_train.ranks import ALONE, Ranks, current_ranks, joined
from edgeasd_train.recipe import Recipe, load_recipe
from edgeasd_train.runlog import Run
from tests.conftest import ROOT, _soundscape

RATE_HZ = 16000
SMALL = (
    "features.n_mels=16", "features.hop_frames=800", "data.window_s=0.5", "data.hop_s=0.1", "data.held_out_hop_s=0.1",
    "fit.accelerator=cpu", "fit.min_steps=1", "fit.batch_size=16", "export.precisions=[]",
)  # fmt: skip
"""Overrides that make a fit a matter of a second."""


class TinyAe:
    """A detector without batch statistics, so that parts of a batch add up to it exactly, and with dropout."""

    outputs: tuple[OutputName, ...] = ("score",)
    limits = ()

    def __init__(self, spec: MelSpec, *, n_frames: int, dropout: float) -> None:
        n = spec.n_rows * n_frames
        self.network = nn.Sequential(
            nn.Flatten(),
            nn.Linear(n, 8),
            nn.Tanh(),
            nn.Dropout(dropout),
            nn.Linear(8, n),
            nn.Unflatten(1, (spec.n_rows, -1)),
        )
        self.network.register_buffer("mean", torch.zeros(spec.n_rows, 1))
        self.network.register_buffer("spread", torch.zeros(()))

    def prepare(self, batches: Iterable[Batch]) -> None:
        self._buffer("mean").copy_(torch.cat([batch["log_mel"] for batch in batches]).mean(dim=(0, 2)).unsqueeze(1))

    def loss(self, batch: Batch) -> torch.Tensor:
        return self._errors(batch).mean()

    @torch.inference_mode()
    def deviation(self, batch: Batch) -> torch.Tensor:
        return self._errors(batch)

    @torch.inference_mode()
    def settle(self, batches: Iterable[Batch]) -> None:
        self._buffer("spread").copy_(torch.cat([self._errors(batch) for batch in batches]).std())

    def serve(self) -> nn.Module:
        return Served(self)

    def _errors(self, batch: Batch) -> torch.Tensor:
        normal = (batch["log_mel"] - self._buffer("mean")) / 10.0
        drawing: torch.Tensor = self.network(normal)
        return (drawing - normal).square().mean(dim=(1, 2))

    def _buffer(self, name: str) -> torch.Tensor:
        return self.network.get_buffer(name)


class Served(nn.Module):
    def __init__(self, detector: TinyAe) -> None:
        super().__init__()
        self.errors = detector._errors

    def forward(self, log_mel: torch.Tensor) -> torch.Tensor:
        return self.errors({"log_mel": log_mel})


def small_recipe(*overrides: str) -> Recipe:
    return load_recipe(overrides=[*SMALL, *overrides])


def make_sound(folder: Path, *, n_files: int = 4, odd: Sequence[int] = (), seconds: float = 10.0) -> Path:
    """Write recordings of one machine hall; those of the numbers `odd` hold loud rattling from 2 to 3 s."""
    folder.mkdir()
    for number in range(n_files):
        events = ((2.0, 3.0),) if number in odd else ()
        samples = _soundscape(seconds, seed=7, events=events).samples.copy()
        samples += 0.002 * np.random.default_rng(number).standard_normal(len(samples)).astype(np.float32)
        soundfile.write(folder / f"{number:02}.wav", samples, RATE_HZ)
    return folder


def open_data(sound: Path, recipe: Recipe, *, cache_dir: Path, ranks: Ranks = ALONE) -> FitData:
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"paths": [sound]})})
    spec = build_detector(recipe)[1]
    corpus = open_corpus(recipe.data, cache_dir=cache_dir, grid_frames=spec.hop_frames, ranks=ranks, workers=1)
    store = LogMelStore(corpus, spec, cache_dir=cache_dir, ranks=ranks, workers=1)
    train, held_out = (
        LogMelWindows(
            corpus,
            WindowIndex(stretches, window_frames=recipe.data.window_frames, hop_frames=round(hop_s * RATE_HZ)),
            store,
        )
        for stretches, hop_s in (
            (corpus.train, recipe.data.hop_s),
            (corpus.held_out, recipe.data.held_out_hop_s),
        )
    )
    return FitData(train, held_out)


def make_detector(recipe: Recipe, *, tiny: bool, dropout: float = 0.5) -> Detector:
    torch.manual_seed(recipe.seed)
    if not tiny:
        detector, _ = build_detector(recipe)
        assert not hasattr(detector, "measure")
        return detector
    return TinyAe(recipe.features, n_frames=recipe.features.n_frames(recipe.data.window_frames), dropout=dropout)


def quick_fit(
    detector: Detector, data: FitData, recipe: Recipe, run_dir: Path, *, ranks: Ranks = ALONE, resume: bool = False,
    console: Console | None = None,
) -> FitResult:  # fmt: skip
    run_dir.mkdir(parents=True, exist_ok=True)
    run = Run(run_dir, ranks=ranks, resumes=resume)
    console = console or Console(quiet=True)
    return fit(detector, data, recipe=recipe, run=run, ranks=ranks, console=console, resume=resume)


def digest(network: nn.Module) -> str:
    """Return a digest of all parameters and buffers, to the bit."""
    buffer = io.BytesIO()
    for name, value in network.state_dict().items():
        buffer.write(name.encode())
        np.save(buffer, value.cpu().numpy())
    return hashlib.sha256(buffer.getvalue()).hexdigest()


@contextmanager
def rank_environment(ranks: Ranks, port: int) -> Iterator[None]:
    """Set what torchrun sets for a rank."""
    values = {
        "RANK": ranks.rank, "WORLD_SIZE": ranks.size, "LOCAL_RANK": ranks.local_rank, "LOCAL_WORLD_SIZE": ranks.size,
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, str(value))
        yield


def in_children(work: Callable[[int], object], n: int = 1) -> list[tuple[int, Any]]:
    """Run `work(number)` in `n` forked processes; return of each its exit code, minus the signal, and what it made.

    A fork has torch imported already, and may be killed.
    """
    with tempfile.TemporaryDirectory() as folder:
        pids = []
        for number in range(n):
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    Path(folder, str(number)).write_text(json.dumps(work(number)))
                    code = 0
                except BaseException:  # noqa: BLE001  # it must not come back to pytest
                    traceback.print_exc()
                finally:
                    os._exit(code)
            pids.append(pid)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        made = [Path(folder, str(number)) for number in range(n)]
        return [
            (code, json.loads(path.read_text()) if code == 0 else None) for code, path in zip(codes, made, strict=True)
        ]


def start(*arguments: str, n_ranks: int = 1) -> subprocess.Popen[str]:
    """Start a fit in a process of its own, or one a rank under torchrun."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n_ranks}"] if n_ranks > 1 else []
    command = [sys.executable, *launcher, "-m", "tests.train.fit_rig", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def main() -> None:
    """Fit as told; each rank writes what came of it to rank-R.json in the run directory."""
    parser = argparse.ArgumentParser()
    parser.add_argument("sound", type=Path)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()
    recipe, ranks = small_recipe(*arguments.set), current_ranks()
    with joined(ranks):
        data = open_data(arguments.sound, recipe, cache_dir=arguments.sound.parent / "cache", ranks=ranks)
        detector = make_detector(recipe, tiny=arguments.tiny)
        console = Console(stderr=True)
        result = quick_fit(
            detector, data, recipe, arguments.run_dir, ranks=ranks, resume=arguments.resume, console=console
        )
    told = {"sha256": digest(detector.network), **asdict(result)}
    (arguments.run_dir / f"rank-{ranks.rank}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
