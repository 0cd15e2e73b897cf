"""Spectrograms and reconstructions in eight bits, in blocks that the page unpacks when one of them is looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeasd_train.explore.gather import Picture

BLOCK_WINDOWS = 128
_SHARE_CUT = 0.0005
"""So much of the darkest and of the brightest may run out of the scale."""
_SHARE_DARK = 0.02
_MAX_RANGE_DB = 85.0
"""So much is drawn black, and what is farther below the brightest: silence would take up most of the colours."""
_STEP_DB = 0.75
"""Finer is not seen, and packs worse."""
_MAX_STEPS = 255


@dataclass(frozen=True, slots=True)
class PackedPictures:
    """All pictures on one scale."""

    blocks: tuple[NDArray[np.uint8], ...]
    """Each (n_kinds, n, n_frames, n_rows), n up to `BLOCK_WINDOWS`: log mel, then the reconstruction if there is one;
    as differences from frame to frame, modulo 256.
    """
    number: NDArray[np.int64]
    """Shape (n_windows,): which picture belongs to each window, counted over the blocks; -1 has none."""
    low_db: float
    """What 0 stands for."""
    step_db: float
    dark_db: float
    """What is drawn black."""
    high_db: float
    """What is drawn brightest."""


def pack_pictures(pictures: Sequence[Picture | None]) -> PackedPictures:
    """Quantise pictures to a common scale and put them into blocks."""
    there = [picture for picture in pictures if picture is not None]
    number = np.cumsum([picture is not None for picture in pictures]) - 1
    number[[picture is None for picture in pictures]] = -1
    low_db, dark_db, high_db = _range(there)
    step_db = max(_STEP_DB, (high_db - low_db) / _MAX_STEPS)
    blocks = [
        np.stack([_quantised(one, low_db=low_db, step_db=step_db) for one in there[first : first + BLOCK_WINDOWS]], 1)
        for first in range(0, len(there), BLOCK_WINDOWS)
    ]
    return PackedPictures(tuple(blocks), number, low_db, step_db, dark_db, high_db)


def _range(pictures: Sequence[Picture]) -> tuple[float, float, float]:
    """Return the lowest, the darkest and the highest level of the scale, dB, from an even sample of the pictures."""
    sample = np.stack([picture.log_mel for picture in pictures[:: -(-len(pictures) // 500)]]).astype(np.float32)
    low_db, dark_db, high_db = np.quantile(sample, (_SHARE_CUT, _SHARE_DARK, 1.0 - _SHARE_CUT))
    dark_db = max(dark_db, high_db - _MAX_RANGE_DB)
    return float(low_db), float(dark_db), max(float(high_db), float(dark_db) + 1.0)


def _quantised(picture: Picture, *, low_db: float, step_db: float) -> NDArray[np.uint8]:
    kinds = [picture.log_mel] if picture.expected is None else [picture.log_mel, picture.expected]
    levels = np.rint((np.stack(kinds).astype(np.float32) - low_db) / step_db)  # (n_kinds, n_frames, n_rows)
    pixels: NDArray[np.uint8] = np.clip(np.nan_to_num(levels), 0, _MAX_STEPS).astype(np.uint8)
    pixels[:, 1:] -= pixels[:, :-1].copy()  # wraps around, and the page adds it up again
    return pixels
