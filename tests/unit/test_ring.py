from __future__ import annotations

import threading
from itertools import pairwise
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeasd.capture.ring import Ring
from edgeasd.records import AudioBlock, FloatArray, Gap, LossReason

DEADLINE_S = 10.0


def numbered(first_frame: int, n_frames: int, *, captured_ns: int = 0) -> AudioBlock:
    """A block whose samples say which frame they are; exact in float32 up to 2**24."""
    return AudioBlock(first_frame, np.arange(first_frame, first_frame + n_frames, dtype=np.float32), captured_ns)


def read(ring: Ring, first_frame: int, n_frames: int) -> FloatArray | None:
    out = np.empty(n_frames, dtype=np.float32)
    return out if ring.read(first_frame, out) else None


def make(capacity_frames: int, policy: Literal["overwrite", "wait"] = "overwrite") -> Ring:
    return Ring(capacity_frames, policy=policy, doorbell=threading.Condition())


def n_overwritten(ring: Ring) -> int:
    lost = [segment for segment in ring._segments if segment.reason is LossReason.OVERWRITTEN]
    return sum(segment.end_frame - segment.first_frame for segment in lost)


def test_frames_are_read_by_their_index_however_they_were_written() -> None:
    ring = make(100)
    for first, n_frames in ((0, 7), (7, 60), (67, 1), (68, 90)):  # wraps around
        ring.write(numbered(first, n_frames))
    assert (ring.head_frame, ring.tail_frame) == (158, 58)
    got = read(ring, 58, 100)
    assert got is not None
    np.testing.assert_array_equal(got, np.arange(58, 158))


def test_what_is_not_there_is_not_read() -> None:
    ring = make(100)
    ring.write(numbered(0, 50))
    ring.mark_gap(Gap(50, 10, LossReason.OVERRUN))
    ring.write(numbered(60, 20))
    assert read(ring, 0, 50) is not None
    assert read(ring, 60, 20) is not None
    assert read(ring, 40, 20) is None, "straddles the gap"
    assert read(ring, 50, 5) is None, "in the gap"
    assert read(ring, 70, 20) is None, "beyond the head"
    assert read(ring, 80, 1) is None, "at the head"


def test_oldest_sound_is_overwritten_and_becomes_a_loss() -> None:
    ring = make(10)
    ring.write(numbered(0, 10))
    ring.write(numbered(10, 4))
    assert n_overwritten(ring) == 4
    assert read(ring, 3, 1) is None
    assert read(ring, 4, 10) is not None
    lost = ring.stretch(0)
    assert lost is not None
    assert (lost.end_frame, lost.reason) == (4, LossReason.OVERWRITTEN)


def test_block_longer_than_the_ring_leaves_its_end() -> None:
    ring = make(10)
    ring.write(numbered(0, 35))
    got = read(ring, 25, 10)
    assert got is not None
    np.testing.assert_array_equal(got, np.arange(25, 35))
    assert n_overwritten(ring) == 25


def test_released_sound_is_not_lost_when_it_is_overwritten() -> None:
    ring = make(10)
    ring.write(numbered(0, 10))
    ring.release(8)
    ring.write(numbered(10, 8))
    assert n_overwritten(ring) == 0
    assert ring.tail_frame == 8


def test_gap_takes_no_room() -> None:
    ring = make(10)
    ring.write(numbered(0, 5))
    ring.mark_gap(Gap(5, 1_000_000, LossReason.DEVICE_ABSENT))
    ring.write(numbered(1_000_005, 5))
    assert read(ring, 0, 5) is not None
    assert read(ring, 1_000_005, 5) is not None
    assert ring.head_frame == 1_000_010


def test_many_gaps_stay_within_bounds() -> None:
    ring = make(1000)
    frame = 0
    for _ in range(5000):
        ring.write(numbered(frame, 1))
        ring.mark_gap(Gap(frame + 1, 1, LossReason.OVERRUN))
        frame += 2
    assert len(ring._segments) <= 256
    assert sum(segment.end_frame - segment.first_frame for segment in ring._segments) == frame
    assert len(ring._arrivals) <= 256


def test_each_write_gap_and_end_rings_the_doorbell() -> None:
    class Counting(threading.Condition):
        rung = 0

        def notify_all(self) -> None:
            self.rung += 1
            super().notify_all()

    doorbell = Counting()
    ring = Ring(100, policy="overwrite", doorbell=doorbell)
    ring.write(numbered(0, 5))
    ring.mark_gap(Gap(5, 5, LossReason.OVERRUN))
    ring.finish()
    assert doorbell.rung == 3
    assert ring.finished


