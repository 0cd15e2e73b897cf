"""From opinions to events: when one starts, how it is told, and when it is over."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from edgeasd.records import Band, Event, EventType, Opinion
from edgeasd.scoring.alarm import EventTracker, Levels, Timing, Verdict, new_ulid, surprise

START, UPDATE, END = EventType.START, EventType.UPDATE, EventType.END

WINDOW, HOP = 10, 5
TIMING = Timing(release_frames=30, merge_frames=20, update_frames=100)
LEVELS = Levels(enter=3.0, leave=2.0)
LOOK_AHEAD = 12


def _verdict(index: int, score: float) -> Verdict:
    band = Band(low_hz=float(index), high_hz=index + 1.0, share=1.0)
    first_frame = index * HOP
    return Verdict(first_frame, first_frame + WINDOW, Opinion(score, 10.0**-score), lambda: (band,))


@dataclass(frozen=True, slots=True)
class _Told:
    """An event and the index of the window at which it was told."""

    at: int
    event: Event

    @property
    def brief(self) -> tuple[int, EventType, bool | None]:
        return self.at, self.event.event_type, self.event.confirmed

    @property
    def span(self) -> tuple[int, int]:
        return self.event.start_frame, self.event.end_frame


def _tracker(*lanes: str, confirmed: bool = False, timing: Timing = TIMING) -> EventTracker:
    return EventTracker(
        source="mic0",
        timing=timing,
        prompt_levels=dict.fromkeys(lanes or ("model",), LEVELS),
        confirm_levels=LEVELS if confirmed else None,
    )


def _drive(tracker: EventTracker, prompt: Sequence[float], confirm: Sequence[float] | None = None) -> list[_Told]:
    """Feed one window after another; the second look comes `LOOK_AHEAD` windows late."""
    told: list[_Told] = []
    for index, score in enumerate(prompt):
        events = tracker.prompt(next(iter(tracker.prompt_levels)), _verdict(index, score))
        older = index - LOOK_AHEAD
        if confirm is not None and older >= 0:
            events += tracker.confirm(_verdict(older, confirm[older]))
        events += tracker.settle(index * HOP + WINDOW)
        told += [_Told(index, event) for event in events]
    return told


def _scores(n_windows: int, *, high: Sequence[int] = (), mid: Sequence[int] = ()) -> list[float]:
    return [5.0 if index in high else 2.5 if index in mid else 0.0 for index in range(n_windows)]


def test_a_ulid_has_its_form() -> None:
    assert re.fullmatch(r"[0-7][0-9A-HJKMNP-TV-Z]{25}", new_ulid())
    assert new_ulid(0).startswith("0000000000")
    assert new_ulid((1 << 48) - 1).startswith("7ZZZZZZZZZ")
    assert new_ulid(1469918176385).startswith("01ARYZ6S41")  # the example of the specification


def test_ulids_sort_by_time_and_never_meet() -> None:
    stamps = [0, 1, 31, 32, 1023, 1024, 1_700_000_000_000, 1_700_000_000_001, 1_900_000_000_000]
    ulids = [new_ulid(stamp) for stamp in stamps]
    assert ulids == sorted(ulids)
    assert len({new_ulid(5) for _ in range(1000)}) == 1000
    before = new_ulid(time.time_ns() // 1_000_000)
    assert new_ulid()[:10] >= before[:10]


def test_surprise_counts_the_noughts() -> None:
    assert surprise(0.001) == pytest.approx(3.0)
    assert surprise(5e-324) == pytest.approx(323.3, abs=0.1)
    assert str(surprise(1.0)) == "0.0"  # a negative zero would look odd on the wire


def test_quiet_sound_says_nothing() -> None:
    tracker = _tracker()
    assert _drive(tracker, [2.9] * 50) == []
    assert not tracker.active
    assert tracker.interrupt() == []


def test_an_event_starts_at_once_and_ends_once_released() -> None:
    told = _drive(_tracker(), _scores(40, high=[10, 11]))
    assert [one.brief for one in told] == [(10, START, None), (17, END, None)]  # 65 + 30 frames on
    assert told[0].span == (50, 60)
    assert told[1].span == (50, 65)
    assert len({one.event.event_id for one in told}) == 1
    assert told[1].event.source == "mic0"


def test_the_level_to_enter_is_enough_and_anything_less_is_not() -> None:
    assert _drive(_tracker(), [0.0, 3.0, 0.0])[0].at == 1
    assert _drive(_tracker(), [0.0, 2.999, 0.0]) == []


def test_the_onset_reaches_back_over_the_run_above_the_lower_level() -> None:
    told = _drive(_tracker(), _scores(40, high=[10], mid=[4, 7, 8, 9, 11, 12]))
    assert told[0].brief == (10, START, None)
    assert told[0].span == (35, 60)  # window 4 belongs to another run
    assert told[-1].span == (35, 70)


def test_an_event_outlasts_dips_shorter_than_the_release() -> None:
    # Window 10 ends at 60; the lane closes with the first window that ends at 90 or later: window 16.
    told = _drive(_tracker(), _scores(40, high=[10], mid=[15]))
    assert [one.event.event_type for one in told] == [START, END]
    assert told[-1].span == (50, 85)
    told = _drive(_tracker(), _scores(40, high=[10], mid=[17]))
    assert told[-1].span == (50, 60)


@pytest.mark.parametrize(("second", "n_events"), [(15, 1), (16, 2)])
def test_what_lies_closer_than_the_merge_distance_is_one_event(second: int, n_events: int) -> None:
    quick = Timing(release_frames=5, merge_frames=20, update_frames=1000)
    told = _drive(_tracker(timing=quick), _scores(40, high=[10, second]))  # window 10 ends at 60
    assert len({one.event.event_id for one in told}) == n_events
    ends = [one for one in told if one.event.event_type is END]
    assert [one.span for one in ends] == ([(50, 85)] if n_events == 1 else [(50, 60), (80, 90)])


def test_the_peak_is_the_rarest_window_and_only_peaks_are_explained() -> None:
    asked: list[int] = []

    def explained(index: int, score: float) -> Verdict:
        verdict = _verdict(index, score)

        def explain() -> tuple[Band, ...]:
            asked.append(index)
            return verdict.explain()

        return Verdict(verdict.first_frame, verdict.end_frame, verdict.opinion, explain)

    tracker = _tracker()
    for index, score in enumerate([0.0, 3.5, 3.2, 6.0, 4.0, 0.0]):
        tracker.prompt("model", explained(index, score))
    (end,) = tracker.interrupt()
    assert asked == [1, 3]
    assert end.peak_frame == 15
    assert end.peak_score == pytest.approx(6.0)
    assert end.p_value == pytest.approx(1e-6)
    assert end.bands == (Band(3.0, 4.0, 1.0),)


def test_an_event_that_goes_on_is_told_again_and_again() -> None:
    told = _drive(_tracker(), _scores(60, high=range(10, 55)))
    updates = [one for one in told if one.event.event_type is UPDATE]
    assert [one.at for one in updates] == [30, 50]  # every 100 frames
    assert [one.span for one in updates] == [(50, 160), (50, 260)]


def test_the_second_look_confirms() -> None:
    scores = _scores(60, high=[10, 11])
    tracker = _tracker(confirmed=True)
    told = _drive(tracker, scores, scores)
    assert [one.brief for one in told[:2]] == [(10, START, None), (10 + LOOK_AHEAD, UPDATE, True)]
    assert {one.event.confirmed for one in told[1:]} == {True}
    assert told[-1].brief[1:] == (END, True)
    assert told[-1].span == (50, 65)
    assert len({one.event.event_id for one in told}) == 1
    assert not tracker.active


def test_the_second_look_takes_back() -> None:
    told = _drive(_tracker(confirmed=True), _scores(60, high=[10, 11]), [0.0] * 60)
    start, *_, end = told
    assert start.brief == (10, START, None)
    assert end.brief[1:] == (END, False)
    # Nothing is taken back before all that could belong to it was looked at: window 17 is the first from 65 + 20 on.
    assert end.at == 17 + LOOK_AHEAD
    assert all(one.event.confirmed is None for one in told[:-1])


def test_the_second_look_finds_what_was_missed_and_says_when_it_was() -> None:
    told = _drive(_tracker(confirmed=True), [0.0] * 60, _scores(60, high=[10, 11], mid=[9]))
    assert told[0].brief == (10 + LOOK_AHEAD, START, True)
    assert told[0].span == (45, 60)  # in the past
    assert told[-1].brief[1:] == (END, True)
    assert told[-1].span == (45, 65)
    assert sum(one.event.event_type is START for one in told) == 1
    assert sum(one.event.event_type is END for one in told) == 1


def test_a_rarer_second_look_moves_the_peak() -> None:
    prompt, confirm = _scores(60, high=[10, 11]), [0.0] * 60
    confirm[11] = 8.0
    end = _drive(_tracker(confirmed=True), prompt, confirm)[-1].event
    assert end.peak_frame == 55
    assert end.peak_score == pytest.approx(8.0)


def test_two_stories_can_be_under_way() -> None:
    # The second begins while the first, over for the prompt lane, still waits for its second look.
    scores = _scores(70, high=[10, 22])
    tracker = _tracker(confirmed=True)
    told = _drive(tracker, scores, scores)
    starts = [one for one in told if one.event.event_type is START]
    ends = [one for one in told if one.event.event_type is END]
    assert [one.at for one in starts] == [10, 22]
    assert starts[1].at < ends[0].at
    assert [one.span for one in ends] == [(50, 60), (110, 120)]
    assert [one.event.confirmed for one in ends] == [True, True]
    assert [one.event.event_id for one in ends] == [one.event.event_id for one in starts]


def test_one_of_two_stories_is_taken_back() -> None:
    told = _drive(_tracker(confirmed=True), _scores(70, high=[10, 22]), _scores(70, high=[22]))
    ends = [one for one in told if one.event.event_type is END]
    assert [(one.span, one.event.confirmed) for one in ends] == [((50, 60), False), ((110, 120), True)]


def test_two_prompt_lanes_tell_one_story() -> None:
    tracker = _tracker("novelty", "model")
    assert [event.event_type for event in tracker.prompt("novelty", _verdict(10, 4.0))] == [START]
    assert tracker.prompt("model", _verdict(10, 5.0)) == []
    assert tracker.prompt("model", _verdict(11, 2.5)) == []
    assert tracker.settle(65) == []
    (end,) = tracker.interrupt()
    assert (end.start_frame, end.end_frame) == (50, 65)
    assert end.peak_score == pytest.approx(5.0)


def test_a_lane_that_reaches_back_further_moves_the_start() -> None:
    tracker = _tracker("novelty", "model")
    (start,) = tracker.prompt("novelty", _verdict(10, 4.0))
    tracker.prompt("model", _verdict(8, 2.5))
    tracker.prompt("model", _verdict(9, 2.5))
    tracker.prompt("model", _verdict(10, 4.0))
    assert start.start_frame == 50
    assert tracker.interrupt()[0].start_frame == 40


def test_a_gap_ends_everything() -> None:
    tracker = _tracker(confirmed=True)
    _drive(tracker, _scores(12, high=[10, 11]), [0.0] * 12)
    assert tracker.active
    (end,) = tracker.interrupt()
    assert (end.event_type, end.confirmed, end.end_frame) == (END, None, 65)  # nobody looked twice
    assert tracker.interrupt() == []


def test_a_gap_after_the_second_look_says_what_it_found() -> None:
    tracker = _tracker(confirmed=True)
    _drive(tracker, _scores(25, high=[10, 11]), [0.0] * 25)
    assert [event.confirmed for event in tracker.interrupt()] == [False]
    tracker = _tracker(confirmed=True)
    _drive(tracker, _scores(24, high=[10, 11]), _scores(24, high=[10, 11]))
    assert [event.confirmed for event in tracker.interrupt()] == [True]


def test_nothing_is_joined_across_a_gap() -> None:
    tracker = _tracker()
    (first,) = tracker.prompt("model", _verdict(10, 5.0))
    tracker.interrupt()
    tracker.prompt("model", _verdict(13, 2.5))
    (second,) = tracker.prompt("model", _verdict(14, 5.0))
    assert first.event_id != second.event_id
    assert second.start_frame == 65  # not the run of before


def test_an_update_is_not_due_while_a_second_look_has_just_spoken() -> None:
    scores = _scores(60, high=range(10, 20))
    told = _drive(_tracker(confirmed=True), scores, scores)
    n_told = [one.at for one in told if one.event.event_type is UPDATE]
    assert len(n_told) == len(set(n_told)), "two updates of one event with one window"


def test_identities_carry_the_time_they_were_given() -> None:
    tracker = EventTracker(
        source="mic0", timing=TIMING, prompt_levels={"model": LEVELS}, confirm_levels=None, now_ms=lambda: 1469918176385
    )
    (event,) = tracker.prompt("model", _verdict(0, 4.0))
    assert event.event_id.startswith("01ARYZ6S41")
