"""Calibration: from a raw score to the probability of such a score in normal sound.

Within the scores heard the probability comes from their quantiles; beyond them from a generalised Pareto tail. Windows
overlap and sound hangs together, so a hundred scores are worth fewer: `n_effective` says how many, and `extrapolation`
how far a probability reaches beyond what so little sound can support.
"""

from __future__ import annotations

import math
from bisect import bisect_left

import numpy as np
from numpy.typing import NDArray

from edgeasd.bundle import CalibrationTable
from edgeasd.errors import InputError
from edgeasd.manifest import N_QUANTILES
from edgeasd.records import FloatArray

_Doubles = NDArray[np.float64]

MIN_SCORES = 8
"""Fewer say nothing about a tail."""
_EXCEEDANCES = 400
"""The tail begins where so many scores lie beyond it, within the shares below: the farther out, the truer the fit."""
_TAIL_P_RANGE = (0.02, 0.1)
_MIN_EXCEEDANCES = 16
_MAX_TAIL_P = 0.5
_PRIOR_SHAPE = 0.1
_PRIOR_WEIGHT = 10.0
"""The tail shape is drawn towards slightly heavier than exponential, as if this many exceedances had said so."""
_SHAPE_RANGE = (0.02, 0.5)
"""Never a tail that ends: a score beyond it must stay comparable. Being too heavy costs sensitivity, never honesty."""
_MAX_PREDICTIVE_SHAPE = 0.9
"""Heavier tails than this make no threshold within reach."""
_LEAST_P = 1e-300
_LEAST_SCALE = 1e-9


def fit_calibration(
    scores: FloatArray | _Doubles, *, window_s: float, hop_s: float, n_disjoint: int | None = None
) -> CalibrationTable:
    """Fit a table to the scores (n,) of successive windows of normal sound that no training has seen.

    `n_disjoint` is how many windows without overlap the sound would give; None takes it for one stretch.
    """
    values = np.asarray(scores, np.float64)
    if values.size < MIN_SCORES or not np.isfinite(values).all():
        raise InputError(f"calibration: needs at least {MIN_SCORES} finite scores of normal sound, got {values.size}")
    overlap_windows = window_s / hop_s if n_disjoint is None else values.size / n_disjoint
    n_effective = effective_number(values, overlap_windows=max(1.0, overlap_windows))
    tail_p = float(np.clip(_EXCEEDANCES / values.size, *_TAIL_P_RANGE))
    tail_p = min(_MAX_TAIL_P, max(tail_p, _MIN_EXCEEDANCES / values.size))
    quantiles = np.quantile(values, np.linspace(0.0, 1.0, N_QUANTILES))
    tail_start = float(np.interp(1.0 - tail_p, np.linspace(0.0, 1.0, N_QUANTILES), quantiles))
    excesses = values[values > tail_start] - tail_start
    shape, scale = fit_tail(excesses, n_effective=n_effective * tail_p)
    cluster_windows = _mean_run(values > tail_start)
    # The next excess comes from a tail that only k clusters of them have told of. Of an exponential tail whose scale is
    # unknown a Pareto tail of shape 1 / k is to be expected; without it small calibrations alarm too often.
    shape = min(_MAX_PREDICTIVE_SHAPE, shape + cluster_windows / (tail_p * values.size))
    return CalibrationTable(
        quantiles=[float(q) for q in quantiles],
        tail_start=tail_start,
        tail_p=tail_p,
        tail_scale=scale,
        tail_shape=shape,
        n_scores=values.size,
        n_effective=n_effective,
        cluster_windows=cluster_windows,
        window_s=window_s,
        hop_s=hop_s,
    )


def fit_tail(excesses: _Doubles, *, n_effective: float) -> tuple[float, float]:
    """Return shape and scale of a generalised Pareto distribution of positive `excesses` (n,).

    The estimator of Zhang and Stephens (2009): the posterior mean over a grid under a data-driven prior. The shape is
    then drawn towards `_PRIOR_SHAPE`, the more so the fewer independent excesses there are.
    """
    if excesses.size < 3:
        return _PRIOR_SHAPE, max(_LEAST_SCALE, float(excesses.sum()) / max(1, excesses.size) * (1.0 - _PRIOR_SHAPE))
    trust = n_effective / (n_effective + _PRIOR_WEIGHT)
    shape = float(np.clip(trust * _free_shape(excesses) + (1.0 - trust) * _PRIOR_SHAPE, *_SHAPE_RANGE))
    return shape, _likeliest_scale(excesses, shape)


def _free_shape(excesses: _Doubles) -> float:
    """Return the shape that the excesses alone speak for."""
    ordered = np.sort(excesses)
    n = ordered.size
    n_grid = 30 + math.isqrt(n)
    quartile = ordered[max(0, int(n / 4 + 0.5) - 1)]
    grid = 1.0 / ordered[-1] + (1.0 - np.sqrt(n_grid / (np.arange(1, n_grid + 1) - 0.5))) / (3.0 * quartile)
    grid = grid[grid != 0.0]
    shapes = np.log1p(-grid[:, None] * ordered).mean(axis=1)
    log_likelihood = n * (np.log(-grid / shapes) - shapes - 1.0)
    weights = np.exp(log_likelihood - log_likelihood.max())
    rate = float(weights @ grid / weights.sum())
    return float(np.log1p(-rate * ordered).mean())


