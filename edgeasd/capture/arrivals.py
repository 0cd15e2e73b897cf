"""From when sound arrives: whether some was lost on the way, and which frame belongs to the present."""

from __future__ import annotations

from edgeasd.clock import NS_PER_S

_PERIOD_NS = 2 * NS_PER_S
"""Blocks come late for many reasons; within two seconds one comes as early as it can."""
_PAUSE_NS = NS_PER_S // 2
"""After a pause so much longer than a block what has piled up comes first: that it is late says nothing yet."""
_TOLERANCE_NS = 50_000_000
_MAX_BLOCK_NS = NS_PER_S // 4
"""Of longer blocks it is known when they were ready, give or take less than this."""
_MAX_DRIFT = 500e-6
"""Clocks of sound cards are not further off than this; what is beyond is loss."""
_RATE_PERIOD_NS = 30 * NS_PER_S
_TOO_FAST = 0.005
_TOO_SLOW = 0.02
"""Steady loss looks like a slow card; it takes more to call it one."""


class Arrivals:
    """Holds the frame count of one source against the monotonic clock.

    A loss is what is missing when for two seconds no block came less than 50 ms and a block's length, or a quarter of a
    second, behind the count; less is taken for drift of the card's clock and followed. (After a hang of the sound
    system, blocks may be cut at other places than before, and so be ready up to their length later, without any loss.)
    Frame 0 keeps its place in time over absences of the device.
    """

    def __init__(self, rate_hz: int, *, block_frames: int) -> None:
        self._ns_per_frame = NS_PER_S / rate_hz
        block_ns = block_frames * self._ns_per_frame
        self._pause_ns = _PAUSE_NS + block_ns
        self._tolerance_ns = _TOLERANCE_NS + min(_MAX_BLOCK_NS, block_ns)
        self._origin_ns: float | None = None
        self._place_ns: float | None = None  # of frame 0 by the clock, from the first stream on
        self._is_first = True
        self._last_ns = 0
        self._period_start_ns = 0
        self._least_late_ns = 0.0
        self._rate = _RateCheck(self._ns_per_frame)

    @property
    def started(self) -> bool:
        """Return whether frame 0 has a place in time."""
        return self._origin_ns is not None

    @property
    def rate_error(self) -> float | None:
        """Return by which share the card is too fast (positive) or too slow, once a minute has shown it; else None."""
        return self._rate.error

    def start(self, end_frame: float, now_ns: int) -> None:
        """Take note that a stream has begun, or begun anew, with all frames before `end_frame` in hand now."""
        self._origin_ns = now_ns - end_frame * self._ns_per_frame
        self._is_first = self._place_ns is None
        self._place_ns = self._origin_ns if self._place_ns is None else self._place_ns
        self._begin_period(now_ns)
        self._last_ns = now_ns
        self._rate = _RateCheck(self._ns_per_frame)

    def frame_at(self, now_ns: int) -> int:
        """Return the index of the frame that begins now.

        It goes by the place of frame 0 alone: what a stream delivered early or late, the next gap makes good.
        """
        assert self._place_ns is not None
        return round((now_ns - self._place_ns) / self._ns_per_frame)

    def observe(self, end_frame: float, now_ns: int) -> int:
        """Take note that all frames before `end_frame` are in hand now; return how many were lost before it."""
        assert self._origin_ns is not None
        late_ns = now_ns - self._origin_ns - end_frame * self._ns_per_frame
        if late_ns < 0:  # sound cannot be read before it happened
            self._origin_ns += late_ns
            if self._is_first:
                self._place_ns = self._origin_ns
            late_ns = 0.0
        if now_ns - self._last_ns > self._pause_ns:
            self._begin_period(now_ns)
        self._last_ns = now_ns
        self._least_late_ns = min(self._least_late_ns, late_ns)
        n_lost = 0
        if now_ns - self._period_start_ns >= _PERIOD_NS:
            n_lost = self._end_period(now_ns)
        self._rate.observe(end_frame, now_ns, n_lost)
        return n_lost

    def _end_period(self, now_ns: int) -> int:
        assert self._origin_ns is not None
        least_ns, elapsed_ns = self._least_late_ns, now_ns - self._period_start_ns
        self._begin_period(now_ns)
        if least_ns > self._tolerance_ns:
            return round(least_ns / self._ns_per_frame)
        self._origin_ns += min(least_ns, _MAX_DRIFT * elapsed_ns)
        return 0

    def _begin_period(self, now_ns: int) -> None:
        self._period_start_ns = now_ns
        self._least_late_ns = float("inf")


class _RateCheck:
    """Counts what a card delivers in half minutes; two in a row that are off in the same way condemn it."""

    def __init__(self, ns_per_frame: float) -> None:
        self.error: float | None = None
        self._ns_per_frame = ns_per_frame
        self._start: tuple[float, int] | None = None  # (end frame, monotonic ns)
        self._n_lost = 0
        self._was_off = False

    def observe(self, end_frame: float, now_ns: int, n_lost: int) -> None:
        """Take note of a block; `n_lost` frames will be left out of the count behind it."""
        if self._start is None:
            self._start = (end_frame, now_ns)
        start_frame, start_ns = self._start
        elapsed_ns = now_ns - start_ns
        if elapsed_ns >= _RATE_PERIOD_NS:
            error = (end_frame - start_frame - self._n_lost) * self._ns_per_frame / elapsed_ns - 1
            off = error > _TOO_FAST or error < -_TOO_SLOW
            if off and self._was_off:
                self.error = error
            self._was_off = off
            self._start, self._n_lost = (end_frame, now_ns), 0
        self._n_lost += n_lost
