"""The score above which a clip is called strange, from clips of normal sound alone."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgeasd.bundle import CalibrationTable, Manifest
from edgeasd.scoring.calibration import Calibration
from edgeasd_train.corpus.windows import Stretches, hold_out
from edgeasd_train.judging.roc import Array

BoolArray = NDArray[np.bool_]

QUANTILE = 0.9
"""One normal clip in ten is called strange, as with the baselines of DCASE."""
MIN_CLIPS = 10
"""Fewer training clips say less of the 90 % quantile than the bundle's calibration."""
_SLACK_S = 0.001
"""By so much a clip's length may differ after resampling."""


@dataclass(frozen=True, slots=True)
class Threshold:
    """A threshold and where it is from."""

    value: float
    rule: Literal["gamma", "quantile", "calibration"]
    n_clips: int
    """Clips of the training part that it rests on; 0 for the calibration."""
    unseen: bool = True
    """The model learned from none of what it rests on."""


def fit_threshold(train_scores: Array, table: CalibrationTable, *, unseen: BoolArray | None) -> Threshold:
    """Return the 90 % quantile of a gamma distribution fitted to clip scores (n,) of the training part.

    As the baselines do (scipy's fit of shape, location and scale), but to the clips `unseen` (n,) in training where
    these are known; a model scores what it learned from too low. Where the fit strays outside of the upper half of the
    scores, their own quantile. With fewer than `MIN_CLIPS` such clips the 90 % quantile of the bundle's calibration, of
    windows held out: for a mean over windows, which spreads less than windows do, that is cautious.
    """
    scores = train_scores if unseen is None else train_scores[unseen]
    if len(scores) < MIN_CLIPS:
        return Threshold(Calibration(table).score_at(1.0 - QUANTILE), "calibration", 0)
    fitted = _gamma_quantile(scores)
    if np.median(scores) <= fitted <= scores.max():
        return Threshold(fitted, "gamma", len(scores), unseen is not None)
    return Threshold(float(np.quantile(scores, QUANTILE)), "quantile", len(scores), unseen is not None)


def held_out_clips(n_frames: NDArray[np.int64], manifest: Manifest) -> BoolArray | None:
    """Return which clips (n,) of the training part, in order of path, the model was not trained on; None if unknown.

    The split follows from the recipe in the bundle. It is believed when it explains how much sound the bundle says it
    was trained on, and how much was held out; so not when these are other clips, or only some of them.
    """
    data, metrics = manifest.provenance.recipe.get("data"), manifest.provenance.metrics
    if metrics.get("folds"):
        return np.zeros(len(n_frames), np.bool_)  # all was learned from; its calibration left parts out in turn
    share = data.get("held_out") if isinstance(data, dict) else None
    if not isinstance(share, float) or len(n_frames) < MIN_CLIPS:
        return None
    everything = Stretches(np.arange(len(n_frames)), np.zeros_like(n_frames), n_frames)
    parts = hold_out(everything, share=share, grid_frames=1)
    for part, key in zip(parts, ("train_s", "held_out_s"), strict=True):
        expected_s = metrics.get(key, -1.0)
        if abs(part.n_frames.sum() / manifest.sample_rate_hz - expected_s) > _SLACK_S * len(n_frames):
            return None
    return np.isin(everything.sounds, parts[1].sounds)


def _gamma_quantile(scores: Array) -> float:
    """Return the quantile of the fitted gamma distribution; NaN when there is no fit."""
    from scipy import stats  # noqa: PLC0415  # half a second, for this alone

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            shape, location, scale = stats.gamma.fit(scores)
        except (RuntimeError, ValueError):  # scipy's FitError is a RuntimeError
            return float("nan")
        return float(stats.gamma.ppf(QUANTILE, shape, location, scale))
