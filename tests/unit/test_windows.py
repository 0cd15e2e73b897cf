from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeasd.capture.ring import Ring
from edgeasd.capture.windows import WindowReader
from edgeasd.records import AudioBlock, Gap, LossReason, Skipped, Window

DEADLINE_S = 10.0
Step = tuple[str, int]
STEPS = st.lists(
    st.tuples(st.sampled_from(["block", "block", "block", "gap", "read"]), st.integers(1, 70)), max_size=60
)


@dataclass(slots=True)
class Feed:
    """Writes sound whose samples say which frame they are, and gaps."""

    ring: Ring
    is_sound: list[bool]

    def block(self, n_frames: int) -> None:
        first = len(self.is_sound)
        samples = np.arange(first, first + n_frames, dtype=np.float32)
        self.ring.write(AudioBlock(first, samples, captured_ns=first + n_frames))
        self.is_sound += [True] * n_frames

    def gap(self, n_frames: int) -> None:
        self.ring.mark_gap(Gap(len(self.is_sound), n_frames, LossReason.DEVICE_ABSENT))
        self.is_sound += [False] * n_frames


def make(
    capacity: int = 1000, *, window: int = 10, hop: int = 5, backlog: int | None = None
) -> tuple[Feed, WindowReader]:
    ring = Ring(capacity, policy="overwrite", doorbell=threading.Condition())
    reader = WindowReader(ring, source="s", window_frames=window, hop_frames=hop, max_backlog_windows=backlog)
    return Feed(ring, []), reader


def brief(items: list[Window | Skipped]) -> list[tuple[object, ...]]:
    return [
        (item.first_frame, item.follows) if isinstance(item, Window) else (item.first_frame, item.n_frames, item.reason)
        for item in items
    ]


def check(items: list[Window | Skipped], is_sound: list[bool], *, window: int, hop: int) -> None:
    """Hold what a reader gave out against what was written."""
    in_window = np.zeros(len(is_sound), dtype=bool)
    n_skipped = np.zeros(len(is_sound), dtype=int)
    before: Window | None = None
    starts = []
    for item in items:
        if isinstance(item, Window):
            np.testing.assert_array_equal(item.samples, np.arange(item.first_frame, item.end_frame))
            assert all(is_sound[item.first_frame : item.end_frame])
            assert len(item.samples) == window
            assert item.captured_ns >= item.end_frame
            assert item.follows == (before is not None and item.first_frame == before.first_frame + hop)
            in_window[item.first_frame : item.end_frame] = True
            before = item
        else:
            assert item.n_frames > 0
            n_skipped[item.first_frame : item.first_frame + item.n_frames] += 1
            of_gap = item.reason is LossReason.DEVICE_ABSENT
            assert all(sound != of_gap for sound in is_sound[item.first_frame : item.first_frame + item.n_frames])
            before = None if item.first_frame >= (before.end_frame if before else 0) else before
        starts.append(item.first_frame)
    assert starts == sorted(starts)
    np.testing.assert_array_equal(in_window + n_skipped, 1)


@settings(max_examples=300)
@given(
    steps=STEPS,
    window=st.integers(1, 20),
    hop_share=st.floats(0.01, 1.0),
    spare=st.integers(0, 60),
    backlog=st.one_of(st.none(), st.integers(1, 4)),
)
def test_every_frame_is_in_windows_or_skipped_once(
    steps: list[Step], window: int, hop_share: float, spare: int, backlog: int | None
) -> None:
    hop = max(1, int(window * hop_share))
    feed, reader = make(window + hop + spare, window=window, hop=hop, backlog=backlog)
    items: list[Window | Skipped] = []
    for kind, amount in steps:
        if kind == "read":
            got = reader.ready(amount)
            assert len(got) <= amount
            items += got
        else:
            getattr(feed, kind)(amount)
    feed.ring.finish()
    while not reader.exhausted:
        assert reader.has_ready
        items += reader.ready(3)
    assert not reader.has_ready
    check(items, feed.is_sound, window=window, hop=hop)


