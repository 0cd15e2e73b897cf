"""How unlike its own past a second of sound is: causal, adaptive, without training, bounded in memory.

Two answers. The prompt one comes at once. The confirmed one comes `LOOK_AHEAD_S` later, when it is known whether the
sound ended or was the onset of something that stays; nearly all false alarms of what answers at once are such onsets.

A window is described by the mean and the loudest frames of each mel band, in dB. Three questions are asked of it:
- contrast: how far does it stick out of its bands' spread over the last 20 s and, confirmed, of what follows?
- rise: how far is each band above what it was throughout some 6 s, before (prompt) or on either side (confirmed: what
  is left once everything that lasts longer is taken away), and was there ever such a rise?
- likeness (prompt only): how far is it from everything heard before, where louder counts more than quieter?
The score is the geometric mean of the answers, smoothed over two windows, over the root of its own running median.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from edgeasd.features.mel import MelSpec
from edgeasd.records import FloatArray
from edgeasd.scoring.novelty_memory import MOST_AT_ONCE, Known, Memory, Track, square_distances
from edgeasd.scoring.novelty_parts import (
    Answer,
    Likeness,
    Scale,
    Spread,
    describe,
    likeness,
)
from edgeasd.scoring.novelty_state import StateChange, StateWatch

NOVELTY_SPEC = MelSpec(n_mels=32, floor=1e-8, floor_mode="add")
"""The front end the constants below were found with. The floor lies under the noise of 16-bit sound."""

LOOK_AHEAD_S = 6.0
"""A confirmed answer comes this long after the window's own end."""

_CONTRAST_PAST_S = (21.5, 2.0)
"""The spread of a band is that of windows which began this long ago, oldest to newest."""
_CONTRAST_FUTURE_S = (4.0, 6.0)
"""What is as loud this long after a window is no event of that window."""
_PAST_S = (30.5, 2.0)
"""Likeness and prompt rises are compared with these windows, besides the memory."""
_GUARD_S = 4.0
"""Confirmed rises are compared with those of windows at least this much older: an event must not explain itself."""
_MEMORY_AFTER_S = 10.0
"""A window is remembered once it is this old."""
_MEMORY_VECTORS = 512
_MEMORY_RADIUS_DB = 2.5
_PROMPT_EVENING = 0.0
_CONFIRMED_EVENING = 0.2
"""How far scores of lively and calm sources are brought together; more costs more than it brings."""
_FAR_DB = 1e9
"""What stands in the tables for the time before the first window: like nothing that is heard."""


class NoveltyStep(NamedTuple):
    """Everything said on the arrival of one window."""

    prompt: Answer
    confirmed: Answer | None
    """The second look at the oldest window that waits for one; windows are answered in the order they came."""
    state: StateChange | None
    """Set when what is heard has turned into a lasting state unlike everything before."""


