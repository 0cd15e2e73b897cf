"""Fit a detector: one Lightning Trainer, one path for one rank and many, seeded, and resumed to the same bits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning
import numpy as np
import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, RichProgressBar
from rich.console import Console

from edgeasd.errors import SettingsError, UnavailableError
from edgeasd_train.checkpoints import (
    Checkpoints,
    Found,
    best_path,
    find_checkpoint,
    identity,
    load_weights,
    put_weights,
    remove_checkpoints,
)
from edgeasd_train.collectives import share
from edgeasd_train.corpus.logmel import LogMelWindows
from edgeasd_train.course import Course
from edgeasd_train.detectors.contract import Batch, Detector
from edgeasd_train.features import TorchWindows
from edgeasd_train.prune import TABLE, write_table
from edgeasd_train.quiet import quiet
from edgeasd_train.ranks import Ranks
from edgeasd_train.recipe import FitRecipe, Recipe
from edgeasd_train.reporting import Pictures, RunLogger
from edgeasd_train.result import FitResult
from edgeasd_train.runlog import Run
from edgeasd_train.sampling import Shares
from edgeasd_train.training import MEASURE_BATCH, FitData, Job, Plan, Training, ran_away

__all__ = ["FitData", "FitResult", "fit", "sample"]

_SAMPLE_WINDOWS = 16_384
"""Windows that a normalisation or a spread is measured on, evenly spread over the training set."""


def fit(
    detector: Detector,
    data: FitData,
    *,
    recipe: Recipe,
    run: Run,
    ranks: Ranks,
    console: Console,
    resume: bool,
) -> FitResult:
    """Train the detector in place, the same on every rank, with checkpoints in `run.directory`.

    With `resume` it goes on from the last whole checkpoint there, if there is one, and ends with the weights it would
    have had if it had never stopped. SettingsError when the checkpoint is of another recipe or corpus or the batch
    cannot be shared by the ranks; SelfTestError when the losses run away; TemporaryError when asked to end.
    """
    torch.set_num_threads(recipe.fit.threads)
    shares = Shares(recipe.fit.batch_size, ranks, recipe.fit.accumulate)
    job = Job(
        detector=detector,
        data=data,
        recipe=recipe,
        plan=Plan.of(recipe.fit, shares, len(data.train)),
        shares=shares,
        run_dir=run.directory,
        identity=identity(recipe, data.train.corpus.sha256()),
        tell=_teller(console, ranks),
    )
    found = _begin(job, console, resume=resume)
    course = found.course if found else Course()
    if not course.is_finished:
        _train(job, course, run=run, console=console, found=found)
    held_out_loss = _keep_best(job, course)
    _check_finite(detector, recipe.fit)
    detector.network.cpu().eval()
    if ranks.is_first:
        detector.settle(sample(data.train))
    share(ranks, detector.network)
    return FitResult(course.epoch, course.n_steps, course.train_loss, held_out_loss, len(course.pruned))


def sample(windows: LogMelWindows) -> Iterable[Batch]:
    """Yield batches of windows evenly spread over a set, all of it when it is small."""
    n_windows = min(len(windows), _SAMPLE_WINDOWS)
    numbers = np.arange(n_windows, dtype=np.int64) * len(windows) // n_windows
    dataset = TorchWindows(windows)
    for first in range(0, n_windows, MEASURE_BATCH):
        yield dataset.__getitems__(numbers[first : first + MEASURE_BATCH].tolist())


def _begin(job: Job, console: Console, *, resume: bool) -> Found | None:
    """Put the detector into the state to go on from: that of a checkpoint, or prepared and the same on all ranks."""
    directory = job.run_dir / "checkpoints"
    if job.ranks.is_first:
        directory.mkdir(parents=True, exist_ok=True)
        if not resume:
            remove_checkpoints(directory)
    job.ranks.barrier()
    network = job.detector.network
    found = find_checkpoint(directory, job.identity, console) if resume else None
    if found is None:
        if job.ranks.is_first:
            job.detector.prepare(sample(job.data.train))
        share(job.ranks, network)
        return None
    put_weights(found.state_dict, network)
    job.tell(f"going on after step {found.course.n_steps}, epoch {found.course.epoch + 1} of {job.plan.n_epochs}")
    if job.ranks.is_first and found.course.prunes:
        write_table(job.run_dir / TABLE, found.course.pruned, job.data.train)
    return found


def _train(job: Job, course: Course, *, run: Run, console: Console, found: Found | None) -> None:
    callbacks: list[Callback] = [
        Pictures(job.detector, job.data.held_out, run),
        Checkpoints(job.run_dir / "checkpoints", course, job.recipe.fit, job.ranks),
    ]
    if _has_bar(console, job.ranks):
        callbacks.append(RichProgressBar(console_kwargs={"stderr": console.stderr}))
    with quiet("lightning.pytorch"), _determinism_kept():
        trainer = _trainer(job, callbacks, logger=RunLogger(run), bar=_has_bar(console, job.ranks))
        trainer.fit(Training(job, course), ckpt_path=found.path if found else None, weights_only=True)


@contextmanager
def _determinism_kept() -> Iterator[None]:
    """Leave torch's own setting as it was: the trainer asks for deterministic algorithms, for the whole process."""
    was_on = torch.are_deterministic_algorithms_enabled()
    only_warned = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was_on, warn_only=only_warned)


