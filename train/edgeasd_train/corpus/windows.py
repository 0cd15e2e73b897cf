"""Windows as arithmetic: where each lies follows from its number, and no object per window exists."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import overload

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


@dataclass(frozen=True, slots=True, eq=False)
class Stretches(Sequence[Stretch]):
    """Stretches as columns (n,); a Stretch is made when it is asked for."""

    sounds: NDArray[np.int64]
    first_frames: NDArray[np.int64]
    end_frames: NDArray[np.int64]

    @staticmethod
    def of(stretches: Iterable[Stretch]) -> Stretches:
        """Return the columns of some stretches."""
        rows = [(stretch.sound, stretch.first_frame, stretch.end_frame) for stretch in stretches]
        return Stretches(*np.array(rows, np.int64).reshape(-1, 3).T.copy())

    def __len__(self) -> int:
        """Return the number of stretches."""
        return len(self.sounds)

    @overload
    def __getitem__(self, index: int) -> Stretch: ...
    @overload
    def __getitem__(self, index: slice) -> Stretches: ...
    def __getitem__(self, index: int | slice) -> Stretch | Stretches:
        """Return one stretch, or those of a slice."""
        if isinstance(index, slice):
            return Stretches(self.sounds[index], self.first_frames[index], self.end_frames[index])
        return Stretch(int(self.sounds[index]), int(self.first_frames[index]), int(self.end_frames[index]))

    @property
    def n_frames(self) -> NDArray[np.int64]:
        """Return the length (n,) of each."""
        return self.end_frames - self.first_frames

    def take(self, which: NDArray[np.int64] | NDArray[np.bool_]) -> Stretches:
        """Return those of these numbers, or of this mask."""
        return Stretches(self.sounds[which], self.first_frames[which], self.end_frames[which])

    def without(self, spans: Stretches, *, grid_frames: int) -> Stretches:
        """Return what is left when `spans` are cut out, in order; what follows a span begins on the grid."""
        touched = np.isin(self.sounds, spans.sounds)
        if not touched.any():
            return self
        by_sound: dict[int, list[Stretch]] = {}
        for span in spans:
            by_sound.setdefault(span.sound, []).append(span)
        parts = [part for stretch in self.take(touched) for part in _parts(stretch, by_sound, grid_frames)]
        return joined(self.take(~touched), Stretches.of(parts))


def joined(one: Stretches, other: Stretches) -> Stretches:
    """Return the stretches of both, in the order of their sounds."""
    both = Stretches(
        np.concatenate([one.sounds, other.sounds]),
        np.concatenate([one.first_frames, other.first_frames]),
        np.concatenate([one.end_frames, other.end_frames]),
    )
    return both.take(np.lexsort((both.first_frames, both.sounds)))


def _parts(stretch: Stretch, by_sound: dict[int, list[Stretch]], grid_frames: int) -> Iterable[Stretch]:
    first_frame = stretch.first_frame
    for span in sorted(by_sound[stretch.sound], key=lambda span: span.first_frame):
        if min(span.first_frame, stretch.end_frame) > first_frame:
            yield Stretch(stretch.sound, first_frame, min(span.first_frame, stretch.end_frame))
        first_frame = max(first_frame, -(-span.end_frame // grid_frames) * grid_frames)
    if first_frame < stretch.end_frame:
        yield Stretch(stretch.sound, first_frame, stretch.end_frame)


class WindowIndex:
    """Numbers the windows of many stretches, `hop_frames` apart within each."""

    def __init__(self, stretches: Stretches, *, window_frames: int, hop_frames: int) -> None:
        self.window_frames = window_frames
        self.hop_frames = hop_frames
        self._stretches = stretches
        self._sounds = stretches.sounds
        self._firsts = stretches.first_frames
        counts = np.maximum(0, 1 + (stretches.n_frames - window_frames) // hop_frames)
        self.n_disjoint = int((stretches.n_frames // window_frames).sum())
        """How many windows without overlap there would be."""
        self._ends = np.cumsum(counts)  # number of windows up to and with each stretch

    def __len__(self) -> int:
        """Return the number of windows."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def of_length(self, window_frames: int) -> WindowIndex:
        """Return windows of another length of the same sound."""
        return WindowIndex(self._stretches, window_frames=window_frames, hop_frames=self.hop_frames)

    def locate(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the sound and the first frame of each of the windows `numbers` (n,)."""
        stretch = np.searchsorted(self._ends, numbers, side="right")
        within = numbers - np.where(stretch > 0, self._ends[stretch - 1], 0)
        return self._sounds[stretch], self._firsts[stretch] + within * self.hop_frames


def hold_out(stretches: Stretches, *, share: float, grid_frames: int) -> tuple[Stretches, Stretches]:
    """Part stretches into those to train on and those held out; the two share no frame.

    Ten stretches or more: whole ones, evenly spread over the list. Fewer: the end of each, cut on the mel grid. The
    same list gives the same split, whatever the seed.
    """
    if len(stretches) >= _SPLIT_BY_FILES_FROM:
        n_held = max(1, round(share * len(stretches)))
        held = np.zeros(len(stretches), np.bool_)
        held[(2 * np.arange(n_held) + 1) * len(stretches) // (2 * n_held)] = True
        return stretches.take(~held), stretches.take(held)
    n_grid = ((1.0 - share) * stretches.n_frames / grid_frames).astype(np.int64)
    cut_frames = stretches.first_frames + n_grid * grid_frames
    return (
        Stretches(stretches.sounds, stretches.first_frames, cut_frames),
        Stretches(stretches.sounds, cut_frames, stretches.end_frames),
    )
