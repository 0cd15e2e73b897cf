"""A broken microphone is told from a strange sound, and a loud, quiet or odd sound from a broken microphone."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
import pytest
import soxr
from numpy.typing import NDArray

from edgeasd.health.inputs import FLOOR_DBFS, FaultLatch, measure
from edgeasd.records import Fault, FloatArray

RATE_HZ = 16_000
Signal = NDArray[np.float64]
TIME_S: Signal = np.arange(RATE_HZ) / RATE_HZ


def noise(rms: float, *, seed: int = 1, n_frames: int = RATE_HZ) -> Signal:
    return rms * np.random.default_rng(seed).standard_normal(n_frames)


def tone(frequency_hz: float, amplitude: float, *, rate_hz: int = RATE_HZ) -> Signal:
    return amplitude * np.sin(2.0 * np.pi * frequency_hz * np.arange(rate_hz) / rate_hz)


def converted(signal: Signal) -> FloatArray:
    """Return what a 16-bit converter makes of a signal: steps, and an end of the scale."""
    steps = np.clip(np.round(signal * 32768.0), -32768, 32767)
    return (steps / 32768.0).astype(np.float32)


def resampled(signal: Signal, *, from_hz: int = 48_000) -> FloatArray:
    return np.asarray(soxr.resample(converted(signal), from_hz, RATE_HZ), dtype=np.float32)


def bang(n_clipped_ms: float) -> Signal:
    """Return a burst that overdrives the converter for about so long, and rings off."""
    burst = noise(0.01)
    n_clipped = round(n_clipped_ms * RATE_HZ / 1000.0)
    burst[4000 : 4000 + n_clipped] = 5.0 * np.sign(noise(1.0, seed=2, n_frames=n_clipped))
    tail = np.exp(-np.arange(6000) / 900.0) * noise(0.3, seed=3, n_frames=6000)
    burst[4000 + n_clipped : 10_000 + n_clipped] += tail
    return burst


def speech_like() -> Signal:
    """Return pulses that all point one way, as voices and engines have them, without an offset."""
    pulses = np.zeros(RATE_HZ)
    pulses[::133] = 1.0
    shaped = np.convolve(pulses, np.exp(-np.arange(400) / 60.0))[:RATE_HZ]
    shaped -= shaped.mean()
    return np.asarray(0.6 * shaped / np.abs(shaped).max())


HEALTHY: dict[str, Callable[[], FloatArray]] = {
    "room noise": lambda: converted(noise(0.003)),
    "the quietest converter": lambda: converted(noise(2e-5)),
    "24-bit self noise": lambda: noise(2e-5).astype(np.float32),
    "loud noise that just fits": lambda: converted(0.97 * noise(1.0) / np.abs(noise(1.0)).max()),
    "rare clicks over loud noise": lambda: converted(noise(0.35)),
    "pure tone at full scale, 50 Hz": lambda: converted(tone(50.0, 1.0)),
    "pure tone at full scale, 440 Hz": lambda: converted(tone(440.0, 1.0)),
    "pure tone just below full scale": lambda: converted(tone(1000.0, 0.985)),
    "chord that fits the sample rate": lambda: converted(tone(500.0, 0.5) + tone(1500.0, -0.4983)),
    "pure tone at full scale, resampled": lambda: resampled(tone(440.0, 0.999, rate_hz=48_000)),
    "beep and hum": lambda: converted(tone(2000.0, 0.5) + tone(100.0, 0.49)),
    "bang that clips for 5 ms": lambda: converted(bang(5.0)),
    "gust of wind": lambda: converted(tone(0.7, 0.6) + noise(0.05)),
    "slow swell": lambda: converted(0.4 * np.sin(2.0 * np.pi * 0.5 * TIME_S + 0.3) + noise(0.01)),
    "door slam": lambda: converted(np.where(TIME_S > 0.5, 0.9 * np.exp(-(TIME_S - 0.5) / 0.08), 0.0) + noise(0.01)),
    "voice-like pulses": lambda: converted(speech_like()),
    "converter with a small offset": lambda: converted(noise(0.01) + 0.03),
    "half a second of digital silence": lambda: converted(np.where(TIME_S > 0.5, noise(0.01), 0.0)),
}

BROKEN: dict[str, tuple[Fault, Callable[[], FloatArray]]] = {
    "zeros": (Fault.DEAD, lambda: np.zeros(RATE_HZ, np.float32)),
    "negative zeros": (Fault.DEAD, lambda: np.full(RATE_HZ, -0.0, np.float32)),
    "denormals": (Fault.DEAD, lambda: np.full(RATE_HZ, 1e-40, np.float32)),
    "a stray last bit": (Fault.DEAD, lambda: converted(np.where(np.arange(RATE_HZ) % 500 == 0, 1.0 / 32768.0, 0.0))),
    "stuck half way": (Fault.CONSTANT, lambda: np.full(RATE_HZ, 0.5, np.float32)),
    "stuck at the bottom": (Fault.CONSTANT, lambda: np.full(RATE_HZ, -1.0, np.float32)),
    "stuck low with a stray bit": (
        Fault.CONSTANT,
        lambda: converted(0.01 + np.where(TIME_S < 1e-3, 1.0 / 32768.0, 0.0)),
    ),
    "tone clipped by 5 %": (Fault.CLIPPED, lambda: converted(tone(440.0, 1.05))),
    "tone clipped by half": (Fault.CLIPPED, lambda: converted(tone(97.0, 2.0))),
    "noise clipped": (Fault.CLIPPED, lambda: converted(noise(0.6))),
    "noise clipped, then resampled": (Fault.CLIPPED, lambda: resampled(noise(1.5, n_frames=48_000))),
    "tone clipped, then resampled": (Fault.CLIPPED, lambda: resampled(tone(440.0, 1.5, rate_hz=48_000))),
    "clipped on one side": (Fault.CLIPPED, lambda: converted(tone(200.0, 0.7) + 0.34)),
    "square wave": (Fault.CLIPPED, lambda: converted(np.sign(tone(100.0, 1.0) + 1e-9))),
    "bang that clips for 30 ms": (Fault.CLIPPED, lambda: converted(bang(30.0))),
    "bang out of digital silence": (
        Fault.CLIPPED,
        lambda: converted(np.where(np.abs(bang(30.0)) > 0.05, bang(30.0), 0.0)),
    ),
    "offset": (Fault.DC_OFFSET, lambda: converted(noise(0.01) + 0.08)),
    "offset downwards under a tone": (Fault.DC_OFFSET, lambda: converted(tone(120.0, 0.5) - 0.2)),
    "offset under loud noise": (Fault.DC_OFFSET, lambda: converted(noise(0.15) + 0.1)),
    "one NaN": (Fault.NOT_FINITE, lambda: with_one(math.nan)),
    "one infinity": (Fault.NOT_FINITE, lambda: with_one(-math.inf)),
    "one absurd number": (Fault.NOT_FINITE, lambda: with_one(3e38)),
    "nothing but NaN": (Fault.NOT_FINITE, lambda: np.full(RATE_HZ, math.nan, np.float32)),
}


def with_one(value: float) -> FloatArray:
    samples = converted(noise(0.1))
    samples[777] = value
    return samples


@pytest.mark.parametrize("name", HEALTHY)
def test_sound_is_no_fault(name: str) -> None:
    assert measure(HEALTHY[name]())[1] is None


@pytest.mark.parametrize("name", BROKEN)
def test_broken_input_is_a_fault(name: str) -> None:
    expected, make = BROKEN[name]
    assert measure(make())[1] is expected


@pytest.mark.parametrize("name", BROKEN)
def test_level_of_a_broken_input_is_finite(name: str) -> None:
    level, _ = measure(BROKEN[name][1]())
    assert all(math.isfinite(value) for value in (level.rms_dbfs, level.peak_dbfs, level.clip_pct, level.dc))
    assert level.rms_dbfs >= FLOOR_DBFS


def test_level_of_a_known_tone() -> None:
    level, _ = measure((tone(1000.0, 0.5) + 0.01).astype(np.float32))
    assert level.rms_dbfs == pytest.approx(20 * math.log10(math.hypot(0.5 / math.sqrt(2), 0.01)), abs=0.01)
    assert level.peak_dbfs == pytest.approx(20 * math.log10(0.51), abs=0.02)
    assert level.dc == pytest.approx(0.01, abs=1e-5)
    assert level.clip_pct == 0.0


def test_share_at_full_scale_is_counted_on_both_sides() -> None:
    samples = converted(noise(0.01))
    samples[:160] = 0.99
    samples[160:480] = -1.0
    assert measure(samples)[0].clip_pct == pytest.approx(3.0)


def test_absurd_numbers_do_not_hide_the_level_of_the_rest() -> None:
    assert measure(with_one(3e38))[0].rms_dbfs == pytest.approx(-20.0, abs=0.2)
    assert measure(np.full(RATE_HZ, math.nan, np.float32))[0].rms_dbfs == FLOOR_DBFS


class Feed:
    """Verdicts on windows of one second, half a second apart."""

    def __init__(self) -> None:
        self.latch = FaultLatch(RATE_HZ)
        self._first_frame = 0

    def next(self, *, dead: bool) -> tuple[Fault | None, bool]:
        """Return what stands after the next window, and whether that is news."""
        first_frame, self._first_frame = self._first_frame, self._first_frame + RATE_HZ // 2
        fault = Fault.DEAD if dead else None
        changed = self.latch.observe(fault, first_frame=first_frame, end_frame=first_frame + RATE_HZ)
        return self.latch.standing, changed


def test_fault_stands_once_it_has_lasted_two_seconds() -> None:
    feed = Feed()
    assert feed.next(dead=False) == (None, False)
    assert [feed.next(dead=True) for _ in range(4)] == [(None, False)] * 2 + [(Fault.DEAD, True), (Fault.DEAD, False)]


def test_standing_fault_falls_after_three_healthy_seconds() -> None:
    feed = Feed()
    for _ in range(4):
        feed.next(dead=True)
    assert [feed.next(dead=False) for _ in range(6)] == [(Fault.DEAD, False)] * 4 + [(None, True), (None, False)]


def test_flickering_input_neither_raises_nor_clears_a_fault() -> None:
    feed = Feed()
    assert {feed.next(dead=bool(n % 2))[0] for n in range(10)} == {None}
    for _ in range(4):
        feed.next(dead=True)
    assert {feed.next(dead=bool(n % 2))[0] for n in range(10)} == {Fault.DEAD}


def test_lost_device_is_a_fault_at_once_until_sound_has_been_back_for_three_seconds() -> None:
    feed = Feed()
    feed.next(dead=False)
    assert feed.latch.device_lost()
    assert not feed.latch.device_lost()
    assert feed.latch.standing is Fault.DEVICE_ABSENT
    assert [feed.next(dead=False)[0] for _ in range(5)] == [Fault.DEVICE_ABSENT] * 4 + [None]


def test_window_costs_well_under_a_thousandth_of_a_core_at_two_a_second() -> None:
    samples = converted(noise(0.1))
    began_s = time.process_time()
    for _ in range(500):
        measure(samples)
    assert 2.0 * (time.process_time() - began_s) / 500 < 0.001
