"""What Lightning is told of a detector: batches, loss, optimizer, schedule, and what belongs in a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from torch.utils.data import DataLoader

from edgeasd.errors import SelfTestError
from edgeasd_train import prune
from edgeasd_train.checkpoints import FORMAT, KEY
from edgeasd_train.collectives import totals
from edgeasd_train.corpus.logmel import LogMelWindows
from edgeasd_train.course import Course
from edgeasd_train.detectors.contract import Batch, Detector
from edgeasd_train.features import TorchWindows
from edgeasd_train.pruning import prune as prune_windows
from edgeasd_train.ranks import Ranks
from edgeasd_train.recipe import FitRecipe, Recipe
from edgeasd_train.sampling import HeldOutBatches, Kept, SeededBatches, Shares

MEASURE_BATCH = 256
"""Windows per batch where nothing is learned from them."""


@dataclass(frozen=True, slots=True)
class FitData:
    """Windows to learn from, and windows to watch the learning by."""

    train: LogMelWindows
    held_out: LogMelWindows


@dataclass(frozen=True, slots=True)
class Plan:
    """How long a fit is to be, settled before it begins; pruning makes its epochs shorter, not fewer or more."""

    n_epochs: int
    n_steps: int
    """Of an epoch of all windows."""

    @classmethod
    def of(cls, recipe: FitRecipe, shares: Shares, n_windows: int) -> Plan:
        """Return as many epochs as are asked for, within the least and the most steps."""
        n_steps = min(n_windows // shares.batch_of(n_windows), recipe.max_steps)
        n_epochs = max(recipe.epochs, -(-recipe.min_steps // n_steps))
        return cls(min(n_epochs, recipe.max_steps // n_steps), n_steps)


@dataclass(frozen=True, slots=True)
class Job:
    """All that a fit works with and that does not change under it."""

    detector: Detector
    data: FitData
    recipe: Recipe
    plan: Plan
    shares: Shares
    run_dir: Path
    identity: Mapping[str, str]
    tell: Callable[[str], None]
    """Takes a line for the log, an epoch at a time."""

    @property
    def ranks(self) -> Ranks:
        """Return this process among those that train."""
        return self.shares.ranks


class Training(lightning.LightningModule):
    """A detector in Lightning's hands. All randomness of a step follows from seed, step and rank alone."""

    def __init__(self, job: Job, course: Course) -> None:
        super().__init__()
        self.network = job.detector.network
        self._job = job
        self._fit = job.recipe.fit
        self._course = course
        self._kept = Kept(len(job.data.train), course.pruned.index)
        self._first_step = 0
        self._n_steps = 0
        self._loss_sum = torch.zeros((), dtype=torch.float64)
        self._held_out = torch.zeros(2, dtype=torch.float64)  # sum of losses, windows

    def train_dataloader(self) -> DataLoader[dict[str, torch.Tensor]]:
        """Return the batches of the epoch to come, or what is left of one that was broken off; prune before it."""
        job, course = self._job, self._course
        if prune.is_due(job.recipe.prune, epoch=course.epoch, pruned_before=course.prunes):
            self._prune()
        batches = SeededBatches(
            self._kept, job.shares, max_steps=self._fit.max_steps, seed=job.recipe.seed, epoch=course.epoch,
            first_step=course.step,
        )  # fmt: skip
        self._first_step, self._n_steps = course.step, batches.n_steps
        self._loss_sum = torch.tensor(course.loss_sum, dtype=torch.float64)
        return DataLoader(TorchWindows(job.data.train), batch_sampler=batches, collate_fn=_as_is)

    def _prune(self) -> None:
        job, course = self._job, self._course
        worst = prune_windows(
            job.detector, job.data.train, self._kept, job.recipe.prune, ranks=job.ranks, epoch=course.epoch
        )
        course.pruned = course.pruned.and_then(worst)
        course.prunes.append(course.epoch)
        self._kept = self._kept.without(worst.index)
        if job.ranks.is_first:
            prune.write_table(job.run_dir / prune.TABLE, course.pruned, job.data.train)
            job.tell(f"pruned {len(worst)} windows, {len(self._kept)} of {self._kept.n_windows} are kept")

    def val_dataloader(self) -> DataLoader[dict[str, torch.Tensor]]:
        """Return this rank's share of the windows held out."""
        windows = self._job.data.held_out
        batches = HeldOutBatches(len(windows), self._job.ranks, at_most=MEASURE_BATCH)
        return DataLoader(TorchWindows(windows), batch_sampler=batches, collate_fn=_as_is)

    def training_step(self, batch: Batch, batch_index: int) -> torch.Tensor:
        """Return the loss of one part of a batch."""
        step = self._course.n_steps, batch_index % self._fit.accumulate, self._job.ranks.rank
        seed = np.random.SeedSequence([self._job.recipe.seed, *step]).generate_state(1, np.uint64)
        torch.manual_seed(int(seed[0]) >> 1)
        loss = self._job.detector.loss(batch)
        self._loss_sum = self._loss_sum + loss.detach().double() / self._fit.accumulate
        figures = {"train_loss_step": loss, "learning_rate": self.trainer.optimizers[0].param_groups[0]["lr"]}
        self.log_dict(figures, on_step=True, on_epoch=False)
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take a step, and count it."""
        super().optimizer_step(*args, **kwargs)
        self._course.step += 1
        self._course.n_steps += 1

    def configure_optimizers(self) -> Any:
        """Return Adam and its schedule."""
        recipe, n_steps = self._fit, max(2, self._job.plan.n_epochs * self._job.plan.n_steps)
        optimizer = torch.optim.Adam(
            self.network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        schedule: torch.optim.lr_scheduler.LRScheduler
        if recipe.schedule == "one-cycle":
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=n_steps)
        elif recipe.schedule == "cosine":
            schedule = torch.optim.lr_scheduler.LambdaLR(
                optimizer, lambda step: 0.5 + 0.5 * math.cos(math.pi * step / n_steps)
            )
        else:
            schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0, total_iters=0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:  # noqa: ARG002
        """Move the schedule to where the fit is: an epoch made shorter by pruning takes as much of it as any other."""
        course, n_steps = self._course, self._job.plan.n_steps
        scheduler.last_epoch = course.epoch * n_steps + course.step * n_steps / self._n_steps - 1
        scheduler.step()

    def validation_step(self, batch: Batch, batch_index: int) -> None:  # noqa: ARG002
        """Add up the loss of held-out windows."""
        n_windows = len(batch["index"])
        loss = float(self._job.detector.loss(batch))
        self._held_out += torch.tensor([loss * n_windows, n_windows], dtype=torch.float64)

    def on_validation_epoch_end(self) -> None:
        """Tell the held-out loss, over the windows of all ranks; SelfTestError when it is not finite."""
        loss_sum, n_windows = totals(self._job.ranks, self._held_out.tolist())
        self._held_out.zero_()
        loss = loss_sum / n_windows
        if not math.isfinite(loss):
            raise ran_away(self._fit)
        self._course.held_out.append(loss)
        self.log("held_out_loss", loss, prog_bar=True)

    def on_train_epoch_end(self) -> None:
        """Close the epoch."""
        course, plan = self._course, self._job.plan
        course.train_loss = self._mean_loss_sum() / self._n_steps
        course.epoch, course.step, course.loss_sum = course.epoch + 1, 0, 0.0
        self._loss_sum = torch.zeros((), dtype=torch.float64)
        self.log("train_loss", course.train_loss, prog_bar=True)
        self._job.tell(
            f"epoch {course.epoch} of {plan.n_epochs}: held_out_loss {course.held_out[-1]:.4g}, "
            f"train_loss {course.train_loss:.4g}"
        )
        course.is_finished = course.epoch == plan.n_epochs or course.has_stalled(self._fit.patience_epochs)
        self.trainer.should_stop = course.is_finished

    def _mean_loss_sum(self) -> float:
        return totals(self._job.ranks, [float(self._loss_sum)])[0] / self._job.ranks.size

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the state of the fit, and make Lightning's own say that it is about to begin an epoch.

        Where in that epoch to go on is the state's matter: Lightning, told of a half-done epoch, would draw it anew.
        """
        course = self._course
        course.loss_sum = self._mean_loss_sum()
        checkpoint[KEY] = {"format": FORMAT, "identity": dict(self._job.identity), "course": course.state()}
        counts = dict.fromkeys(("ready", "started", "processed", "completed"), course.epoch)
        optimizer_steps = "epoch_loop.automatic_optimization.optim_progress"
        loops = {
            "epoch_progress": {"total": counts, "current": dict(counts)},
            optimizer_steps: checkpoint["loops"]["fit_loop"][optimizer_steps],
            "epoch_loop.state_dict": {"_batches_that_stepped": course.n_steps},
        }
        checkpoint["loops"] = {"fit_loop": loops}


def ran_away(recipe: FitRecipe) -> SelfTestError:
    """Return the error that says that training diverged."""
    return SelfTestError(
        f"training ran away: weights or losses are not finite; lower fit.learning_rate, now {recipe.learning_rate:g}"
    )


def _as_is(batch: Any) -> Any:
    """Stand in for collation: windows come as a batch already."""
    return batch
