"""Fit a detector: one Lightning Trainer, one path, seeded."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from rich.console import Console
from torch.utils.data import DataLoader, Sampler

from edgeasd.errors import SelfTestError
from edgeasd_train.detectors.contract import Batch, Detector
from edgeasd_train.features import LogMelWindows
from edgeasd_train.recipe import FitRecipe, Recipe

_SAMPLE_WINDOWS = 16_384
"""Windows that a normalisation or a spread is measured on, evenly spread over the training set."""
_MEASURE_BATCH = 256


@dataclass(frozen=True, slots=True)
class FitResult:
    """What came of a fit; the detector itself holds the weights."""

    n_epochs: int
    n_steps: int
    train_loss: float
    """Mean over the last epoch."""
    held_out_loss: float


class _EpochLines(Callback):
    """A line an epoch, for logs: a progress bar is for terminals."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:  # noqa: ARG002
        losses = ", ".join(f"{name} {float(value):.4g}" for name, value in sorted(trainer.callback_metrics.items()))
        self._console.print(f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}: {losses}", highlight=False)


class SeededBatches(Sampler[list[int]]):
    """Every window once an epoch, in an order that follows from the seed and the epoch alone.

    Of a corpus so large that `max_steps` end before all of it was seen, an epoch is as much as they reach.
    """

    def __init__(self, n_windows: int, *, batch_size: int, max_steps: int, seed: int) -> None:
        self._n_windows = n_windows
        self._batch_size = min(batch_size, n_windows)
        self._n_batches = min(n_windows // self._batch_size, max_steps)
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the epoch to come; Lightning calls this."""
        self._epoch = epoch

    def __len__(self) -> int:
        """Return the number of batches; windows left over wait for an epoch in which they come earlier."""
        return self._n_batches

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the window numbers of each batch."""
        order = np.random.default_rng([self._seed, self._epoch]).permutation(self._n_windows)
        for first in range(0, len(self) * self._batch_size, self._batch_size):
            yield order[first : first + self._batch_size].tolist()


class _Training(lightning.LightningModule):
    """What Lightning needs to know of a detector."""

    def __init__(self, detector: Detector, recipe: FitRecipe, *, n_steps: int) -> None:
        super().__init__()
        self.network = detector.network
        self._detector = detector
        self._recipe = recipe
        self._n_steps = n_steps

    def training_step(self, batch: Batch, batch_index: int) -> torch.Tensor:  # noqa: ARG002
        loss = self._detector.loss(batch)
        self.log("train_loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(batch["index"]))
        return loss

    def validation_step(self, batch: Batch, batch_index: int) -> None:  # noqa: ARG002
        loss = self._detector.loss(batch)
        self.log("held_out_loss", loss, prog_bar=True, batch_size=len(batch["index"]))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(
            self.network.parameters(), lr=self._recipe.learning_rate, weight_decay=self._recipe.weight_decay
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=self._recipe.learning_rate, total_steps=max(2, self._n_steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@dataclass(frozen=True, slots=True)
class FitData:
    """Windows to learn from, and windows to watch the learning by."""

    train: LogMelWindows
    held_out: LogMelWindows


def fit(detector: Detector, data: FitData, *, recipe: Recipe, run_dir: Path, console: Console) -> FitResult:
    """Train the detector in place, leaving checkpoints and the course of the losses in `run_dir`."""
    batch_size, max_steps = recipe.fit.batch_size, recipe.fit.max_steps
    sampler = SeededBatches(len(data.train), batch_size=batch_size, max_steps=max_steps, seed=recipe.seed)
    n_epochs = max(recipe.fit.epochs, -(-recipe.fit.min_steps // len(sampler)))
    n_epochs = min(n_epochs, max_steps // len(sampler))
    torch.set_num_threads(recipe.fit.threads)
    detector.prepare(sample(data.train))
    with _quiet():
        trainer = _trainer(recipe.fit, n_epochs=n_epochs, run_dir=run_dir, console=console)
        trainer.fit(
            _Training(detector, recipe.fit, n_steps=n_epochs * len(sampler)),
            DataLoader(data.train, batch_sampler=sampler, collate_fn=_as_is),
            DataLoader(data.held_out, batch_size=_MEASURE_BATCH, collate_fn=_as_is),
        )
    _restore_best(detector, trainer, recipe.fit)
    _check_finite(detector, recipe.fit)
    detector.network.cpu().eval()
    detector.settle(sample(data.train))
    losses = {name: float(trainer.callback_metrics[name]) for name in ("train_loss", "held_out_loss")}
    return FitResult(trainer.current_epoch, trainer.global_step, losses["train_loss"], losses["held_out_loss"])


def sample(windows: LogMelWindows) -> Iterable[Batch]:
    """Yield batches of windows evenly spread over a set, all of it when it is small."""
    n_windows = min(len(windows), _SAMPLE_WINDOWS)
    numbers = np.arange(n_windows, dtype=np.int64) * len(windows) // n_windows
    for first in range(0, n_windows, _MEASURE_BATCH):
        yield windows.__getitems__(numbers[first : first + _MEASURE_BATCH].tolist())


def _trainer(recipe: FitRecipe, *, n_epochs: int, run_dir: Path, console: Console) -> lightning.Trainer:
    callbacks: list[Callback] = [
        ModelCheckpoint(
            run_dir / "checkpoints", filename="best-{epoch}", monitor="held_out_loss", save_top_k=1, save_last=True
        )
    ]
    if console.is_terminal and not console.quiet:
        callbacks.append(RichProgressBar(console_kwargs={"stderr": console.stderr}))
    else:
        callbacks.append(_EpochLines(console))
    if recipe.patience_epochs is not None:
        callbacks.append(EarlyStopping("held_out_loss", patience=recipe.patience_epochs))
    return lightning.Trainer(
        accelerator=recipe.accelerator,
        devices=1,
        max_epochs=n_epochs,
        callbacks=callbacks,
        logger=[
            CSVLogger(run_dir, name=None, version=""),
            TensorBoardLogger(run_dir, name=None, version="tensorboard"),
        ],
        log_every_n_steps=1,
        deterministic="warn",
        enable_progress_bar=console.is_terminal and not console.quiet,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=run_dir,
    )


def _restore_best(detector: Detector, trainer: lightning.Trainer, recipe: FitRecipe) -> None:
    """Go back to the checkpoint of the lowest held-out loss, where training was stopped by it."""
    checkpoint = trainer.checkpoint_callback
    if recipe.patience_epochs is None or not isinstance(checkpoint, ModelCheckpoint) or not checkpoint.best_model_path:
        return
    state = torch.load(checkpoint.best_model_path, map_location="cpu", weights_only=True)["state_dict"]
    detector.network.load_state_dict({key.removeprefix("network."): value for key, value in state.items()})


def _check_finite(detector: Detector, recipe: FitRecipe) -> None:
    if not all(bool(torch.isfinite(value).all()) for value in detector.network.state_dict().values()):
        raise SelfTestError(
            f"training ran away: weights are not finite; lower fit.learning_rate, now {recipe.learning_rate:g}"
        )


def _as_is(batch: Any) -> Any:
    """Stand in for collation: windows come as a batch already."""
    return batch


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's advice from the terminal: one batch is a memory copy, workers would only slow it down."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
