"""Why a window is strange: which frequency bands carry the score."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgeasd.records import Band, FloatArray

MAX_BANDS = 4
_ENOUGH_SHARE = 0.8
"""Bands are named until together they explain this much."""


def strongest_bands(weight: FloatArray, edges_hz: NDArray[np.float64]) -> tuple[Band, ...]:
    """Return up to four bands, neighbours merged, strongest first.

    `weight` has shape (n_bands,), non-negative, any unit; `edges_hz` has shape (n_bands, 2). Shares are of the sum over
    all bands, so they need not add up to one. An all-zero weight explains nothing and gives no band.
    """
    total = float(weight.sum())
    if not total > 0.0:
        return ()
    share = weight / total
    order = np.argsort(share)[::-1]
    needed = int(np.searchsorted(np.cumsum(share[order]), _ENOUGH_SHARE)) + 1
    chosen = np.sort(order[:needed])
    runs = np.split(chosen, np.flatnonzero(np.diff(chosen) > 1) + 1)
    bands = [
        Band(
            low_hz=round(float(edges_hz[run[0], 0]), 1),
            high_hz=round(float(edges_hz[run[-1], 1]), 1),
            share=round(float(share[run].sum()), 4),
        )
        for run in runs
    ]
    return tuple(sorted(bands, key=lambda band: band.share, reverse=True)[:MAX_BANDS])
