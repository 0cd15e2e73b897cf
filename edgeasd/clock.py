"""From frame index to time: the only place where audio positions become nanoseconds.

A source counts frames; the host's monotonic clock stamps blocks on arrival; UTC is read once per conversion, so that a
stepped wall clock moves stamps, never positions.
"""

from __future__ import annotations

import time
from collections.abc import Callable

NS_PER_S = 1_000_000_000

_SLOW_GAIN = 0.02
"""Share of the disagreement that one block corrects: averages scheduling jitter over some fifty blocks."""


class FrameClock:
    """Maps frame indices of one source to monotonic time and UTC.

    With `origin_utc_ns` (a recording whose start is known) the map is exact arithmetic. Without it the map follows the
    arrival of blocks: an early arrival moves it at once, since sound cannot be read before it happened, and a late one
    slowly, since blocks come late for many reasons that say nothing about the sound card.
    """

    def __init__(
        self,
        rate_hz: int,
        *,
        origin_utc_ns: int | None = None,
        utc_ns: Callable[[], int] = time.time_ns,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
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
        late_ns = captured_ns - self._project_ns(end_frame)
        correction_ns = late_ns if late_ns < 0 else round(late_ns * _SLOW_GAIN)
        self._anchor = (end_frame, captured_ns - late_ns + correction_ns)

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
        return self._utc_ns() - (self._monotonic_ns() - self.monotonic_ns(frame))

    def _project_ns(self, frame: int) -> int:
        assert self._anchor is not None
        anchor_frame, anchor_ns = self._anchor
        return anchor_ns + round((frame - anchor_frame) * self._ns_per_frame)
