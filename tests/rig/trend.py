"""Trends of figures that a process shows while it runs: how fast they grow, and how well that can be told."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Times in seconds and values, both shape (n,)."""

_Z_95 = 1.96


@dataclass(frozen=True, slots=True)
class Trend:
    """A slope per hour with its 95 % interval."""

    slope: float
    low: float
    high: float
    n_points: int

    def __str__(self) -> str:
        return f"{self.slope:+.3g} ({self.low:+.3g} to {self.high:+.3g})"


def trend(curves: Iterable[Curve], *, block_s: float = 60.0) -> Trend | None:
    """Return the common slope of several curves, each at a height of its own; None when there is too little.

    Sen's estimate on medians of blocks (so that neighbouring samples do not count as news): the median of the slopes
    of all pairs within a curve. The interval follows from the variance of Kendall's statistic.
    """
    slopes: list[NDArray[np.float64]] = []
    variance, n_points = 0.0, 0
    for times_s, values in (_block_medians(curve, block_s) for curve in curves):
        n = len(times_s)
        first, second = np.triu_indices(n, 1)
        slopes.append((values[second] - values[first]) / (times_s[second] - times_s[first]))
        variance += n * (n - 1) * (2 * n + 5) / 18.0
        n_points += n
    pooled = 3600.0 * np.sort(np.concatenate(slopes)) if slopes else np.zeros(0)
    if len(pooled) < 3:
        return None
    reach = _Z_95 * variance**0.5
    low = max(0, int((len(pooled) - reach) / 2.0))
    high = min(len(pooled) - 1, int(np.ceil((len(pooled) + reach) / 2.0)))
    return Trend(float(np.median(pooled)), float(pooled[low]), float(pooled[high]), n_points)


def _block_medians(curve: Curve, block_s: float) -> Curve:
    times_s, values = curve
    blocks = (times_s // block_s).astype(int)
    each: Sequence[NDArray[np.bool_]] = [blocks == block for block in np.unique(blocks)]
    return np.array([times_s[one].mean() for one in each]), np.array([np.median(values[one]) for one in each])
