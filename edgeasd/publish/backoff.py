"""Waiting longer each time, and complaining less."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable

_REPEAT_AFTER_S = 300.0
_TEXTS = 32


class Backoff:
    """Gives delays that double from `min_s` to `max_s`, each shortened by up to half so that nodes spread out."""

    def __init__(self, *, min_s: float, max_s: float, uniform: Callable[[], float] = random.random) -> None:
        self._min_s = min_s
        self._max_s = max_s
        self._uniform = uniform
        self._delay_s = min_s

    def next_s(self) -> float:
        """Return the delay to wait now."""
        delay_s = self._delay_s
        self._delay_s = min(2.0 * delay_s, self._max_s)
        return delay_s * (0.5 + 0.5 * self._uniform())

    def reset(self) -> None:
        """Begin with the shortest delay again."""
        self._delay_s = self._min_s

    def slow_down(self) -> None:
        """Go to the longest delay at once: trying soon cannot help."""
        self._delay_s = self._max_s


class Complaints:
    """Logs a warning at once and its repetitions once in five minutes, with their number; knows the last 32 texts."""

    def __init__(self, log: logging.Logger, *, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._monotonic_s = monotonic_s
        self._said: dict[str, tuple[float, int]] = {}  # text -> when last logged, repetitions since

    def warn(self, text: str) -> None:
        """Log `text` unless it was logged lately."""
        now_s = self._monotonic_s()
        said_s, repeats = self._said.pop(text, (-_REPEAT_AFTER_S, 0))
        if now_s - said_s < _REPEAT_AFTER_S:
            self._said[text] = (said_s, repeats + 1)
            return
        self._log.warning("%s%s", text, f" ({repeats} more times since)" if repeats else "")
        self._said[text] = (now_s, 0)
        if len(self._said) > _TEXTS:
            del self._said[next(iter(self._said))]
