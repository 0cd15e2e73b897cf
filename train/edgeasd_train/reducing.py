"""Graphs of fewer bits beside the one in float32: made, judged on held-out normal sound, and shipped or left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from edgeasd.bundle import CalibrationTable, Golden
from edgeasd.errors import SelfTestError
from edgeasd.features.mel import MelFrontEnd, MelSpec
from edgeasd.manifest import MAX_GOLDEN_TOLERANCE, ReducedPrecision
from edgeasd.onnxgraph import read_graph
from edgeasd.records import FloatArray
from edgeasd.scoring.calibration import Calibration
from edgeasd_train.corpus.logmel import LogMelWindows
from edgeasd_train.golden import deviation
from edgeasd_train.precisions import Reduced, largest, to_fp16, to_int8
from edgeasd_train.quiet import quiet

MIN_RANK_AGREEMENT = 0.98
MAX_P_FACTOR = 1.5
_COMPARED = 10_000
"""Of more held-out scores, evenly spread ones."""
_RANGE_WINDOWS = 256
_RANGE_BATCH = 16
MARGINS: Mapping[Reduced, float] = {"fp16": 4.0, "int8": 2.0}
"""How much farther off than ONNX Runtime on a CPU another engine may be. It computes float16 graphs in float32, by
weights that were rounded; where every number is, it is up to four times as much. In int8 all round the same numbers."""
LEAST_TOLERANCE = 0.001
"""One step of float16 at 1: nearer than that no machine need come."""
_HALF_LIMIT = 65_504.0 / 4.0
"""Largest number in a float16 graph, on the loudest sound there is; float16 itself ends at four times that."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What a graph says of held-out normal sound."""

    scores: FloatArray
    """Shape (n,), of windows in order."""
    table: CalibrationTable


@dataclass(frozen=True, slots=True)
class Original:
    """The graph in float32, and what there is to reduce it by and to hold the result to."""

    model_onnx: bytes
    golden: Golden
    judged: Judged
    ranges: LogMelWindows
    """Sound that was trained on, in windows of the graph's length: int8 takes its ranges from it."""


@dataclass(frozen=True, slots=True)
class Reduction:
    """A graph of fewer bits that is good enough to ship, and what it costs."""

    precision: Reduced
    graph: bytes
    terms: ReducedPrecision
    deviation: float
    """Largest of a golden output s, as a share of 1 + |s|."""
    rank_agreement: float
    """Spearman's, of the held-out scores with those in float32."""
    p_factor: float
    """By which the probability of a held-out window differs from that in float32, for 95 % of them at most."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A precision that does not ship."""

    precision: Reduced
    reason: str


def reduce(precision: Reduced, original: Original, judge: Callable[[bytes], Judged]) -> Reduction | Refusal:
    """Return the graph in a precision with its own calibration, or why it does not ship."""
    if precision == "fp16" and (peak := _loudest(original)) > _HALF_LIMIT:
        return Refusal(precision, f"loud sound makes numbers of {peak:.2g} in it, float16 ends at 65504")
    graph = to_fp16(original.model_onnx) if precision == "fp16" else to_int8(original.model_onnx, _batches(original))
    if graph is None:
        return Refusal(precision, "nothing in the graph would compute in fewer bits")
    read_graph(graph)
    try:
        off, judged = deviation(graph, original.golden), judge(graph)
    except SelfTestError as exc:
        return Refusal(precision, str(exc))
    with quiet():  # of scores that are all the same
        rank_agreement = float(stats.spearmanr(judged.scores, original.judged.scores).statistic)
    p_factor = _p_factor(judged, original.judged)
    for ok, reason in (
        (off <= MAX_GOLDEN_TOLERANCE, f"its golden outputs are off by {off:.2g}"),
        (rank_agreement >= MIN_RANK_AGREEMENT, f"it ranks held-out sound otherwise, Spearman {rank_agreement:.3f}"),
        (p_factor <= MAX_P_FACTOR, f"probabilities of held-out sound are off by a factor of {p_factor:.2f}"),
    ):
        if not ok:
            return Refusal(precision, reason)
    tolerance = min(MAX_GOLDEN_TOLERANCE, max(LEAST_TOLERANCE, MARGINS[precision] * off))
    terms = ReducedPrecision(golden_tolerance=tolerance, calibration=judged.table)
    return Reduction(precision, graph, terms, off, rank_agreement, p_factor)


def _p_factor(judged: Judged, original: Judged) -> float:
    chosen = np.unique(np.linspace(0, len(original.scores) - 1, _COMPARED).astype(np.int64))
    log_p = []
    for one in (judged, original):
        calibration = Calibration(one.table)
        log_p.append(np.log([calibration.p_value(float(score)) for score in one.scores[chosen]]))
    return float(np.exp(np.quantile(np.abs(log_p[0] - log_p[1]), 0.95)))


def _batches(original: Original) -> Iterator[dict[str, FloatArray]]:
    """Yield windows of training sound, evenly spread, in batches of one size, as the calibration wants them."""
    n_windows = len(original.ranges)
    numbers = np.unique(np.linspace(0, n_windows - 1, min(n_windows, _RANGE_WINDOWS)).astype(np.int64))
    for first in range(0, max(1, len(numbers) - _RANGE_BATCH + 1), _RANGE_BATCH):
        yield {"log_mel": original.ranges.batch(numbers[first : first + _RANGE_BATCH])["log_mel"]}


def _loudest(original: Original) -> float:
    """Return the largest number that passes between heavy nodes on normal sound and on the loudest there is."""
    index, spec = original.ranges.index, original.ranges.spec
    windows = [*original.golden.inputs["log_mel"], *_extremes(spec, window_frames=index.window_frames)]
    return largest(original.model_onnx, {"log_mel": np.stack(windows)})


def _extremes(spec: MelSpec, *, window_frames: int) -> Iterator[FloatArray]:
    """Yield the log mel (n_rows, n_frames) of silence, and of noise, clipping and a tone at full scale."""
    noise = np.random.default_rng(0).uniform(-1.0, 1.0, window_frames)
    tone = np.sin(2.0 * np.pi * 1000.0 / spec.sample_rate_hz * np.arange(window_frames))
    front_end = MelFrontEnd(spec)
    for sound in (np.zeros(window_frames), noise, np.sign(noise), tone):
        yield front_end.window_log_mel(sound.astype(np.float32))
