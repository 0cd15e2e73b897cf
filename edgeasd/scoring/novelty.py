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
from collections import deque
from dataclasses import dataclass

import numpy as np

from edgeasd.features.mel import MelSpec
from edgeasd.records import FloatArray
from edgeasd.scoring.novelty_memory import Memory, Track
from edgeasd.scoring.novelty_parts import Answer, Scale, Spread, describe, likeness, nearest, rms
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


@dataclass(frozen=True, slots=True)
class NoveltyStep:
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
        longest, width = self._windows(_PAST_S[0]) + self.look_ahead + 2, 2 * n_bands
        self._vectors = Track(longest, width)
        self._floors = Track(self.look_ahead + 2, width)  # quietest of each number over look_ahead + 1 windows
        self._rises = Track(longest, width)  # above that floor
        self._peaks = Track(longest, width)  # above the floors on either side
        self._spreads: deque[Spread | None] = deque(maxlen=self.look_ahead + 1)
        self._known_sounds = Memory(_MEMORY_VECTORS, width, radius_db=_MEMORY_RADIUS_DB)
        self._known_peaks = Memory(_MEMORY_VECTORS, width, radius_db=_MEMORY_RADIUS_DB)
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
        self._n_missing = 0
        number = self._n_heard
        self._n_heard += 1
        self._take_in(number, describe(log_mel))
        prompt, distance_db = self._prompt(number)
        confirmed = self._confirm_next() if self.n_waiting > self.look_ahead else None
        return NoveltyStep(prompt, confirmed, self._states.step(distance_db))

    def skip(self, n_windows: int) -> list[Answer]:
        """Take note that `n_windows` are missing (a gap, a faulty input) and return the second looks this settles.

        The past is kept. A short hole is bridged: what comes after it still tells how the sound before it went on.
        Once a hole is longer than half the look-ahead, the waiting windows are judged by what is known.
        """
        self._n_missing += n_windows
        return self.flush() if 2 * self._n_missing > self.look_ahead else []

    def flush(self) -> list[Answer]:
        """Return the second look at every window that waits for one, by what little is known of what followed."""
        return [self._confirm_next() for _ in range(self.n_waiting)]

    def _windows(self, seconds: float) -> int:
        return max(1, round(seconds / self._hop_s))

    def _ago(self, track: Track, number: int, span_s: tuple[float, float]) -> FloatArray:
        """Return the rows that lie between the longer and the shorter time before row `number`."""
        return track.rows(number - self._windows(span_s[0]), number - self._windows(span_s[1]) + 1)

    def _take_in(self, number: int, vector: FloatArray) -> None:
        old = number - self._windows(_MEMORY_AFTER_S)
        if old >= 0:
            self._known_sounds.learn(self._vectors.row(old))
        self._vectors.append(vector)
        floor = self._vectors.rows(number - self.look_ahead, number + 1).min(axis=0)
        self._floors.append(floor)
        self._rises.append(vector - floor)
        past = self._ago(self._vectors, number, _CONTRAST_PAST_S)
        self._spreads.append(Spread.of(past) if len(past) else None)

    def _prompt(self, number: int) -> tuple[Answer, float]:
        """Return the answer at once, and the distance in dB to everything older than the memory's delay."""
        past = self._ago(self._vectors, number, _PAST_S)
        spread, vector = self._spreads[-1], self._vectors.row(number)
        if spread is None or not len(past):
            return self._prompt_scale.nothing(), 0.0
        alike = [likeness(vector, rows) for rows in (past, self._known_sounds.rows) if len(rows)]
        most = min(alike, key=lambda one: one.whole_db)
        excess = spread.excess(vector, past[:0])
        rise = nearest(self._rises.row(number), self._ago(self._rises, number, _PAST_S))
        assert rise is not None
        loudest_db = min(one.loudest_db for one in alike)
        answers = (most.whole_db, loudest_db, rise.distance_db, rms(excess))
        novelty = math.prod(1.0 + answer for answer in answers) ** 0.25
        reasons = (np.maximum(most.difference, 0.0), np.maximum(rise.difference, 0.0), excess)
        older = nearest(vector, self._ago(self._vectors, number, (_PAST_S[0], _MEMORY_AFTER_S)))
        distance_db = min(alike[-1].distance_db, older.distance_db if older else np.inf) if len(alike) > 1 else 0.0
        return self._prompt_scale.answer(novelty, *reasons), distance_db

    def _confirm_next(self) -> Answer:
        number, newest = self._n_confirmed, self._n_heard - 1
        self._n_confirmed += 1
        vector = self._vectors.row(number)
        peak = vector - self._floors.rows(number, number + self.look_ahead + 1).max(axis=0)
        self._peaks.append(peak)
        guard = number - self._windows(_GUARD_S)
        if guard >= 0:
            self._known_peaks.learn(self._peaks.row(guard))
        spread = self._spreads[number - newest - 1]
        likest = nearest(peak, self._ago(self._peaks, number, (_PAST_S[0], _GUARD_S)), self._known_peaks.rows)
        if spread is None or likest is None:
            return self._confirmed_scale.nothing()
        first, last = (number + self._windows(seconds) for seconds in _CONTRAST_FUTURE_S)
        excess = spread.excess(vector, self._vectors.rows(first, last + 1))
        novelty = ((1.0 + likest.distance_db) * (1.0 + rms(excess))) ** 0.5
        return self._confirmed_scale.answer(novelty, np.maximum(likest.difference, 0.0), excess)
