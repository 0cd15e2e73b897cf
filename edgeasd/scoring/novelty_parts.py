"""The questions asked of a window: what it is, how it sticks out, what it is like; each small and without memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from edgeasd.records import FloatArray
from edgeasd.scoring.novelty_memory import RunningQuantile, mean_squares

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


@dataclass(frozen=True, slots=True)
class Answer:
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


def describe(log_mel: FloatArray) -> FloatArray:
    """Return (2 * n_bands,) numbers of one window (n_frames, n_bands): means, then means of the loudest frames, dB."""
    n_frames = len(log_mel)
    n_loudest = max(1, round(LOUDEST_SHARE * n_frames))
    loudest = np.partition(log_mel, n_frames - n_loudest, axis=0)[n_frames - n_loudest :]
    return np.concatenate((log_mel.sum(axis=0) / n_frames, loudest.sum(axis=0) / n_loudest), dtype=np.float32)


class Spread(NamedTuple):
    """Median and 80 % quantile of each number over the seconds before a window."""

    middle: FloatArray
    high: FloatArray

    @classmethod
    def of(cls, past: FloatArray) -> Spread:
        """Measure `past` (k, width), k at least 1."""
        ordered = np.sort(past.T, axis=1)
        return cls(_quantile(ordered, 0.5), _quantile(ordered, 0.8))

    def excess(self, vector: FloatArray, future: FloatArray) -> FloatArray:
        """Return how far `vector` exceeds the spread, and the loudest of `future` (k, width), in softened dB."""
        reference = np.maximum(self.high, future.max(axis=0)) if len(future) else self.high
        softening = np.float32(CONTRAST_DB) / (self.high - self.middle + np.float32(CONTRAST_DB))
        excess: FloatArray = np.maximum(np.float32(0.0), vector - reference) * softening
        return excess


def _quantile(ordered: FloatArray, quantile: float) -> FloatArray:
    position = quantile * (ordered.shape[1] - 1)
    low = int(position)
    high = min(low + 1, ordered.shape[1] - 1)
    return ordered[:, low] + np.float32(position - low) * (ordered[:, high] - ordered[:, low])


class Nearest(NamedTuple):
    """The row most like a vector."""

    distance_db: float
    """Root mean square."""
    difference: FloatArray
    """The vector less that row, (width,)."""


def nearest(vector: FloatArray, *tables: FloatArray) -> Nearest | None:
    """Find the row most like `vector` in tables (k, width), some of which may be empty."""
    best: Nearest | None = None
    for rows in tables:
        if not len(rows):
            continue
        differences = vector - rows
        squared = mean_squares(differences)
        index = int(squared.argmin())
        distance_db = math.sqrt(float(squared[index]))
        if best is None or distance_db < best.distance_db:
            best = Nearest(distance_db, differences[index])
    return best


class Likeness(NamedTuple):
    """How unlike a vector is all of the past, where louder counts more than quieter."""

    whole_db: float
    """To the row most like it, over all numbers."""
    loudest_db: float
    """To the row most like it, over the loudest frames only."""
    distance_db: float
    """To the row most like it when quieter counts as much as louder."""
    difference: FloatArray
    """The vector less the row most like it, (width,)."""


def likeness(vector: FloatArray, rows: FloatArray) -> Likeness:
    """Compare `vector` with `rows` (k, width), k at least 1."""
    differences = vector - rows
    both2 = _mean_squares_of_halves(differences)
    rises2 = _mean_squares_of_halves(np.maximum(differences, np.float32(0.0)))
    sided2 = np.float32(FALL_WEIGHT**2) * both2 + np.float32(1.0 - FALL_WEIGHT**2) * rises2
    whole2 = sided2.sum(axis=1)
    index = int(whole2.argmin())
    return Likeness(
        whole_db=math.sqrt(float(whole2[index]) / 2),
        loudest_db=math.sqrt(float(sided2[:, 1].min())),
        distance_db=math.sqrt(float(both2.sum(axis=1).min()) / 2),
        difference=differences[index],
    )


def _mean_squares_of_halves(differences: FloatArray) -> FloatArray:
    halves = differences.reshape(len(differences), 2, -1)
    squares: FloatArray = np.einsum("kij,kij->ki", halves, halves)
    return np.divide(squares, np.float32(halves.shape[2]), out=squares)


def rms(numbers: FloatArray) -> float:
    """Return the root mean square of (n,)."""
    return math.sqrt(float(numbers @ numbers) / len(numbers))


class Scale:
    """Turns novelty into scores: smoothed, a little evened out between sources, held back while the past is short."""

    def __init__(self, *, hop_s: float, evening: float) -> None:
        """Scores are divided by the running median to the power of `evening`."""
        self._hop_s = hop_s
        self._evening = evening
        self._median = RunningQuantile(max(1, round(MEDIAN_S / hop_s)))
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
        usual = self._median.value() if len(self._median) else smooth
        self._median.add(smooth)
        heard_s = self._n_answers * self._hop_s
        if heard_s < SILENT_S:
            return self.nothing()
        self._n_answers += 1
        caution = 1.0 + CAUTION * max(0.0, 1.0 - (heard_s - SILENT_S) / CAUTIOUS_S)
        return Answer(smooth / usual**self._evening / caution, warmup=False, reasons=reasons)
