"""Figures of merit for long recordings with annotated events.

The rules are those of the comparison the project measures itself by: one-second windows, judged against onset and
offset; false alarms are counted as groups, the way a person who is called out would count them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeasd_train.corpus.annotations import Annotation
from edgeasd_train.judging.roc import Array, auc

BoolArray = NDArray[np.bool_]

S_PER_HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Rules:
    """What counts as a hit and as a false alarm."""

    min_overlap_s: float = 0.3
    """A window is positive, for the AUC, when it holds at least this much of an event."""
    guard_s: float = 1.0
    """Windows this close to an event are neither hits nor false alarms."""
    merge_s: float = 2.0
    """Windows over the threshold closer than this are one false alarm."""
    long_s: float = 10.0
    """A false alarm that lasts counts once per started stretch of this length."""


@dataclass(frozen=True, slots=True)
class WindowScores:
    """Scores of the windows of one recording, in order of time."""

    start_s: Array
    """Shape (n_windows,)."""
    end_s: Array
    score: Array
    """Higher is stranger, finite."""

    def after(self, judged_from_s: float) -> WindowScores:
        """Return the windows that start at `judged_from_s` or later."""
        keep = self.start_s >= judged_from_s - 1e-9
        return WindowScores(self.start_s[keep], self.end_s[keep], self.score[keep])


@dataclass(frozen=True, slots=True)
class Detection:
    """What a threshold finds."""

    threshold: float
    recall: float
    delays_s: tuple[float, ...]
    """Of each event that was found: from onset to the end of the first window over the threshold."""
    false_alarms: int
    false_alarms_per_hour: float
    """NaN when there is no time in which an alarm would be false."""

    @property
    def median_delay_s(self) -> float:
        """Return the median delay; NaN when nothing was found."""
        return float(np.median(self.delays_s)) if self.delays_s else float("nan")


def _overlap_s(windows: WindowScores, event: Annotation) -> Array:
    return np.minimum(windows.end_s, event.offset_s) - np.maximum(windows.start_s, event.onset_s)


def positives(windows: WindowScores, events: Sequence[Annotation], rules: Rules) -> BoolArray:
    """Return which windows hold enough of an event to count as positive, shape (n_windows,)."""
    held = np.zeros(len(windows.start_s), bool)
    for event in events:
        enough_s = min(rules.min_overlap_s, event.offset_s - event.onset_s)
        held |= _overlap_s(windows, event) >= enough_s - 1e-9
    return held


def window_auc(windows: WindowScores, events: Sequence[Annotation], rules: Rules) -> float:
    """Return the area under the ROC curve of windows; NaN when one class is missing.

    A window that holds too little of an event to be positive is neither positive nor negative: it is left out.
    """
    is_positive = positives(windows, events, rules)
    touched = np.zeros_like(is_positive)
    for event in events:
        touched |= _overlap_s(windows, event) > 1e-9
    counted = is_positive | ~touched
    if is_positive[counted].all() or not is_positive.any():
        return float("nan")
    return auc(is_positive[counted], windows.score[counted])


def quiet_hours(events: Sequence[Annotation], *, from_s: float, to_s: float, guard_s: float) -> float:
    """Return how many hours of [from_s, to_s) lie farther than `guard_s` from every event: where alarms are false."""
    quiet_s, at_s = 0.0, from_s
    for event in sorted(events, key=lambda event: event.onset_s):
        quiet_s += max(0.0, min(to_s, event.onset_s - guard_s) - at_s)
        at_s = max(at_s, event.offset_s + guard_s)
    return (quiet_s + max(0.0, to_s - at_s)) / S_PER_HOUR


def count_false_alarms(start_s: Array, end_s: Array, rules: Rules) -> int:
    """Count groups of alarming stretches (sorted by start), a long group once per started `rules.long_s`."""
    count = 0
    group_start_s = group_end_s = -np.inf
    for start, end in zip(start_s, end_s, strict=True):
        if start - group_end_s >= rules.merge_s:
            count += _group_weight(group_start_s, group_end_s, rules)
            group_start_s = start
        group_end_s = max(group_end_s, end)
    return count + _group_weight(group_start_s, group_end_s, rules)


def _group_weight(start_s: float, end_s: float, rules: Rules) -> int:
    return 0 if end_s == -np.inf else max(1, int(np.ceil((end_s - start_s) / rules.long_s - 1e-9)))


def far_from_events(start_s: Array, end_s: Array, events: Sequence[Annotation], guard_s: float) -> BoolArray:
    """Return which stretches lie farther than `guard_s` from every event."""
    far = np.ones(len(start_s), bool)
    for event in events:
        far &= (start_s > event.offset_s + guard_s) | (end_s < event.onset_s - guard_s)
    return far


def detect(
    windows: WindowScores, events: Sequence[Annotation], *, threshold: float, hours: float, rules: Rules
) -> Detection:
    """Judge one threshold: windows at or above it alarm."""
    over = windows.score >= threshold
    far = far_from_events(windows.start_s, windows.end_s, events, rules.guard_s)
    alarms = count_false_alarms(windows.start_s[over & far], windows.end_s[over & far], rules)
    delays_s = [
        float(windows.end_s[hit][0]) - event.onset_s
        for event in events
        if (hit := over & (_overlap_s(windows, event) > 0)).any()
    ]
    return Detection(
        threshold=threshold,
        recall=len(delays_s) / len(events) if events else float("nan"),
        delays_s=tuple(delays_s),
        false_alarms=alarms,
        false_alarms_per_hour=_rate(alarms, hours),
    )


def _rate(count: int, hours: float) -> float:
    return count / hours if hours > 0 else float("nan")


def sweep(
    windows: WindowScores, events: Sequence[Annotation], *, up_to_per_hour: float, hours: float, rules: Rules
) -> list[Detection]:
    """Judge thresholds from above all scores downwards, while they keep to `up_to_per_hour` false alarms."""
    allowed = up_to_per_hour * hours
    found = [detect(windows, events, threshold=float("inf"), hours=hours, rules=rules)]
    for threshold in np.unique(windows.score)[::-1]:
        next_lower = detect(windows, events, threshold=float(threshold), hours=hours, rules=rules)
        if next_lower.false_alarms > allowed:
            break
        found.append(next_lower)
    return found


def best_within(swept: Sequence[Detection], *, per_hour: float, hours: float) -> Detection:
    """Return, of a sweep at least so far, the lowest threshold at which it and all higher ones keep to `per_hour`."""
    within = itertools.takewhile(lambda found: found.false_alarms <= per_hour * hours, swept)
    return list(within)[-1]


@dataclass(frozen=True, slots=True)
class Alarms:
    """Stretches of time that a detector reported with its own threshold, sorted by start."""

    start_s: Array
    end_s: Array


def judge_alarms(alarms: Alarms, events: Sequence[Annotation], *, hours: float, rules: Rules) -> Detection:
    """Judge reported events: an annotation is found when a reported stretch overlaps it."""
    far = far_from_events(alarms.start_s, alarms.end_s, events, rules.guard_s)
    count = count_false_alarms(alarms.start_s[far], alarms.end_s[far], rules)
    delays_s = [
        float(np.maximum(alarms.start_s[hit][0], event.onset_s)) - event.onset_s
        for event in events
        if (hit := (alarms.end_s > event.onset_s) & (alarms.start_s < event.offset_s)).any()
    ]
    return Detection(
        threshold=float("nan"),
        recall=len(delays_s) / len(events) if events else float("nan"),
        delays_s=tuple(delays_s),
        false_alarms=count,
        false_alarms_per_hour=_rate(count, hours),
    )
