"""Checkpoints that a fit goes on from as if nothing had happened, wherever it was killed.

`last.ckpt` replaces its predecessor in one step, which stays as `previous.ckpt`; `best-EPOCH.ckpt` hold weights alone.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Checkpoint
from rich.console import Console

from edgeasd.errors import CannotWriteError, SettingsError, TemporaryError
from edgeasd_train.collectives import agree
from edgeasd_train.course import Course
from edgeasd_train.preemption import requeue
from edgeasd_train.ranks import Ranks
from edgeasd_train.recipe import FitRecipe, Recipe

KEY = "edgeasd"
"""Of what is ours in a checkpoint of Lightning's."""
FORMAT = 1
_AGREE_STEPS = 10
"""Ranks ask the first one so often whether it is time for a checkpoint: asking makes them wait for each other."""
_NO_MATTER = ("data.paths", "export.", "fit.checkpoint_minutes")
"""Keys of a recipe, or all below one, that may change between a kill and the resuming: none changes a weight."""
_UNREADABLE = (OSError, RuntimeError, EOFError, ValueError, KeyError, TypeError, pickle.UnpicklingError)


def identity(recipe: Recipe, corpus_sha256: str) -> dict[str, str]:
    """Return what two fits must have in common for one to go on where the other ended: values by key, as JSON."""
    flat = _flat(recipe.model_dump(mode="json"))
    values = {f"recipe {key}": value for key, value in flat if not key.startswith(_NO_MATTER)}
    return {**values, "corpus": corpus_sha256}


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", json.dumps(value)


@dataclass(frozen=True, slots=True)
class Found:
    """A checkpoint to go on from."""

    path: Path
    course: Course
    state_dict: dict[str, torch.Tensor]


def find_checkpoint(directory: Path, known: Mapping[str, str], console: Console) -> Found | None:
    """Return the latest checkpoint that is whole, None when there is none; SettingsError when it is of another fit."""
    for path in (directory / "last.ckpt", directory / "previous.ckpt"):
        if not path.exists():
            continue
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
            ours, state_dict = checkpoint[KEY], checkpoint["state_dict"]
            format_number, theirs, course = ours["format"], ours["identity"], Course.from_state(ours["course"])
        except _UNREADABLE as exc:
            reason = str(exc).partition("\n")[0]
            console.print(f"checkpoint {path} is not whole and is left aside: {reason}", highlight=False, markup=False)
            continue
        if format_number != FORMAT:
            raise SettingsError(f"checkpoint {path}: its format is {format_number}, this version writes {FORMAT}")
        _check_same(path, theirs, known)
        return Found(path, course, state_dict)
    return None


def _check_same(path: Path, theirs: Mapping[str, str], ours: Mapping[str, str]) -> None:
    for key in (*ours, *theirs):
        there, here = theirs.get(key, "unset"), ours.get(key, "unset")
        if there != here:
            raise SettingsError(f"checkpoint {path} cannot be gone on from: its {key} is {there}, not {here}")


def load_weights(path: Path, network: torch.nn.Module) -> None:
    """Give a network the weights of a checkpoint."""
    put_weights(torch.load(path, map_location="cpu", weights_only=True)["state_dict"], network)


def put_weights(state_dict: Mapping[str, torch.Tensor], network: torch.nn.Module) -> None:
    """Give a network the weights that a checkpoint holds under `network.`."""
    network.load_state_dict({key.removeprefix("network."): value for key, value in state_dict.items()})


def best_path(directory: Path, epoch: int) -> Path:
    """Return where the weights after an epoch lie, if it was among the best."""
    return directory / f"best-{epoch:04}.ckpt"


def remove_checkpoints(directory: Path) -> None:
    """Remove the checkpoints of a fit that is begun anew."""
    for path in directory.glob("*.ckpt"):
        path.unlink()


class Checkpoints(Checkpoint):
    """Writes checkpoints after every epoch, every so many minutes, and when the process is asked to end.

    SIGTERM and SIGUSR1, which SLURM sends before it preempts, end the fit between two steps with a TemporaryError; a
    SLURM job that got SIGUSR1 is queued again.
    """

    def __init__(self, directory: Path, course: Course, recipe: FitRecipe, ranks: Ranks) -> None:
        super().__init__()
        self._directory = directory
        self._course = course
        self._recipe = recipe
        self._ranks = ranks
        self._n_best = max(recipe.keep_best, int(recipe.patience_epochs is not None))
        self._saved_s = time.monotonic()
        self._signal = 0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:  # noqa: ARG002
        """Take over the signals; Lightning, which answers them at once and in mid-step, gives them back at its end."""
        self._saved_s = time.monotonic()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGUSR1):
                signal.signal(number, self._note)

    def _note(self, number: int, _: object) -> None:
        self._signal = number

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,  # noqa: ARG002
        outputs: Any,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,
    ) -> None:
        """Write a checkpoint when it is time, between two steps."""
        if (batch_idx + 1) % self._recipe.accumulate or trainer.is_last_batch:
            return
        if not self._ranks.is_alone and self._course.n_steps % _AGREE_STEPS:
            return
        is_time = time.monotonic() - self._saved_s >= 60.0 * self._recipe.checkpoint_minutes
        wanted = agree(self._ranks, self._signal or -int(is_time))
        if wanted:
            self._save_last(trainer)
        if wanted > 0:
            self._leave(wanted)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:  # noqa: ARG002
        """Write the weights if they are among the best, then the checkpoint, and then remove what it does not name."""
        best = self._course.best(self._n_best)
        ended = self._course.epoch - 1
        if ended in best:
            self._save(trainer, best_path(self._directory, ended), weights_only=True)
        self._save_last(trainer)
        if self._ranks.is_first:
            for path in set(self._directory.glob("best-*.ckpt")) - {
                best_path(self._directory, epoch) for epoch in best
            }:
                path.unlink(missing_ok=True)
        wanted = agree(self._ranks, self._signal)
        if wanted and not self._course.is_finished:
            self._leave(wanted)

    def _save_last(self, trainer: lightning.Trainer) -> None:
        last = self._directory / "last.ckpt"
        if self._ranks.is_first and last.exists():
            os.replace(last, self._directory / "previous.ckpt")
        self._save(trainer, last, weights_only=False)
        self._saved_s = time.monotonic()

    def _save(self, trainer: lightning.Trainer, path: Path, *, weights_only: bool) -> None:
        partial = path.with_suffix(".tmp")
        try:
            trainer.save_checkpoint(partial, weights_only=weights_only)
            if self._ranks.is_first:
                with partial.open("rb") as file:
                    os.fsync(file.fileno())
                os.replace(partial, path)
        except OSError as exc:
            raise CannotWriteError(f"checkpoint {path}: cannot be written: {exc.strerror or exc}") from exc

    def _leave(self, number: int) -> None:
        if number == signal.SIGUSR1 and self._ranks.is_first and "SLURM_JOB_ID" in os.environ:
            requeue()
        name = signal.Signals(number).name
        raise TemporaryError(
            f"training was ended by {name} after step {self._course.n_steps}; --resume goes on from there"
        )
