"""Windows as arithmetic: where each lies follows from its number, and no object per window exists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_SPLIT_BY_FILES_FROM = 10
"""With this many stretches whole ones are held out; with fewer the end of each."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Contiguous sound of one recording: frames [first_frame, end_frame)."""

    sound: int
    """Index of the recording in the corpus."""
    first_frame: int
    end_frame: int


class WindowIndex:
    """Numbers the windows of many stretches, `hop_frames` apart within each."""

    def __init__(self, stretches: Sequence[Stretch], *, window_frames: int, hop_frames: int) -> None:
        self.window_frames = window_frames
        self.hop_frames = hop_frames
        self._sounds = np.array([stretch.sound for stretch in stretches], np.int64)
        self._firsts = np.array([stretch.first_frame for stretch in stretches], np.int64)
        lengths = np.array([stretch.end_frame - stretch.first_frame for stretch in stretches], np.int64)
        counts = np.maximum(0, 1 + (lengths - window_frames) // hop_frames)
        self._ends = np.cumsum(counts)  # number of windows up to and with each stretch

    def __len__(self) -> int:
        """Return the number of windows."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def locate(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the sound and the first frame of each of the windows `numbers` (n,)."""
        stretch = np.searchsorted(self._ends, numbers, side="right")
        within = numbers - np.where(stretch > 0, self._ends[stretch - 1], 0)
        return self._sounds[stretch], self._firsts[stretch] + within * self.hop_frames


def hold_out(stretches: Sequence[Stretch], *, share: float, grid_frames: int) -> tuple[list[Stretch], list[Stretch]]:
    """Part stretches into those to train on and those held out; the two share no frame.

    Ten stretches or more: whole ones, evenly spread over the list. Fewer: the end of each, cut on the mel grid. The
    same list gives the same split, whatever the seed.
    """
    if len(stretches) >= _SPLIT_BY_FILES_FROM:
        n_held = max(1, round(share * len(stretches)))
        held = {(2 * i + 1) * len(stretches) // (2 * n_held) for i in range(n_held)}
        return (
            [stretch for i, stretch in enumerate(stretches) if i not in held],
            [stretch for i, stretch in enumerate(stretches) if i in held],
        )
    train, held_out = [], []
    for stretch in stretches:
        n_grid = int((1.0 - share) * (stretch.end_frame - stretch.first_frame) / grid_frames)
        cut_frame = stretch.first_frame + n_grid * grid_frames
        train.append(Stretch(stretch.sound, stretch.first_frame, cut_frame))
        held_out.append(Stretch(stretch.sound, cut_frame, stretch.end_frame))
    return train, held_out