def _likeliest_scale(excesses: _Doubles, shape: float) -> float:
    """Return the scale of greatest likelihood for a given shape: where the score function, falling, crosses zero."""
    low, high = _LEAST_SCALE, _LEAST_SCALE + 10.0 * float(excesses.max())
    for _ in range(60):
        middle = (low + high) / 2.0
        if float(((1.0 + shape) * excesses / (middle + shape * excesses)).mean()) > 1.0:
            low = middle
        else:
            high = middle
    return high


def effective_number(scores: _Doubles, *, overlap_windows: float) -> float:
    """Return how many independent windows say as much as `scores` (n,), of which `overlap_windows` share samples.

    n / (1 + 2 sum of autocorrelations), summed in pairs while these stay positive; never more than windows without
    overlap would be.
    """
    n = scores.size
    spectrum = np.fft.rfft(scores - scores.mean(), 2 * n)
    covariance = np.fft.irfft(spectrum.real**2 + spectrum.imag**2)[:n]
    if covariance[0] <= 1e-12 * n:
        return 1.0
    n_pairs = (n - 1) // 2
    pairs = covariance[1 : 1 + 2 * n_pairs].reshape(n_pairs, 2).sum(axis=1) / covariance[0]
    ends = np.flatnonzero(pairs <= 0.0)
    total = float(pairs[: ends[0] if ends.size else n_pairs].sum())
    return float(np.clip(n / (1.0 + 2.0 * total), 1.0, max(1.0, n / overlap_windows)))


def _mean_run(exceeds: NDArray[np.bool_]) -> float:
    """Return the mean length of runs of true."""
    n_runs = int(exceeds[0]) + int(np.count_nonzero(exceeds[1:] & ~exceeds[:-1]))
    return max(1.0, float(np.count_nonzero(exceeds)) / max(1, n_runs))


class Calibration:
    """Turns raw scores into probabilities and back; strictly falling, so that ranking survives."""

    def __init__(self, table: CalibrationTable) -> None:
        self.table = table
        self._scores, self._p_values = _body(table)
        pairs = zip(self._scores.tolist(), self._p_values.tolist(), strict=True)
        self._points: list[tuple[float, float]] = list(pairs)  # for one score at a time
        self._spread = max(1e-9, float(self._scores[-1] - self._scores[0]) / 4.0)

    def p_value(self, score: float) -> float:
        """Return the probability, in (0, 1], that a window of normal sound scores at least `score`."""
        table = self.table
        if score >= table.tail_start:
            steps = (score - table.tail_start) / table.tail_scale
            log_p = math.log(table.tail_p) - math.log1p(table.tail_shape * steps) / table.tail_shape
            return max(_LEAST_P, math.exp(max(-690.0, log_p)))
        lowest, p_lowest = self._points[0]
        if score < lowest:
            return 1.0 - (1.0 - p_lowest) * math.exp((score - lowest) / self._spread)
        index = max(1, bisect_left(self._points, (score,)))  # of the point at or above the score
        (low, p_low), (high, p_high) = self._points[index - 1], self._points[index]
        return (p_high - p_low) / (high - low) * (score - low) + p_low

    def score_at(self, p_value: float) -> float:
        """Return the score that normal sound reaches with probability `p_value`, in (0, 1]."""
        table = self.table
        if p_value <= table.tail_p:
            steps = math.expm1(-table.tail_shape * math.log(p_value / table.tail_p)) / table.tail_shape
            return table.tail_start + table.tail_scale * steps
        return float(np.interp(-p_value, -self._p_values, self._scores))

    def extrapolation(self, p_value: float) -> float:
        """Return how many times more sound than was heard it takes to see one such window; 1 when it was seen."""
        return max(1.0, 1.0 / (p_value * self.table.n_effective))

    def p_for_alarms(self, alarms_per_day: float, *, hop_s: float) -> float:
        """Return the probability at which windows every `hop_s` cross often enough for so many alarms a day."""
        windows_per_day = 86_400.0 / hop_s
        # Windows that exceed together are one alarm; they are fewer the less the windows overlap.
        cluster_windows = max(1.0, self.table.cluster_windows * self.table.hop_s / hop_s)
        return min(1.0, max(_LEAST_P, alarms_per_day * cluster_windows / windows_per_day))


def _body(table: CalibrationTable) -> tuple[_Doubles, _Doubles]:
    """Return scores, strictly increasing, and probabilities, strictly falling, from the lowest to the tail's start."""
    quantiles = np.asarray(table.quantiles)
    # Below the first quantile something is left for scores that are lower still: 1 is reached only far down.
    p_values = np.linspace(1.0 - 0.5 / (table.n_scores + 1), 0.0, N_QUANTILES)
    keep = (quantiles < table.tail_start) & (p_values > table.tail_p)
    scores, p_values = np.append(quantiles[keep], table.tail_start), np.append(p_values[keep], table.tail_p)
    first_of_ties = np.append(True, np.diff(scores) > 0.0)
    return scores[first_of_ties], p_values[first_of_ties]
