"""The questions asked of a window: what it is, how it sticks out, what it is like; each small and without memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from edgeasd.records import FloatArray
from edgeasd.scoring.novelty_memory import RunningQuantile, blocks, rows_for

LOUDEST_SHARE = 0.05
"""Share of a window's frames that count as its loudest."""
FALL_WEIGHT = 0.2
"""How much quieter than the past counts against louder."""
CONTRAST_DB = 2.0
"""Softens the division by the spread: bands steadier than this count alike."""
MEDIAN_S = 600.0
SILENT_S = 16.0
"""Nothing is said in the first seconds: there is too little past."""
CAUTIOUS_S = 60.0
"""Scores after that are lowered by a factor that fades over this time."""
CAUTION = 0.3


class Answer(NamedTuple):
    """How novel one window is."""

    score: float
    """About 1.4 for ordinary sound; 0 while too little past is known."""
    warmup: bool
    """True while too little past is known to judge."""
    reasons: tuple[FloatArray, ...] = ()
    """What was found strange, in dB, each (2 * n_bands,): of the means, then of the loudest frames."""

    @property
    def weight(self) -> FloatArray:
        """Return each mel band's share (n_bands,) of the squares of the reasons, which all weigh the same."""
        squares = [(reason * reason).reshape(2, -1).sum(axis=0) for reason in self.reasons]
        total: FloatArray = np.sum([part / part.sum() for part in squares if part.any()], axis=0, dtype=np.float32)
        return total / max(float(np.sum(total)), 1e-12)


def describe(log_mels: Sequence[FloatArray]) -> FloatArray:
    """Return (k, 2 * n_bands) numbers of k windows (n_bands, n_frames), dB: means, then means of the loudest frames."""
    n_windows, (n_bands, n_frames) = len(log_mels), log_mels[0].shape
    frames = np.empty((n_windows, n_bands, n_frames), np.float32)  # each sum runs along memory, in the same order
    np.stack(log_mels, out=frames)
    n_loudest = max(1, round(LOUDEST_SHARE * n_frames))
    numbers = np.empty((n_windows, 2, n_bands), np.float32)
    np.add.reduce(frames, axis=2, out=numbers[:, 0])
    frames.partition(n_frames - n_loudest, axis=2)
    np.add.reduce(frames[:, :, n_frames - n_loudest :], axis=2, out=numbers[:, 1])
    numbers[:, 0] /= n_frames
    numbers[:, 1] /= n_loudest
    return numbers.reshape(n_windows, 2 * n_bands)


class Spread(NamedTuple):
    """How loud each number was over the seconds before each of k windows, and how much that counts."""

    high: FloatArray
    """80 % quantile, (k, width)."""
    softening: FloatArray
    """Weight of a dB above it, (k, width): the less, the farther it lies above the median."""

    @classmethod
    def of(cls, past: FloatArray, n_first: int) -> Spread:
        """Measure `past` (k, n, width): the `n_first` lowest of the first, one more of each after it; 1 to n count."""
        ordered = past.transpose(0, 2, 1).copy()
        ordered.sort(axis=2)
        n_windows, _, n_rows = ordered.shape
        if n_first >= n_rows or n_windows == 1:
            n_each = max(1, min(n_rows, n_first))
            middle, high = _quantile(ordered, n_each, 0.5), _quantile(ordered, n_each, 0.8)
        else:
            counts = [max(1, min(n_rows, n_first + i)) for i in range(n_windows)]
            middle, high = (
                np.concatenate([_quantile(ordered[i : i + 1], n, share) for i, n in enumerate(counts)])
                for share in (0.5, 0.8)
            )
        softening = high - middle
        softening += np.float32(CONTRAST_DB)
        return cls(high, np.divide(np.float32(CONTRAST_DB), softening, out=softening))

    def excess(self, vectors: FloatArray, future: FloatArray | None = None) -> FloatArray:
        """Return how far `vectors` (k, width) exceed the spread, and the loudest of `future` (k, n, width).

        In dB, softened.
        """
        reference = self.high if future is None else np.maximum(self.high, future.max(axis=1))
        excess: FloatArray = np.maximum(np.float32(0.0), vectors - reference) * self.softening
        return excess


def _quantile(ordered: FloatArray, n_rows: int, quantile: float) -> FloatArray:
    """Return (k, width) of `ordered` (k, width, n), of which the first `n_rows` count."""
    position = quantile * (n_rows - 1)
    low = int(position)
    at, then = ordered[:, :, low], ordered[:, :, min(low + 1, n_rows - 1)]
    return at + np.float32(position - low) * (then - at)


class Likeness(NamedTuple):
    """How unlike rows of the past k windows are, as sums of squares (k, n), where louder counts more than quieter."""

    whole2: FloatArray
    """Over all numbers."""
    loudest2: FloatArray
    """Over the loudest frames only."""
    even2: FloatArray
    """Over all numbers when quieter counts as much as louder."""


def likeness(vectors: FloatArray, *tables: FloatArray) -> Likeness:
    """Compare `vectors` (k, width) with the rows of tables, each (n, width) or (k, n, width)."""
    found = np.empty((3, len(vectors), sum(table.shape[-2] for table in tables)), np.float32)
    first = 0
    for rows in tables:
        for block in blocks(len(vectors), rows):
            _compare(vectors[block], rows_for(block, rows), found[:, block, first : first + rows.shape[-2]])
        first += rows.shape[-2]
    return Likeness(*found)


def _compare(vectors: FloatArray, rows: FloatArray, found: FloatArray) -> None:
    differences = vectors[:, None, :] - rows
    halves = differences.reshape(*differences.shape[:2], 2, -1)
    even2 = np.vecdot(halves, halves)
    np.maximum(differences, np.float32(0.0), out=differences)
    sided2 = np.vecdot(halves, halves)
    sided2 *= np.float32(1.0 - FALL_WEIGHT**2)
    sided2 += np.float32(FALL_WEIGHT**2) * even2
    np.add(sided2[..., 0], sided2[..., 1], out=found[0])
    found[1] = sided2[..., 1]
    np.add(even2[..., 0], even2[..., 1], out=found[2])


class Scale:
    """Turns novelty into scores: smoothed, a little evened out between sources, held back while the past is short."""

    def __init__(self, *, hop_s: float, evening: float) -> None:
        """Scores are divided by the running median to the power of `evening`."""
        self._hop_s = hop_s
        self._evening = evening
        self._median = RunningQuantile(max(1, round(MEDIAN_S / hop_s))) if evening else None
        self._last: float | None = None
        self._n_answers = 0

    def nothing(self) -> Answer:
        """Answer for a window of which nothing can be said."""
        self._n_answers += 1
        return Answer(0.0, warmup=True)

    def answer(self, novelty: float, *reasons: FloatArray) -> Answer:
        """Turn the novelty of the next window into an answer, smoothed over this window and the one before."""
        smooth = novelty if self._last is None else (2.0 * novelty + self._last) / 3.0
        self._last = novelty
        score = smooth if self._median is None else smooth / self._usual(smooth, self._median) ** self._evening
        heard_s = self._n_answers * self._hop_s
        if heard_s < SILENT_S:
            return self.nothing()
        self._n_answers += 1
        caution = 1.0 + CAUTION * max(0.0, 1.0 - (heard_s - SILENT_S) / CAUTIOUS_S)
        return Answer(score / caution, warmup=False, reasons=reasons)

    @staticmethod
    def _usual(smooth: float, median: RunningQuantile) -> float:
        """Return the median before this answer, which joins it."""
        usual = median.value() if len(median) else smooth
        median.add(smooth)
        return usual
