"""From a detector that knows what is normal to the bundle: export, calibrate with what was exported, write, open."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeasd import __version__
from edgeasd.bundle import (
    PROGRAM_MEMBER,
    REDUCED_MEMBERS,
    CalibrationTable,
    Golden,
    Inputs,
    Manifest,
    Provenance,
    read_bundle,
    write_bundle,
)
from edgeasd.engine import open_engine
from edgeasd.engine.onnx import OnnxEngine
from edgeasd.manifest import OutputName
from edgeasd.records import FloatArray
from edgeasd.scoring.calibration import fit_calibration
from edgeasd_train.calibrate import score_windows
from edgeasd_train.card import graph_table, model_card
from edgeasd_train.corpus.logmel import LogMelWindows
from edgeasd_train.detectors.measured import Batch
from edgeasd_train.golden import GOLDEN_WINDOWS
from edgeasd_train.recipe import Recipe
from edgeasd_train.reducing import Judged, Original, Reduction, Refusal, reduce
from edgeasd_train.result import FitResult

log = logging.getLogger(__name__)

_NAME_CHARS = 64
_DEBUG = "debug-"


@dataclass(frozen=True, slots=True)
class Goods:
    """What is to be shipped."""

    export: Callable[[Batch], tuple[bytes, Golden]]
    """Gives the graph and golden vectors of some windows."""
    program: Callable[[Golden], bytes]
    """Gives the torch program that meets those vectors."""
    outputs: tuple[OutputName, ...]
    limits: tuple[str, ...]
    recipe: Recipe
    train: LogMelWindows
    held_out: LogMelWindows
    fitted: FitResult
    debug: bool


def ship(goods: Goods, output: Path) -> Manifest:
    """Write the bundle `output`, in one step, and open it as a node would; return what it says of itself."""
    recipe, held_out = goods.recipe, goods.held_out
    numbers = np.linspace(0, len(held_out) - 1, GOLDEN_WINDOWS).astype(np.int64)
    model_onnx, golden = goods.export(held_out.batch(numbers))
    unseen = goods.fitted.unseen_scores
    judged = _judge(goods, model_onnx) if unseen is None else Judged(unseen, _calibrate(goods, unseen))
    reductions = _reduce(
        goods, Original(model_onnx, golden, judged, goods.train.of_length(held_out.index.window_frames))
    )
    shipped = [one for one in reductions if isinstance(one, Reduction)]
    optional = {REDUCED_MEMBERS[one.precision]: one.graph for one in shipped}
    if recipe.export.program:
        optional[PROGRAM_MEMBER] = goods.program(golden)
    manifest = Manifest(
        name=_bundle_name(output, debug=goods.debug),
        version=int(f"{datetime.now(UTC):%Y%m%d%H%M%S}"),
        detector=recipe.detector.name,
        sample_rate_hz=recipe.data.sample_rate_hz,
        window_frames=recipe.data.window_frames,
        inputs=Inputs(log_mel=held_out.spec),
        outputs=list(goods.outputs),
        calibration=judged.table,
        precisions={one.precision: one.terms for one in shipped},
        provenance=_provenance(goods),
    )
    card = model_card(
        manifest, held_out.corpus, limits=goods.limits, graphs=graph_table(model_onnx, reductions), debug=goods.debug
    )
    manifest = write_bundle(
        output, manifest=manifest, model_onnx=model_onnx, golden=golden, card=card, optional=optional
    )
    bundle = read_bundle(output)
    for precision in bundle.precisions:
        open_engine(bundle, "onnx", precision=precision).close()
    return manifest


def _judge(goods: Goods, model_onnx: bytes) -> Judged:
    """Return what a graph says of the held-out sound, in the node's engine."""
    engine = OnnxEngine(model_onnx)
    try:
        scores = score_windows(engine, goods.held_out)
    finally:
        engine.close()
    return Judged(scores, _calibrate(goods, scores))


def _calibrate(goods: Goods, scores: FloatArray) -> CalibrationTable:
    data, n_disjoint = goods.recipe.data, goods.held_out.index.n_disjoint
    window_s = data.window_frames / data.sample_rate_hz
    scores = scores[_shuffled_by_recording(goods.held_out)]
    return fit_calibration(scores, window_s=window_s, hop_s=data.held_out_hop_s, n_disjoint=n_disjoint)


def _reduce(goods: Goods, original: Original) -> list[Reduction | Refusal]:
    """Return what came of every precision that the recipe asks for."""
    if goods.fitted.unseen_scores is not None:  # of parts left out in turn, and only in float32
        return [Refusal(one, "a measured detector has one graph") for one in goods.recipe.export.precisions]
    reductions = [reduce(one, original, partial(_judge, goods)) for one in goods.recipe.export.precisions]
    for one in reductions:
        if isinstance(one, Refusal):
            log.warning("no graph in %s: %s", one.precision, one.reason)
    return reductions


def _shuffled_by_recording(windows: LogMelWindows) -> NDArray[np.int64]:
    """Return the windows' numbers (n,) with recordings in random order, each in its own order of time.

    Sorted by name recordings stand beside their like, which would pass for sound that hangs together for hours.
    """
    numbers = np.arange(len(windows), dtype=np.int64)
    sounds = windows.index.locate(numbers)[0]
    place = np.random.default_rng(0).permutation(int(sounds.max()) + 1)
    return numbers[np.argsort(place[sounds], kind="stable")]


def _bundle_name(output: Path, *, debug: bool) -> str:
    """Return the file's stem, with what a manifest's name may not hold replaced."""
    name = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in output.stem)
    return ((_DEBUG if debug else "") + (name.lstrip("._-") or "model"))[:_NAME_CHARS]


def _provenance(goods: Goods) -> Provenance:
    corpus, fitted = goods.train.corpus, goods.fitted
    return Provenance(
        created_utc=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        code_version=__version__,
        seed=goods.recipe.seed,
        seconds_heard=corpus.train_s + corpus.held_out_s,
        corpus_sha256=corpus.sha256(),
        recipe=goods.recipe.model_dump(mode="json"),
        metrics={
            "train_s": corpus.train_s,
            "held_out_s": corpus.held_out_s,
            "windows": len(goods.train),
            "windows_pruned": fitted.n_pruned,
            "held_out_learned": float(goods.recipe.data.held_out_learned),
            "folds": fitted.n_folds,
            "epochs": fitted.n_epochs,
            "steps": fitted.n_steps,
            "train_loss": fitted.train_loss,
            "held_out_loss": fitted.held_out_loss,
        },
    )