class Novelty:
    """The untrained judge of one source. Bounded: under half a megabyte, whatever it hears and for however long."""

    def __init__(self, *, n_bands: int = NOVELTY_SPEC.n_rows, hop_s: float = 0.5) -> None:
        self._hop_s = hop_s
        self.look_ahead = self._windows(LOOK_AHEAD_S)
        """Windows between one and its second look."""
        spans_s = (_CONTRAST_PAST_S, _CONTRAST_FUTURE_S, _PAST_S, (_PAST_S[0], _GUARD_S))
        spans = [(self._windows(first_s), self._windows(last_s)) for first_s, last_s in spans_s]
        self._contrast_past, self._contrast_future, self._past, self._guarded = spans
        self._memory_after = self._windows(_MEMORY_AFTER_S)
        longest, self._width = self._past[0] + self.look_ahead + 2, 2 * n_bands
        self._vectors = Track(longest, self._width, before=_FAR_DB)
        self._floors = Track(self.look_ahead + 2, self._width)  # quietest of each number over look_ahead + 1 windows
        self._rises = Track(longest, self._width, before=_FAR_DB)  # above that floor
        self._peaks = Track(longest, self._width, before=_FAR_DB)  # above the floors on either side
        self._highs, self._softenings = (Track(self.look_ahead + 2, self._width) for _ in Spread._fields)
        self._known_sounds = Memory(_MEMORY_VECTORS, self._width, radius_db=_MEMORY_RADIUS_DB)
        self._known_peaks = Memory(_MEMORY_VECTORS, self._width, radius_db=_MEMORY_RADIUS_DB)
        self._prompt_scale = Scale(hop_s=hop_s, evening=_PROMPT_EVENING)
        self._confirmed_scale = Scale(hop_s=hop_s, evening=_CONFIRMED_EVENING)
        self._states = StateWatch(hop_s)
        self._n_heard = 0
        self._n_confirmed = 0
        self._n_missing = 0

    @property
    def n_waiting(self) -> int:
        """Return how many windows still wait for their second look."""
        return self._n_heard - self._n_confirmed

    def push(self, log_mel: FloatArray) -> NoveltyStep:
        """Hear the next window: log mel in dB, shape (n_frames, n_bands), finite."""
        return self.push_many([log_mel.T])[0]

    def push_many(self, log_mels: Sequence[FloatArray]) -> list[NoveltyStep]:
        """Hear the next windows, each (n_bands, n_frames); what is said does not depend on how many come at once."""
        steps: list[NoveltyStep] = []
        for first in range(0, len(log_mels), MOST_AT_ONCE):
            steps += self._hear(describe(log_mels[first : first + MOST_AT_ONCE]))
        return steps

    def skip(self, n_windows: int) -> list[Answer]:
        """Take note that `n_windows` are missing (a gap, a faulty input) and return the second looks this settles.

        The past is kept. A short hole is bridged: what comes after it still tells how the sound before it went on.
        Once a hole is longer than half the look-ahead, the waiting windows are judged by what is known.
        """
        self._n_missing += n_windows
        return self.flush() if 2 * self._n_missing > self.look_ahead else []

    def flush(self) -> list[Answer]:
        """Return the second look at every window that waits for one, by what little is known of what followed."""
        return [answer for _ in range(self.n_waiting) for answer in self._confirm(1)]

    def _windows(self, seconds: float) -> int:
        return max(1, round(seconds / self._hop_s))

    def _hear(self, vectors: FloatArray) -> list[NoveltyStep]:
        """Hear up to `MOST_AT_ONCE` windows by what describes them."""
        first, n_new = self._n_heard, len(vectors)
        self._n_missing = 0
        self._n_heard += n_new
        self._take_in(first, vectors)
        prompt, distances_db = self._prompt(first, vectors)
        n_due = max(0, self.n_waiting - self.look_ahead)
        confirmed = [*[None] * (n_new - n_due), *self._confirm(n_due)]
        states = map(self._states.step, distances_db)
        return [NoveltyStep(*said) for said in zip(prompt, confirmed, states, strict=True)]

    def _ago(self, track: Track, first: int, stop: int, span: tuple[int, int]) -> FloatArray:
        """Return, for each row in [first, stop), those that lie between the longer and the shorter way before it."""
        return track.spans(first - span[0], stop - span[0], length=span[0] - span[1] + 1)

    def _take_in(self, first: int, vectors: FloatArray) -> None:
        stop = first + len(vectors)
        self._vectors.append(vectors)
        floors = self._ago(self._vectors, first, stop, (self.look_ahead, 0)).min(axis=1)
        self._floors.append(floors)
        self._rises.append(vectors - floors)
        past = self._ago(self._vectors, first, stop, self._contrast_past)
        spread = Spread.of(past, first + 1 - self._contrast_past[1])
        self._highs.append(spread.high)
        self._softenings.append(spread.softening)

    def _spread(self, first: int, stop: int) -> Spread:
        return Spread(self._highs.rows(first, stop), self._softenings.rows(first, stop))

    def _prompt(self, first: int, vectors: FloatArray) -> tuple[list[Answer], list[float]]:
        """Return the answers at once, and the distances in dB to everything older than the memory's delay."""
        stop = first + len(vectors)
        past = self._ago(self._vectors, first, stop, self._past)
        old = self._vectors.rows(max(0, first - self._memory_after), max(0, stop - self._memory_after))
        known = self._known_sounds.learn(old, n_moments=len(vectors))
        alike = likeness(vectors, past, known.rows)
        known.blot_out(*(table[:, past.shape[1] :] for table in alike))
        rises, past_rises = self._rises.rows(first, stop), self._ago(self._rises, first, stop, self._past)
        rises2 = square_distances(rises, past_rises)
        excess = self._spread(first, stop).excess(vectors)
        strange, risen = _above(vectors, alike.whole2, past, known), _above(rises, rises2, past_rises)
        squares = (_least(alike.whole2), _least(alike.loudest2), _least(rises2), np.vecdot(excess, excess).tolist())
        widths = (self._width, self._width // 2, self._width, self._width)
        n_mute = self._past[1] - first  # nothing lies far enough back
        prompt: list[Answer] = []
        for i, sums in enumerate(zip(*squares, strict=True)):
            if i < n_mute:
                prompt.append(self._prompt_scale.nothing())
                continue
            novelty = math.prod(1.0 + math.sqrt(total / width) for total, width in zip(sums, widths, strict=True))
            prompt.append(self._prompt_scale.answer(novelty**0.25, strange[i], risen[i], excess[i]))
        return prompt, self._older_db(first, alike)

    def _older_db(self, first: int, alike: Likeness) -> list[float]:
        """Return the distances in dB to all that is older than the memory's delay; 0 where nothing is."""
        n_past, n_older = (self._past[0] - newest + 1 for newest in (self._past[1], self._memory_after))
        alike.even2[:, n_older:n_past] = np.inf
        distances_db = [math.sqrt(square / self._width) for square in _least(alike.even2)]
        n_mute = min(len(distances_db), max(0, self._memory_after - first))
        return [0.0] * n_mute + distances_db[n_mute:]

    def _confirm(self, n_due: int) -> list[Answer]:
        """Take the second look at the next windows: all that is to follow them is there, or only one is asked for."""
        if not n_due:
            return []
        first, stop = self._n_confirmed, self._n_confirmed + n_due
        self._n_confirmed = stop
        ahead = min(self.look_ahead, self._n_heard - stop)
        vectors = self._vectors.rows(first, stop)
        peaks = vectors - self._floors.spans(first, stop, length=ahead + 1).max(axis=1)
        self._peaks.append(peaks)
        squares, risen = self._nearest_peaks(first, peaks)
        soon, late = self._contrast_future
        n_future = min(late, ahead) - soon + 1
        future = self._vectors.spans(first + soon, stop + soon, length=n_future) if n_future > 0 else None
        excess = self._spread(first, stop).excess(vectors, future)
        answers: list[Answer] = []
        for i, sums in enumerate(zip(squares, np.vecdot(excess, excess).tolist(), strict=True)):
            if first + i < self._guarded[1]:
                answers.append(self._confirmed_scale.nothing())
                continue
            novelty = math.prod(1.0 + math.sqrt(total / self._width) for total in sums)
            answers.append(self._confirmed_scale.answer(math.sqrt(novelty), risen[i], excess[i]))
        return answers

    def _nearest_peaks(self, first: int, peaks: FloatArray) -> tuple[list[float], FloatArray]:
        """Return the square distances to the peaks most like these, and by how much these are higher, (k, width)."""
        stop, guard = first + len(peaks), self._guarded[1]
        old = self._peaks.rows(max(0, first - guard), max(0, stop - guard))
        known = self._known_peaks.learn(old, n_moments=len(peaks))
        past = self._ago(self._peaks, first, stop, self._guarded)
        squared = square_distances(peaks, past, known.rows)
        known.blot_out(squared[:, past.shape[1] :])
        return _least(squared), _above(peaks, squared, past, known)


def _least(squared: FloatArray) -> list[float]:
    """Return the least of each row of (k, n)."""
    smallest: list[float] = np.minimum.reduce(squared, axis=1).tolist()
    return smallest


def _above(vectors: FloatArray, squared: FloatArray, past: FloatArray, known: Known | None = None) -> FloatArray:
    """Return by how much `vectors` (k, width) exceed what is most like them, of `past` (k, n, width) and what is known.

    `squared` (k, n and more) tells how unlike each row is.
    """
    index, n_past = squared.argmin(axis=1), past.shape[1]
    each = np.arange(len(index))
    if known is None or index.max() < n_past:
        likest = past[each, index]
    else:
        by_heart = index >= n_past
        likest = past[each, np.where(by_heart, 0, index)]
        likest[by_heart] = known.rows[index[by_heart] - n_past]
    np.subtract(vectors, likest, out=likest)
    above: FloatArray = np.maximum(likest, np.float32(0.0), out=likest)
    return above
