"""From frame index to time: the only place where audio positions become nanoseconds.

A source counts frames; a steady clock of the host stamps blocks on arrival; UTC is read once per conversion, so that a
stepped wall clock moves stamps, never positions. The steady clock goes on while the machine is suspended: the time that
nobody heard then is a gap like any other, and frame indices keep their place in time.
"""

from __future__ import annotations

import time
from collections.abc import Callable

NS_PER_S = 1_000_000_000

_MAX_DRIFT = 500e-6
"""Clocks of sound cards are not further off than this: what comes later still was held up on its way."""

_READINGS = 5
_SAME_MOMENT_NS = 1_000_000

_STEADY = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def steady_ns() -> int:
    """Return nanoseconds that no change of the wall clock moves, and that go on while the machine is suspended."""
    return time.clock_gettime_ns(_STEADY)


class FrameClock:
    """Maps frame indices of one source to monotonic time and UTC.

    With `origin_utc_ns` (a recording whose start is known) the map is exact arithmetic. Without it the map follows the
    arrival of blocks: an early arrival moves it at once, since sound cannot be read before it happened, and a late one
    by no more than a card's clock may drift, since blocks come late for many reasons that say nothing about the card.
    """

    def __init__(
        self,
        rate_hz: int,
        *,
        origin_utc_ns: int | None = None,
        utc_ns: Callable[[], int] = time.time_ns,
        monotonic_ns: Callable[[], int] = steady_ns,
    ) -> None:
        self._ns_per_frame = NS_PER_S / rate_hz
        self._origin_utc_ns = origin_utc_ns
        self._utc_ns = utc_ns
        self._monotonic_ns = monotonic_ns
        self._anchor: tuple[int, int] | None = None  # (frame, monotonic ns)

    def observe(self, end_frame: int, captured_ns: int) -> None:
        """Take note that all frames before `end_frame` were in hand at monotonic time `captured_ns`."""
        if self._anchor is None:
            self._anchor = (end_frame, captured_ns)
            return
        expected_ns = self._project_ns(end_frame)
        drift_ns = round(_MAX_DRIFT * (end_frame - self._anchor[0]) * self._ns_per_frame)
        self._anchor = (end_frame, min(captured_ns, expected_ns + drift_ns))

    def reset(self) -> None:
        """Forget arrivals: after a reopen the delay between sound and arrival may have changed."""
        self._anchor = None

    def monotonic_ns(self, frame: int) -> int:
        """Return the monotonic time at which `frame` began; the present before anything was observed."""
        return self._monotonic_ns() if self._anchor is None else self._project_ns(frame)

    def utc_ns(self, frame: int) -> int:
        """Return UTC nanoseconds since 1970 at which `frame` began."""
        if self._origin_utc_ns is not None:
            return self._origin_utc_ns + round(frame * self._ns_per_frame)
        steady_ns, utc_ns = self._present()
        return utc_ns - (steady_ns - self.monotonic_ns(frame))

    def _present(self) -> tuple[int, int]:
        """Read both clocks at the same moment, or nearly so when this thread is held up between them every time."""
        for _ in range(_READINGS):
            before_ns, utc_ns, after_ns = self._monotonic_ns(), self._utc_ns(), self._monotonic_ns()
            if after_ns - before_ns < _SAME_MOMENT_NS:
                break
        return (before_ns + after_ns) // 2, utc_ns

    def _project_ns(self, frame: int) -> int:
        assert self._anchor is not None
        anchor_frame, anchor_ns = self._anchor
        return anchor_ns + round((frame - anchor_frame) * self._ns_per_frame)
