"""Real capture through PortAudio from PulseAudio null sinks: sound, unplugging, late arrival, a hung sound system."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgeasd.capture.devices import list_devices
from edgeasd.capture.ring import Ring
from edgeasd.capture.source import SourceSpec, open_source
from edgeasd.capture.thread import CaptureThread
from edgeasd.clock import FrameClock
from edgeasd.records import FloatArray, LossReason
from tests.rig.pulse import PulseMicrophone, PulseRig, available, one_microphone, wait_until

pytestmark = pytest.mark.skipif(available() is not None, reason=available() or "")

RATE_HZ = 16_000
AMPLITUDE = 0.25


def tone(duration_s: float, *, hz: float = 1000, rate_hz: int = 48_000) -> FloatArray:
    t = np.arange(round(duration_s * rate_hz)) / rate_hz
    return (AMPLITUDE * np.sin(2 * np.pi * hz * t)).astype(np.float32)


class Capture:
    """A microphone, its thread, and a ring that keeps the last minute."""

    def __init__(self, device: str, *, native_rate_hz: int | None = None) -> None:
        spec = SourceSpec(name=device, device=device, rate_hz=RATE_HZ, native_rate_hz=native_rate_hz)
        self.ring = Ring(60 * RATE_HZ, policy="overwrite", doorbell=threading.Condition())
        self.clock = FrameClock(RATE_HZ)
        self.began_ns = time.monotonic_ns()
        self.thread = CaptureThread(open_source(spec), self.ring, clock=self.clock)

    def await_frames(self, n_frames: int, *, deadline_s: float) -> None:
        """Wait until so many frames have been captured in all."""
        doorbell = self.ring._doorbell
        with doorbell:
            enough = doorbell.wait_for(lambda: self.thread.stats.frames >= n_frames, timeout=deadline_s)
        assert enough, f"waited {deadline_s:g} s for {n_frames} frames: {self.thread.stats}"

    def newest(self, n_frames: int) -> FloatArray:
        out = np.empty(n_frames, dtype=np.float32)
        assert self.ring.read(self.ring.head_frame - n_frames, out)
        return out


@contextlib.contextmanager
def capturing(device: str, *, native_rate_hz: int | None = None) -> Iterator[Capture]:
    capture = Capture(device, native_rate_hz=native_rate_hz)
    try:
        yield capture
    finally:
        capture.thread.stop()
        assert capture.thread.join(8.0), "the capture thread did not end"
    assert capture.thread.failure is None


@pytest.fixture
def microphone(tmp_path: Path) -> Iterator[PulseMicrophone]:
    """A microphone that hears a tone of 1 kHz."""
    with one_microphone(tmp_path) as microphone:
        microphone.play(tone(60), 48_000)
        yield microphone


def check_tone(heard: FloatArray) -> None:
    assert np.sqrt(np.mean(heard**2)) == pytest.approx(AMPLITUDE / np.sqrt(2), rel=0.002)
    spectrum = np.abs(np.fft.rfft(heard * np.hanning(len(heard))))
    assert np.argmax(spectrum) * RATE_HZ / len(heard) == pytest.approx(1000, abs=1)
    # A splice in a sine shows as energy away from it: 60 dB below is as clean as 16 bits and resampling leave it.
    far = np.abs(np.fft.rfftfreq(len(heard), 1 / RATE_HZ) - 1000) > 50
    assert spectrum[far].max() < 1e-3 * spectrum.max()


@pytest.mark.parametrize("native_rate_hz", [None, 48_000])
def test_tone_arrives_whole_at_its_level(microphone: PulseMicrophone, native_rate_hz: int | None) -> None:
    with capturing(microphone.name, native_rate_hz=native_rate_hz) as capture:
        capture.await_frames(3 * RATE_HZ, deadline_s=10)
        assert capture.thread.stats.gaps == {}
        check_tone(capture.newest(RATE_HZ))
        head = capture.ring.head_frame
        age_s = (time.monotonic_ns() - capture.clock.monotonic_ns(head)) / 1e9
        assert age_s < 0.3, "the newest frame is of this moment"


def test_silence_is_exactly_zero(tmp_path: Path) -> None:
    with one_microphone(tmp_path) as microphone, capturing(microphone.name) as capture:
        capture.await_frames(RATE_HZ, deadline_s=10)
        assert not capture.newest(RATE_HZ).any()


def test_hung_sound_system_is_noticed_and_a_short_hang_loses_nothing(microphone: PulseMicrophone) -> None:
    with capturing(microphone.name) as capture:
        capture.await_frames(RATE_HZ, deadline_s=10)
        assert capture.thread.stalled_s() < 1
        microphone.freeze()
        try:
            wait_until(lambda: capture.thread.stalled_s() > 2, deadline_s=4, what="the hang to show")
            assert capture.thread.alive
            n_before = capture.thread.stats.frames
        finally:
            microphone.thaw()
        capture.await_frames(n_before + 4 * RATE_HZ, deadline_s=8)
        assert capture.thread.stalled_s() < 1
        assert capture.thread.stats.gaps == {}


def test_sound_system_that_dies_while_it_hangs_is_reopened(microphone: PulseMicrophone) -> None:
    with capturing(microphone.name) as capture:
        capture.await_frames(RATE_HZ, deadline_s=10)
        microphone.freeze()
        wait_until(lambda: capture.thread.stalled_s() > 1, deadline_s=4, what="the hang to show")
        microphone.unplug()
        microphone.plug()
        wait_until(lambda: capture.thread.stats.reopens == 1, deadline_s=8, what="the microphone to be reopened")


def test_second_microphone_that_comes_late_costs_the_first_one_short_gap(tmp_path: Path) -> None:
    with PulseRig(tmp_path, "mic_a", "mic_b", plugged=False) as rig:
        rig["mic_a"].plug()
        rig["mic_a"].play(tone(60), 48_000)
        with capturing("mic_a") as first, capturing("mic_b") as second:
            first.await_frames(RATE_HZ, deadline_s=10)
            wait_until(lambda: bool(second.thread.stats.gap_frames), deadline_s=5, what="a gap of the second")
            assert first.thread.stats.gaps == {}, "looking for the second does not disturb the first"
            rig["mic_b"].plug()
            second.await_frames(RATE_HZ, deadline_s=12)
            wait_until(lambda: first.thread.stats.reopens == 1, deadline_s=8, what="the first to go on")
            first.await_frames(first.thread.stats.frames + RATE_HZ, deadline_s=8)
            check_tone(first.newest(RATE_HZ))
            assert first.thread.stats.gap_frames[LossReason.DEVICE_ABSENT] < 5 * RATE_HZ


def test_devices_are_listed_with_what_they_can(microphone: PulseMicrophone) -> None:
    (info,) = [info for info in list_devices() if info.name == microphone.name]
    assert info.host_api == "ALSA"
    assert {16_000, 48_000} <= set(info.rates_hz)
    assert info.max_channels >= 1
    assert info.holder is None
