from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from edgeasd.clock import NS_PER_S, FrameClock, steady_ns

RATE_HZ = 16_000
BLOCK = 4000
BEGAN_NS = 1_795_165_590_000_000_000
MS = 1_000_000


class Host:
    """The clocks of a machine, which do as they are told."""

    def __init__(self) -> None:
        self.steady = 50 * NS_PER_S
        self.offset_ns = BEGAN_NS - self.steady
        self.held_up_ns: Iterator[int] = iter(())

    def utc_ns(self) -> int:
        self.steady += next(self.held_up_ns, 0)
        return self.steady + self.offset_ns

    def clock(self) -> FrameClock:
        return FrameClock(RATE_HZ, utc_ns=self.utc_ns, monotonic_ns=lambda: self.steady)

    def hear(self, clock: FrameClock, first_frame: int, *, late_ms: float = 0.0, rate: float = 1.0) -> int:
        """Let a block pass that is read so late; return the frame behind it."""
        self.steady += round(BLOCK / RATE_HZ / rate * NS_PER_S)
        clock.observe(first_frame + BLOCK, self.steady + round(late_ms * MS))
        return first_frame + BLOCK


def error_ms(host: Host, clock: FrameClock, frame: int, *, true_ns: int) -> float:
    return (clock.utc_ns(frame) - host.offset_ns - true_ns) / MS


def test_known_origin_is_exact_arithmetic() -> None:
    clock = FrameClock(RATE_HZ, origin_utc_ns=BEGAN_NS, utc_ns=lambda: 0)
    assert clock.utc_ns(RATE_HZ * 86_400 + 1) == BEGAN_NS + 86_400 * NS_PER_S + 62_500


@pytest.mark.parametrize("step_s", [3600, -3600, -1_795_000_000])
def test_a_step_of_the_wall_clock_moves_stamps_by_itself_and_nothing_else(step_s: int) -> None:
    host = Host()
    clock = host.clock()
    frame = host.hear(clock, 0)
    before_ns, monotonic_ns = clock.utc_ns(frame), clock.monotonic_ns(frame)
    host.offset_ns += step_s * NS_PER_S
    assert clock.utc_ns(frame) == before_ns + step_s * NS_PER_S
    assert clock.monotonic_ns(frame) == monotonic_ns


def test_stamps_of_a_busy_machine_are_good_to_50_ms() -> None:
    host, random = Host(), np.random.default_rng(7)
    clock = host.clock()
    frame, began_ns = 0, host.steady
    for _ in range(4 * 600):
        frame = host.hear(clock, frame, late_ms=random.exponential(60.0), rate=1 + 100e-6)
        true_ns = began_ns + round(frame / RATE_HZ / (1 + 100e-6) * NS_PER_S)
        late_ms = error_ms(host, clock, frame, true_ns=true_ns)
        assert frame < 5 * RATE_HZ or -1.0 < late_ms < 50.0


def test_a_slow_card_is_followed() -> None:
    host = Host()
    clock = host.clock()
    frame, began_ns = 0, host.steady
    for _ in range(4 * 600):
        frame = host.hear(clock, frame, rate=1 - 300e-6)
    true_ns = began_ns + round(frame / RATE_HZ / (1 - 300e-6) * NS_PER_S)
    assert abs(error_ms(host, clock, frame, true_ns=true_ns)) < 1.0


def test_a_thread_that_is_held_up_between_two_clocks_reads_them_again() -> None:
    host = Host()
    clock = host.clock()
    frame = host.hear(clock, 0)
    true_ns = host.steady
    host.held_up_ns = iter([80 * MS, 30 * MS])
    assert abs(error_ms(host, clock, frame, true_ns=true_ns)) < 1.0


def test_the_steady_clock_does_not_go_back() -> None:
    before_ns = steady_ns()
    assert 0 <= steady_ns() - before_ns < 60 * NS_PER_S
