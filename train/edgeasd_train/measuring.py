"""The way of a measured detector through a training: no torch, no epochs, one process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from edgeasd.bundle import Golden
from edgeasd.engine import GOLDEN_TOLERANCE
from edgeasd.engine.onnx import OnnxEngine
from edgeasd.errors import SelfTestError
from edgeasd.features.mel import MelSpec
from edgeasd.onnxgraph import read_graph
from edgeasd.records import FloatArray
from edgeasd_train.corpus.logmel import LogMelWindows
from edgeasd_train.crossfit import by_recording, dealt, unseen_scores
from edgeasd_train.detectors import build_detector
from edgeasd_train.detectors.measured import Batch, MeasuredDetector
from edgeasd_train.golden import verify
from edgeasd_train.prune import JUDGED_TOGETHER, prune_measured
from edgeasd_train.recipe import Recipe
from edgeasd_train.result import FitResult
from edgeasd_train.runlog import Run
from edgeasd_train.sampling import Kept
from edgeasd_train.together import once

_PRUNING_FOLDS = 5


def build(recipe: Recipe) -> tuple[MeasuredDetector, MelSpec]:
    """Return the detector a recipe asks for and its front end."""
    detector, spec = build_detector(recipe)
    return detector, spec  # type: ignore[return-value]  # its kind says that it is measured


def fit(
    detector: MeasuredDetector,
    train: LogMelWindows,
    held_out: LogMelWindows,
    *,
    recipe: Recipe,
    run: Run,
    console: Console,  # noqa: ARG001  # measuring is over before there is anything to say
) -> FitResult:
    """Measure the detector, on the first rank alone.

    Without a list of what to hold out both sets are windows of all sound, and the calibration is cross-fitted.
    """
    n_folds = 0 if recipe.data.held_out_list is not None else max(2, round(1.0 / recipe.data.held_out))

    def judge(kept: Kept) -> NDArray[np.float64]:  # what is judged took no part: an anomaly must not excuse itself
        cut = partial(dealt, n_folds=_PRUNING_FOLDS)
        return unseen_scores(lambda: build(recipe)[0], train, kept, train, cut=cut).astype(np.float64)

    def measure() -> FitResult:
        pruned = prune_measured(detector, train, recipe.prune, judge=judge, run_dir=run.directory)
        kept = Kept(len(train), pruned.index)
        train_loss = _mean_deviation(detector, train, kept)
        if n_folds:
            cut = partial(by_recording, n_folds=n_folds)
            scores = unseen_scores(lambda: build(recipe)[0], train, kept, held_out, cut=cut)
            held_out_loss = float(scores.mean())
        else:
            scores, held_out_loss = None, _mean_deviation(detector, held_out, Kept(len(held_out)))
        run.log({"train_loss": train_loss, "held_out_loss": held_out_loss}, step=0)
        return FitResult(0, 0, train_loss, held_out_loss, len(pruned), n_folds, scores)

    return once(run.ranks, measure)


def _mean_deviation(detector: MeasuredDetector, windows: LogMelWindows, kept: Kept) -> float:
    total = sum(float(detector.deviation(windows.batch(part)).sum()) for part in kept.blocks(JUDGED_TOGETHER))
    return total / len(kept)


def export(detector: MeasuredDetector, batch: Batch) -> tuple[bytes, Golden]:
    """Return the graph of a measured detector, and golden vectors of the windows of `batch`.

    The graph has been run: SelfTestError when it depends on the batch, or its score is not the detector's deviation.
    """
    model_onnx = detector.model_onnx()
    read_graph(model_onnx)
    inputs = {"log_mel": np.ascontiguousarray(batch["log_mel"], np.float32)}
    golden = Golden(inputs, _answers(model_onnx, inputs, detector.outputs))
    verify(model_onnx, golden)
    score, deviation = golden.outputs["score"], detector.deviation(batch)
    off = float(np.max(np.abs(score - deviation) / (1.0 + np.abs(deviation))))
    if not off <= GOLDEN_TOLERANCE:
        raise SelfTestError(f"the exported model's score is off by {off:.2g} from what was measured")
    return model_onnx, golden


def program(detector: MeasuredDetector, golden: Golden) -> bytes:
    """Return the detector as a torch program that has been run; the one thing here that takes torch."""
    from edgeasd_train.program import export_program  # noqa: PLC0415

    return export_program(detector.serve(), golden)


def _answers(model_onnx: bytes, inputs: Mapping[str, FloatArray], names: Sequence[str]) -> dict[str, FloatArray]:
    engine = OnnxEngine(model_onnx)
    try:
        outputs = engine.score(inputs, wanted=names)
    finally:
        engine.close()
    return {name: getattr(outputs, name) for name in names}
