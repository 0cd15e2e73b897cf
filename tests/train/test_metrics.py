"""The rules of the comparison, on cases that can be counted by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from edgeasd_train.corpus.annotations import Annotation
from edgeasd_train.judging.alarms import (
    Alarms,
    Detection,
    Rules,
    WindowScores,
    best_within,
    count_false_alarms,
    detect,
    far_from_events,
    judge_alarms,
    positives,
    quiet_hours,
    sweep,
    window_auc,
)
from edgeasd_train.judging.roc import Array

RULES = Rules()


def _windows(scores: Sequence[float], *, hop_s: float = 0.5) -> WindowScores:
    """Return windows of one second."""
    start_s = hop_s * np.arange(len(scores), dtype=np.float64)
    return WindowScores(start_s, start_s + 1.0, np.array(scores, float))


def _events(*spans: tuple[float, float]) -> list[Annotation]:
    return [Annotation(onset_s, offset_s) for onset_s, offset_s in spans]


def _best(windows: WindowScores, events: Sequence[Annotation], *, per_hour: float) -> Detection:
    swept = sweep(windows, events, up_to_per_hour=per_hour, hours=1.0, rules=RULES)
    return best_within(swept, per_hour=per_hour, hours=1.0)


def _spans(*spans: tuple[float, float]) -> tuple[Array, Array]:
    return np.array([span[0] for span in spans], float), np.array([span[1] for span in spans], float)


def _high(n_windows: int, *at: int) -> list[float]:
    return [1.0 if index in at else 0.0 for index in range(n_windows)]


def test_the_rules_are_those_of_the_comparison() -> None:
    assert (RULES.min_overlap_s, RULES.guard_s, RULES.merge_s, RULES.long_s) == (0.3, 1.0, 2.0, 10.0)


@pytest.mark.parametrize(
    ("onset_s", "offset_s", "expected"),
    [
        (0.7, 0.95, [1, 1, 0]),  # a short event counts where it is held whole
        (0.7, 1.2, [1, 1, 0]),  # 0.3 s of it lie in the first window, all of it in the second, 0.2 s in the third
        (0.71, 1.3, [0, 1, 1]),  # 0.29 s are too little, 0.3 s are enough
        (0.0, 2.0, [1, 1, 1]),
        (2.0, 3.0, [0, 0, 0]),  # touching is not holding
    ],
)
def test_a_window_that_holds_enough_of_an_event_is_positive(
    onset_s: float, offset_s: float, expected: list[int]
) -> None:
    windows = _windows([0.0] * 3)
    assert positives(windows, _events((onset_s, offset_s)), RULES).tolist() == [bool(one) for one in expected]


def test_the_parts_of_two_events_do_not_add_up() -> None:
    windows = _windows([0.0])
    assert not positives(windows, _events((-1.0, 0.2), (0.8, 3.0)), RULES).any()


def test_windows_with_too_little_of_an_event_are_not_counted_at_all() -> None:
    windows = _windows([0.1, 0.9, 0.8, 0.2], hop_s=1.0)  # 0.2 s of the event lie in the second window
    events = _events((1.8, 3.0))
    assert positives(windows, events, RULES).tolist() == [False, False, True, False]
    assert window_auc(windows, events, RULES) == 1.0  # the second scores higher, but is left out


def test_the_auc_is_that_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    for _ in range(5):
        scores = np.round(random.random(400), 2)  # with ties
        onsets_s = np.sort(random.uniform(0.0, 190.0, 8))
        events = _events(*((float(onset), float(onset) + 2.0) for onset in onsets_s))
        windows = _windows([float(score) for score in scores])
        overlap = np.array(
            [
                [min(end, e.offset_s) - max(start, e.onset_s) for e in events]
                for start, end in zip(windows.start_s, windows.end_s, strict=True)
            ]
        ).max(axis=1)
        counted = (overlap >= 0.3) | (overlap <= 0.0)
        expected = roc_auc_score(overlap[counted] >= 0.3, scores[counted])
        assert window_auc(windows, events, RULES) == pytest.approx(expected)


def test_the_auc_of_one_class_is_unknown() -> None:
    assert math.isnan(window_auc(_windows([0.1, 0.2]), _events((0.0, 9.0)), RULES))
    assert math.isnan(window_auc(_windows([0.1, 0.2]), _events((5.0, 9.0)), RULES))
    assert math.isnan(window_auc(_windows([0.1, 0.2]), [], RULES))


@pytest.mark.parametrize(
    ("spans", "count"),
    [
        ((), 0),
        (((0.0, 1.0),), 1),
        (((0.0, 1.0), (2.9, 3.9)), 1),  # 1.9 s apart
        (((0.0, 1.0), (3.0, 4.0)), 2),  # 2 s apart
        (((0.0, 5.0), (1.0, 2.0), (6.0, 7.0)), 1),  # 4 s behind the second, 1 s behind the first
        (((0.0, 10.0),), 1),
        (((0.0, 10.5),), 2),
        (((0.0, 20.0),), 2),
        (((0.0, 20.1),), 3),
        (((0.0, 6.0), (7.0, 12.0)), 2),  # merged, they last 12 s
        (((0.0, 12.0), (20.0, 21.0)), 3),
    ],
)
def test_false_alarms_are_counted_as_groups(spans: tuple[tuple[float, float], ...], count: int) -> None:
    assert count_false_alarms(*_spans(*spans), RULES) == count


def test_what_is_close_to_an_event_is_no_false_alarm() -> None:
    start_s, end_s = _spans((0.0, 8.9), (8.0, 9.0), (8.5, 9.5), (12.0, 13.0), (13.0, 14.0), (13.1, 14.1))
    far = far_from_events(start_s, end_s, _events((10.0, 12.0)), 1.0)
    assert far.tolist() == [True, False, False, False, False, True]


@pytest.mark.parametrize(
    ("events", "hours"),
    [
        (_events(), 100 / 3600),
        (_events((20.0, 30.0)), 88 / 3600),
        (_events((20.0, 30.0), (31.5, 40.0)), 78 / 3600),  # the guards meet: 19 to 41 is left out
        (_events((20.0, 60.0), (30.0, 40.0)), 58 / 3600),  # one within another
        (_events((0.5, 2.0)), 97 / 3600),
        (_events((98.0, 130.0)), 97 / 3600),
        (_events((0.0, 100.0)), 0.0),
        (_events((200.0, 300.0)), 100 / 3600),
    ],
)
def test_hours_are_those_in_which_an_alarm_would_be_false(events: list[Annotation], hours: float) -> None:
    assert quiet_hours(events, from_s=0.0, to_s=100.0, guard_s=1.0) == pytest.approx(hours)


def test_a_threshold_is_judged() -> None:
    # Windows start every half second; the event is at 10 to 12 s.
    windows = _windows(_high(60, 2, 22, 23, 40, 41))
    found = detect(windows, _events((10.0, 12.0)), threshold=1.0, hours=0.5, rules=RULES)
    assert (found.recall, found.false_alarms, found.false_alarms_per_hour) == (1.0, 2, 4.0)
    assert found.median_delay_s == pytest.approx(2.0)  # the window from 11 s on is full at 12 s


def test_the_delay_is_the_median_over_what_was_found() -> None:
    windows = _windows(_high(100, 20, 61, 85))
    events = _events((10.0, 11.0), (30.0, 31.0), (42.0, 43.0), (20.0, 21.0))
    found = detect(windows, events, threshold=1.0, hours=1.0, rules=RULES)
    assert found.recall == 0.75
    assert found.median_delay_s == pytest.approx(1.5)  # of 1.0, 1.5 and 1.5
    assert found.false_alarms == 0


def test_windows_beside_an_event_are_neither_hit_nor_false_alarm() -> None:
    windows = _windows(_high(60, 17))  # 8.5 to 9.5 s
    found = detect(windows, _events((10.0, 12.0)), threshold=1.0, hours=1.0, rules=RULES)
    assert (found.recall, found.false_alarms) == (0.0, 0)
    assert math.isnan(found.median_delay_s)


def test_without_hours_there_is_no_rate() -> None:
    found = detect(_windows([1.0]), _events((0.0, 1.0)), threshold=1.0, hours=0.0, rules=RULES)
    assert math.isnan(found.false_alarms_per_hour)
    assert found.recall == 1.0


def test_the_lowest_threshold_within_the_limit_is_taken() -> None:
    scores = [0.0] * 100
    scores[20], scores[60], scores[70], scores[80] = 0.5, 0.9, 0.8, 0.3  # the first is the event
    events = _events((10.0, 11.0))
    for per_hour, threshold, recall in ((0.0, math.inf, 0.0), (1.0, 0.9, 0.0), (2.0, 0.5, 1.0), (3.0, 0.3, 1.0)):
        found = _best(_windows(scores), events, per_hour=per_hour)
        assert (found.threshold, found.recall) == (threshold, recall)
        assert found.false_alarms <= per_hour


def test_all_higher_thresholds_keep_to_the_limit_as_well() -> None:
    # At 0.8 two windows 3 s apart are two false alarms; at 0.5 what lies between makes them one again.
    scores = [0.0] * 100
    scores[50], scores[58] = 0.9, 0.8
    scores[52] = scores[54] = scores[56] = 0.5
    events = _events((10.0, 11.0))
    at_low = detect(_windows(scores), events, threshold=0.5, hours=1.0, rules=RULES)
    assert at_low.false_alarms == 1
    assert _best(_windows(scores), events, per_hour=1.0).threshold == 0.9


def test_a_sweep_serves_every_lower_limit() -> None:
    random = np.random.default_rng(0)
    windows = _windows([float(score) for score in random.random(400)])
    events = _events((10.0, 12.0), (50.0, 51.0), (90.0, 90.5))
    swept = sweep(windows, events, up_to_per_hour=60.0, hours=1.0, rules=RULES)
    assert swept[0].threshold == math.inf
    assert all(one.threshold > other.threshold for one, other in itertools.pairwise(swept))
    assert max(found.false_alarms for found in swept) <= 60
    for per_hour in (0.0, 6.0, 30.0):
        assert best_within(swept, per_hour=per_hour, hours=1.0) == _best(windows, events, per_hour=per_hour)


def test_equal_scores_stand_or_fall_together() -> None:
    scores = [0.0] * 100
    scores[20] = scores[60] = 0.7
    found = _best(_windows(scores), _events((10.0, 11.0)), per_hour=0.0)
    assert (found.threshold, found.recall) == (math.inf, 0.0)


def test_only_what_lies_behind_the_learned_part_is_judged() -> None:
    windows = _windows([0.0, 1.0, 2.0, 3.0]).after(0.5)
    assert windows.start_s.tolist() == [0.5, 1.0, 1.5]
    assert windows.score.tolist() == [1.0, 2.0, 3.0]
    assert _windows([0.0]).after(5.0).score.size == 0


def test_reported_events_are_judged() -> None:
    alarms = Alarms(*_spans((1.0, 2.0), (3.5, 4.5), (9.5, 10.5), (30.0, 42.0), (60.0, 61.0)))
    events = _events((10.0, 12.0), (20.0, 21.0), (60.5, 60.9))
    found = judge_alarms(alarms, events, hours=2.0, rules=RULES)
    assert found.recall == pytest.approx(2 / 3)
    assert (found.false_alarms, found.false_alarms_per_hour) == (3, 1.5)  # one, and one of twelve seconds
    none = judge_alarms(Alarms(*_spans()), events, hours=2.0, rules=RULES)
    assert (none.recall, none.false_alarms) == (0.0, 0)
    assert math.isnan(none.median_delay_s)