@settings(max_examples=40, deadline=None)
@given(steps=STEPS, limit=st.integers(1, 9))
def test_a_replay_loses_nothing_to_a_slow_reader(steps: list[Step], limit: int) -> None:
    doorbell = threading.Condition()
    ring = Ring(40, policy="wait", doorbell=doorbell)
    reader = WindowReader(ring, source="s", window_frames=10, hop_frames=5)
    feed = Feed(ring, [])

    def write() -> None:
        for kind, amount in steps:
            if kind != "read":
                getattr(feed, kind)(amount)
        ring.finish()

    writer = threading.Thread(target=write)
    writer.start()
    items: list[Window | Skipped] = []
    while not reader.exhausted:
        with doorbell:
            assert doorbell.wait_for(lambda: reader.has_ready or reader.exhausted, timeout=DEADLINE_S)
        items += reader.ready(limit)
    writer.join(DEADLINE_S)
    check(items, feed.is_sound, window=10, hop=5)
    assert all(isinstance(item, Window) or item.reason is not LossReason.OVERWRITTEN for item in items)


def test_windows_follow_each_other_on_the_hop_grid_from_the_first_frame() -> None:
    feed, reader = make()
    feed.block(23)
    assert brief(reader.ready(9)) == [(0, False), (5, True), (10, True)]
    assert reader.ready(9) == []
    feed.block(2)
    assert brief(reader.ready(9)) == [(15, True)]


def test_limit_is_kept_and_the_rest_comes_later() -> None:
    feed, reader = make()
    feed.block(100)
    assert brief(reader.ready(2)) == [(0, False), (5, True)]
    assert brief(reader.ready(1)) == [(10, True)]


def test_no_window_straddles_a_gap_and_the_grid_begins_anew_behind_it() -> None:
    feed, reader = make()
    feed.block(13)
    feed.gap(4)
    feed.block(16)
    assert brief(reader.ready(9)) == [
        (0, False),
        (10, 3, LossReason.GAP),
        (13, 4, LossReason.DEVICE_ABSENT),
        (17, False),
        (22, True),
    ]


def test_sound_between_gaps_too_short_for_a_window_is_told() -> None:
    feed, reader = make()
    for _ in range(2):
        feed.block(9)
        feed.gap(1)
    assert brief(reader.ready(9)) == [
        (0, 9, LossReason.GAP),
        (9, 1, LossReason.DEVICE_ABSENT),
        (10, 9, LossReason.GAP),
        (19, 1, LossReason.DEVICE_ABSENT),
    ]


def test_gap_is_told_as_it_grows() -> None:
    feed, reader = make()
    feed.gap(7)
    assert brief(reader.ready(9)) == [(0, 7, LossReason.DEVICE_ABSENT)]
    feed.gap(3)
    assert brief(reader.ready(9)) == [(7, 3, LossReason.DEVICE_ABSENT)]


def test_end_of_a_recording_leaves_a_tail() -> None:
    feed, reader = make()
    feed.block(18)
    feed.ring.finish()
    assert brief(reader.ready(9)) == [(0, False), (5, True), (15, 3, LossReason.TAIL)]
    assert reader.exhausted


def test_scorer_behind_drops_the_oldest_whole_windows() -> None:
    feed, reader = make(backlog=2)
    feed.block(10)
    assert brief(reader.ready(9)) == [(0, False)]
    feed.block(50)
    # Ten windows wait (5 .. 50), two may: eight go; 10 is where the last window ended, 45 where the next one starts.
    assert brief(reader.ready(9)) == [(10, 35, LossReason.LATE), (45, False), (50, True)]
    assert reader.late_windows == 8
    assert reader.backlog_frames == 5


def test_scorer_behind_counts_sound_on_both_sides_of_a_gap() -> None:
    feed, reader = make(backlog=1)
    feed.block(20)
    feed.gap(5)
    feed.block(20)
    assert brief(reader.ready(9)) == [
        (0, 15, LossReason.LATE),
        (15, 5, LossReason.GAP),
        (20, 5, LossReason.DEVICE_ABSENT),
        (25, 10, LossReason.LATE),
        (35, False),
    ]


def test_overwritten_sound_is_told_and_a_full_window_follows() -> None:
    feed, reader = make(20)
    feed.block(12)
    assert brief(reader.ready(9)) == [(0, False)]
    feed.block(23)
    assert brief(reader.ready(9)) == [(10, 5, LossReason.OVERWRITTEN), (15, False), (20, True), (25, True)]
    assert reader.overwritten_frames == 5


def test_arrival_of_a_window_is_that_of_its_last_frame() -> None:
    feed, reader = make()
    for _ in range(5):
        feed.block(4)
    arrivals = [item.captured_ns for item in reader.ready(9) if isinstance(item, Window)]
    assert arrivals == [12, 16, 20]


def test_windows_own_their_samples() -> None:
    feed, reader = make(20)
    feed.block(10)
    (window,) = reader.ready(1)
    assert isinstance(window, Window)
    feed.block(40)
    np.testing.assert_array_equal(window.samples, np.arange(10))
