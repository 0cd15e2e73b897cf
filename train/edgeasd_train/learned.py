"""The way of a learned detector through a training; imported only for one, because it needs torch."""

from __future__ import annotations

import numpy as np
import torch
from rich.console import Console

from edgeasd.bundle import Golden
from edgeasd.features.mel import MelSpec
from edgeasd_train.corpus.logmel import LogMelWindows
from edgeasd_train.detectors import build_detector, measured
from edgeasd_train.detectors.contract import Detector
from edgeasd_train.export import export_onnx
from edgeasd_train.fit import FitData
from edgeasd_train.fit import fit as fit_network
from edgeasd_train.program import export_program
from edgeasd_train.recipe import Recipe
from edgeasd_train.result import FitResult
from edgeasd_train.runlog import TENSORBOARD, Run
from edgeasd_train.tensorboard_log import TensorBoardLog


def build(recipe: Recipe) -> tuple[Detector, MelSpec]:
    """Return the detector a recipe asks for, with the weights its seed gives, and its front end."""
    torch.manual_seed(recipe.seed)
    detector, spec = build_detector(recipe)
    return detector, spec  # type: ignore[return-value]  # its kind says that it is learned


def fit(
    detector: Detector, train: LogMelWindows, held_out: LogMelWindows, *, recipe: Recipe, run: Run, console: Console
) -> FitResult:
    """Fit the detector in place, with curves and pictures for whoever watches."""
    run.tensorboard = TensorBoardLog(run.directory / TENSORBOARD)
    data = FitData(train, held_out)
    return fit_network(detector, data, recipe=recipe, run=run, ranks=run.ranks, console=console, resume=run.resumes)


def export(detector: Detector, batch: measured.Batch) -> tuple[bytes, Golden]:
    """Return the detector as a graph that has been run, and golden vectors of the windows of `batch`."""
    return export_onnx(detector, {"log_mel": np.ascontiguousarray(batch["log_mel"], np.float32)})


def program(detector: Detector, golden: Golden) -> bytes:
    """Return the detector as a torch program that has been run."""
    return export_program(detector.serve(), golden)
