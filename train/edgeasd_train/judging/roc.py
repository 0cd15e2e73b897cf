"""Areas under ROC curves of weighted clips.

A bootstrap draw is a weighting: how often each clip was drawn. One sort of the scores serves all draws and all subsets.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

MAX_FPR = 0.1
"""Where the partial area ends, in every year of the challenge."""
_BLOCK_VALUES = 1 << 21
"""So many weights are worked on at a time, to keep memory small."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """The order of n scores, highest first."""

    order: NDArray[np.int64]
    """Shape (n,)."""
    ends: NDArray[np.int64]
    """Shape (n_distinct,): where, in that order, each run of equal scores ends."""


def rank(scores: ArrayLike) -> Ranking:
    """Rank scores (n,); equal ones stay together."""
    values = np.asarray(scores, np.float64)
    order = np.argsort(-values, kind="stable").astype(np.int64)
    falls = np.flatnonzero(np.diff(values[order]))
    return Ranking(order, np.append(falls, len(values) - 1).astype(np.int64))


def areas(ranking: Ranking, *, normal: ArrayLike, anomaly: ArrayLike, max_fpr: float = 1.0) -> Array:
    """Return the area up to `max_fpr` for each row of weights; `normal` and `anomaly` have shape (n_rows, n).

    Standardised as by McClish (1989), so that chance is 0.5 and perfection 1: for max_fpr 1 the AUC itself, for 0.1
    what scikit-learn's roc_auc_score(max_fpr=0.1) returns. NaN where a class has no weight.
    """
    normal, anomaly = np.atleast_2d(np.asarray(normal)), np.atleast_2d(np.asarray(anomaly))
    n_rows, n = normal.shape
    step = max(1, _BLOCK_VALUES // max(1, n))
    found = np.empty(n_rows)
    for first in range(0, n_rows, step):
        rows = slice(first, first + step)
        found[rows] = _areas(_rates(ranking, normal[rows]), _rates(ranking, anomaly[rows]), max_fpr)
    least, most = max_fpr**2 / 2.0, max_fpr
    return 0.5 * (1.0 + (found - least) / (most - least))


def curve(labels: ArrayLike, scores: ArrayLike) -> tuple[Array, Array]:
    """Return false and true positive rates (n_distinct + 1,), from (0, 0) to (1, 1); labels are 0 and 1."""
    ranking, is_anomaly = rank(scores), np.asarray(labels) == 1
    fpr, tpr = _rates(ranking, ~is_anomaly[None]), _rates(ranking, is_anomaly[None])
    return fpr[0], tpr[0]


def auc(labels: ArrayLike, scores: ArrayLike, *, max_fpr: float = 1.0) -> float:
    """Return the area under the ROC curve of labels (n,), 0 and 1; NaN when one class is missing."""
    is_anomaly = np.asarray(labels) == 1
    return float(areas(rank(scores), normal=~is_anomaly, anomaly=is_anomaly, max_fpr=max_fpr)[0])


def bootstrap_weights(strata: NDArray[np.int64], *, n_draws: int, random: np.random.Generator) -> NDArray[np.uint16]:
    """Return (1 + n_draws, n) how often each clip counts: once in the first row, then as drawn with replacement.

    Drawn within each stratum, so that every draw has as many clips of each as there are.
    """
    weights = np.ones((1 + n_draws, len(strata)), np.uint16)
    offsets = np.arange(n_draws)[:, None]
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        n = len(members)
        drawn = random.integers(0, n, (n_draws, n)) + n * offsets
        weights[1:, members] = np.bincount(drawn.ravel(), minlength=n * n_draws).reshape(n_draws, n)
    return weights


def _rates(ranking: Ranking, weights: NDArray[np.generic]) -> Array:
    """Return (n_rows, 1 + n_distinct) the share of the weight at or above each distinct score, 0 in front."""
    reached = np.cumsum(weights[:, ranking.order], axis=1, dtype=np.float64)[:, ranking.ends]
    total = np.where(reached[:, -1:] > 0, reached[:, -1:], np.nan)
    return np.concatenate([np.zeros((len(reached), 1)), reached], axis=1) / total


def _areas(fpr: Array, tpr: Array, max_fpr: float) -> Array:
    """Return (n_rows,) the area below the curve up to `max_fpr`, by trapezoids, the last one cut."""
    width = np.diff(fpr, axis=1)
    kept = np.clip(max_fpr - fpr[:, :-1], 0.0, width)
    share = np.divide(kept, width, out=np.zeros_like(width), where=width > 0)
    rise = np.diff(tpr, axis=1)
    area: Array = np.sum(kept * (tpr[:, :-1] + 0.5 * share * rise), axis=1)
    return area