def _trainer(job: Job, callbacks: list[Callback], *, logger: RunLogger, bar: bool) -> lightning.Trainer:
    recipe, ranks = job.recipe.fit, job.ranks
    try:
        trainer = lightning.Trainer(
            accelerator=recipe.accelerator,
            devices=ranks.size // ranks.n_nodes,
            num_nodes=ranks.n_nodes,
            strategy="auto" if ranks.is_alone else "ddp",
            plugins=[_cluster(ranks)],
            precision=recipe.precision,
            max_epochs=job.plan.n_epochs,
            accumulate_grad_batches=recipe.accumulate,
            gradient_clip_val=recipe.clip_norm,
            reload_dataloaders_every_n_epochs=1,  # each epoch has its own: what is kept may have changed
            use_distributed_sampler=False,
            callbacks=callbacks,
            logger=logger,
            enable_progress_bar=bar,
            enable_model_summary=False,
            deterministic="warn",
            num_sanity_val_steps=0,
            default_root_dir=job.run_dir,
        )
    except MisconfigurationException as exc:
        raise UnavailableError(f"fit.accelerator {recipe.accelerator}: {' '.join(str(exc).split())}") from exc
    if recipe.precision == "16-mixed" and trainer.strategy.root_device.type == "cpu":
        raise SettingsError("fit.precision: 16-mixed takes a GPU; bf16-mixed runs on a CPU too")
    return trainer


def _cluster(ranks: Ranks) -> ClusterEnvironment:
    """Return what tells Lightning which rank this is: what `current_ranks` found, not what Lightning would guess."""
    if ranks.launcher == "slurm":
        return SLURMEnvironment(auto_requeue=False)  # ours, between two steps: see checkpoints.py
    return TorchElasticEnvironment() if ranks.launcher == "torchrun" else LightningEnvironment()


def _keep_best(job: Job, course: Course) -> float:
    """Go back to the weights of the lowest held-out loss, where training is stopped by it; return that loss."""
    if job.recipe.fit.patience_epochs is None:
        return course.held_out[-1]
    best = course.best(1)[0]
    load_weights(best_path(job.run_dir / "checkpoints", best), job.detector.network)
    return course.held_out[best]


def _check_finite(detector: Detector, recipe: FitRecipe) -> None:
    if not all(bool(torch.isfinite(value).all()) for value in detector.network.state_dict().values()):
        raise ran_away(recipe)


def _has_bar(console: Console, ranks: Ranks) -> bool:
    return ranks.is_first and console.is_terminal and not console.quiet


def _teller(console: Console, ranks: Ranks) -> Any:
    """Return what prints a line: for logs, and on the first rank alone; a terminal has a progress bar."""
    if not ranks.is_first or _has_bar(console, ranks):
        return lambda _: None
    return lambda line: console.print(line, highlight=False)
