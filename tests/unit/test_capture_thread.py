from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from edgeasd.capture.files import FileSource
from edgeasd.capture.ring import Ring
from edgeasd.capture.thread import CaptureThread
from edgeasd.capture.windows import WindowReader
from edgeasd.clock import FrameClock
from edgeasd.errors import InputError
from edgeasd.records import AudioBlock, Gap, LossReason, Skipped, Window

RATE_HZ = 16_000
DEADLINE_S = 10.0


class ScriptedSource:
    """Gives what it is told to; then ends, raises, or hangs until it is closed."""

    name = "scripted"
    rate_hz = RATE_HZ

    def __init__(self, items: list[AudioBlock | Gap], *, error: Exception | None = None, hangs: bool = False) -> None:
        self._items, self._error, self._hangs = items, error, hangs
        self._closed = threading.Event()

    def blocks(self) -> Iterator[AudioBlock | Gap]:
        yield from self._items
        if self._hangs:
            self._closed.wait()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        self._closed.set()


def block(first_frame: int, n_frames: int, captured_ns: int = 0) -> AudioBlock:
    return AudioBlock(first_frame, np.full(n_frames, 0.5, dtype=np.float32), captured_ns)


def ring_of(capacity_frames: int = 1000, *, waits: bool = False) -> Ring:
    return Ring(capacity_frames, policy="wait" if waits else "overwrite", doorbell=threading.Condition())


def test_counts_what_came_and_why_the_rest_did_not() -> None:
    items: list[AudioBlock | Gap] = [
        Gap(0, 30, LossReason.DEVICE_ABSENT),
        Gap(30, 20, LossReason.DEVICE_ABSENT),
        block(50, 100, captured_ns=10**9),
        Gap(150, 5, LossReason.OVERRUN),
        block(155, 45, captured_ns=2 * 10**9),
    ]
    ring, clock = ring_of(), FrameClock(RATE_HZ)
    with CaptureThread(ScriptedSource(items), ring, clock=clock) as thread:
        assert thread.join(DEADLINE_S)
    assert thread.stats.frames == 145
    assert thread.stats.gap_frames == {LossReason.DEVICE_ABSENT: 50, LossReason.OVERRUN: 5}
    assert thread.stats.gaps == {LossReason.DEVICE_ABSENT: 2, LossReason.OVERRUN: 1}
    assert thread.stats.reopens == 1
    assert thread.last_block_ns == 2 * 10**9
    assert clock.monotonic_ns(150) >= 10**9
    assert ring.finished
    assert ring.head_frame == 200
    assert thread.stalled_s() == 0
    assert thread.name == "capture-scripted"


@pytest.mark.parametrize(
    ("failure", "logged"),
    [
        (InputError("x.wav: cannot be read to its end (EIO)"), ""),  # told in one line by whoever asks for it
        (ZeroDivisionError("a bug"), "capture ended by an error source=scripted"),
    ],
)
def test_error_of_the_source_is_kept_and_wakes_the_scorer(
    failure: Exception, logged: str, caplog: pytest.LogCaptureFixture
) -> None:
    ring = ring_of()
    with caplog.at_level(logging.ERROR), CaptureThread(ScriptedSource([block(0, 10)], error=failure), ring) as thread:
        with ring._doorbell:
            assert ring._doorbell.wait_for(lambda: ring.finished, timeout=DEADLINE_S)
        assert thread.join(DEADLINE_S)
    assert thread.failure is failure
    assert logged in caplog.text
    assert bool(caplog.records) == bool(logged)


def test_source_that_gives_nothing_shows_as_stalled() -> None:
    now_ns = [0]
    ring = ring_of()
    source = ScriptedSource([block(0, 10)], hangs=True)
    with CaptureThread(source, ring, monotonic_ns=lambda: now_ns[0]) as thread:
        with ring._doorbell:
            assert ring._doorbell.wait_for(lambda: ring.head_frame == 10, timeout=DEADLINE_S)
        now_ns[0] = 6 * 10**9
        assert thread.stalled_s() == 6
        assert not thread.join(0.01)
    assert not thread.alive


def test_waiting_for_the_scorer_is_no_stall_and_stop_ends_it() -> None:
    now_ns = [0]
    ring = ring_of(100, waits=True)
    with CaptureThread(ScriptedSource([block(0, 250)]), ring, monotonic_ns=lambda: now_ns[0]) as thread:
        with ring._doorbell:
            assert ring._doorbell.wait_for(lambda: ring.head_frame == 100, timeout=DEADLINE_S)
        now_ns[0] = 60 * 10**9
        assert thread.stalled_s() == 0
        thread.stop()
        assert thread.join(DEADLINE_S)
    assert thread.failure is None


@pytest.mark.parametrize("block_frames", [100, 16_000, 65_536, 500_000])
def test_recording_to_windows_bit_for_bit(tmp_path: Path, block_frames: int) -> None:
    n_frames, window, hop = 20 * RATE_HZ + 123, RATE_HZ, 4000
    samples = np.random.default_rng(5).integers(-32768, 32768, n_frames, dtype=np.int16)
    soundfile.write(tmp_path / "x.wav", samples, RATE_HZ)
    ring = ring_of(3 * RATE_HZ, waits=True)
    source = FileSource(tmp_path / "x.wav", name="f", rate_hz=RATE_HZ, block_frames=block_frames)
    reader = WindowReader(ring, source="f", window_frames=window, hop_frames=hop)
    items: list[Window | Skipped] = []
    with CaptureThread(source, ring) as thread:
        while not reader.exhausted:
            with ring._doorbell:
                assert ring._doorbell.wait_for(lambda: reader.has_ready or reader.exhausted, timeout=DEADLINE_S)
            items += reader.ready(5)
    assert thread.failure is None
    windows = [item for item in items if isinstance(item, Window)]
    assert [item.first_frame for item in windows] == list(range(0, n_frames - window + 1, hop))
    for item in windows:
        expected = samples[item.first_frame : item.end_frame].astype(np.float32) / 32768
        np.testing.assert_array_equal(item.samples, expected)
    (tail,) = [item for item in items if isinstance(item, Skipped)]
    assert (tail.first_frame, tail.n_frames, tail.reason) == (windows[-1].end_frame, 123, LossReason.TAIL)