def test_arrival_is_that_of_the_block_that_holds_the_last_frame() -> None:
    ring = make(100)
    ring.write(numbered(0, 10, captured_ns=1))
    ring.write(numbered(10, 10, captured_ns=2))
    assert ring.captured_ns((1, 10, 11, 20)) == [1, 1, 2, 2]
    ring.release(12)
    assert ring.captured_ns([20]) == [2]


def test_source_that_skips_frames_silently_is_our_own_mistake() -> None:
    ring = make(100)
    with pytest.raises(AssertionError):
        ring.write(numbered(3, 5))


def test_waiting_writer_loses_nothing() -> None:
    ring = make(64, "wait")
    n_frames = 10_000

    def write() -> None:
        cuts = np.random.default_rng(1).choice(np.arange(1, n_frames), 100, replace=False)
        for first, end in pairwise([0, *sorted(int(cut) for cut in cuts), n_frames]):
            ring.write(numbered(first, end - first))
        ring.finish()

    writer = threading.Thread(target=write)
    writer.start()
    frame = 0

    def ring_frame() -> int:
        return frame

    while frame < n_frames:
        with ring._doorbell:
            assert ring._doorbell.wait_for(lambda: ring.stretch(ring_frame()) is not None, timeout=DEADLINE_S)
        got = read(ring, frame, min(7, ring.head_frame - frame))
        assert got is not None
        np.testing.assert_array_equal(got, np.arange(frame, frame + len(got)))
        frame += len(got)
        ring.release(frame)
    writer.join(DEADLINE_S)
    assert not writer.is_alive()
    assert n_overwritten(ring) == 0


def test_close_frees_a_waiting_writer() -> None:
    ring = make(10, "wait")
    writer = threading.Thread(target=lambda: ring.write(numbered(0, 25)))
    writer.start()
    with ring._doorbell:
        assert ring._doorbell.wait_for(lambda: ring.head_frame == 10, timeout=DEADLINE_S)
    ring.close()
    writer.join(DEADLINE_S)
    assert not writer.is_alive()
    ring.write(numbered(25, 5))  # dropped: no complaint about where it starts
    ring.mark_gap(Gap(99, 5, LossReason.OVERRUN))
    assert ring.head_frame == 10


def test_no_window_is_torn_by_a_writer_far_faster_than_real_time() -> None:
    ring = make(4000)
    stop = threading.Event()

    def write() -> None:
        first = 0
        while not stop.is_set() and first < 2**24 - 320:
            ring.write(numbered(first, 320))
            first += 320
        stop.set()

    writer = threading.Thread(target=write)
    writer.start()
    n_read = n_missed = 0
    while n_read < 500 and not stop.is_set():
        first = ring.tail_frame
        got = read(ring, first, 1000)
        if got is None:
            n_missed += 1
            continue
        np.testing.assert_array_equal(got, np.arange(first, first + 1000))
        n_read += 1
    stop.set()
    writer.join(DEADLINE_S)
    assert n_read > 100, f"{n_missed} reads missed"


@given(
    capacity=st.integers(1, 40),
    steps=st.lists(
        st.tuples(st.sampled_from(["block", "gap", "release"]), st.integers(1, 60)), min_size=1, max_size=60
    ),
)
def test_every_frame_is_readable_or_lost_for_its_reason(capacity: int, steps: list[tuple[str, int]]) -> None:
    ring = make(capacity)
    is_sound: list[bool] = []
    released = 0
    for kind, n_frames in steps:
        if kind == "block":
            ring.write(numbered(len(is_sound), n_frames))
            is_sound += [True] * n_frames
        elif kind == "gap":
            ring.mark_gap(Gap(len(is_sound), n_frames, LossReason.OVERRUN))
            is_sound += [False] * n_frames
        else:
            released = min(released + n_frames, len(is_sound))
            ring.release(released)
    unread = [frame for frame in range(released, len(is_sound)) if is_sound[frame]]
    kept = set([frame for frame in range(len(is_sound)) if is_sound[frame]][-capacity:]) & set(unread)
    for frame in range(released, len(is_sound)):
        got = read(ring, frame, 1)
        stretch = ring.stretch(frame)
        assert stretch is not None
        if frame in kept:
            assert got is not None
            assert got[0] == frame
            assert stretch.backlog_frames == sum(1 for other in kept if other >= frame)
        else:
            assert got is None
            assert stretch.reason is (LossReason.OVERWRITTEN if is_sound[frame] else LossReason.OVERRUN)
