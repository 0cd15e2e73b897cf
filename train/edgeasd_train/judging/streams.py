"""Figures of long recordings with annotated events, from the tables that the node's own replay writes."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from rich.table import Table

from edgeasd.errors import CannotWriteError, InputError
from edgeasd_train.corpus.annotations import Annotation
from edgeasd_train.judging.alarms import (
    Alarms,
    Detection,
    Rules,
    WindowScores,
    best_within,
    judge_alarms,
    quiet_hours,
    sweep,
    window_auc,
)

LANES = ("score", "confirmed", "prompt", "model")
LEARNED_MARGIN_S = 5.0
"""By the rules of the comparison what lies before the first onset less this was there to learn from."""
UP_TO_PER_HOUR = 120.0
"""How far the curves of recall against false alarms go."""


@dataclass(frozen=True, slots=True)
class LaneFigures:
    """How well one column of scores.csv finds the events of a recording."""

    recording: str
    lane: str
    auc: float
    recall_at_6: float
    delay_at_6_s: float
    recall_at_60: float
    delay_at_60_s: float


@dataclass(frozen=True, slots=True)
class AlarmFigures:
    """How well the reported events, at the node's own threshold, match the annotated ones."""

    recording: str
    n_annotated: int
    n_reported: int
    recall: float
    false_alarms_per_hour: float
    median_delay_s: float
    """From onset to the start of the reported event, 0 when that is earlier; a confirming event is told later."""
    hours: float


@dataclass(frozen=True, slots=True)
class RecordingFigures:
    """Everything measured on one recording."""

    lanes: tuple[LaneFigures, ...]
    alarms: AlarmFigures


@dataclass(frozen=True, slots=True)
class Played:
    """What the node said of a recording."""

    lanes: Mapping[str, WindowScores]
    """By lane, those that said anything; without windows of faulty sound."""
    alarms: Alarms
    end_s: float


@dataclass(frozen=True, slots=True)
class Judged:
    """The figures of a recording, and what pictures are drawn from."""

    figures: RecordingFigures
    events: Sequence[Annotation]
    played: Played
    sweeps: Mapping[str, Sequence[Detection]]
    """By lane: thresholds from the highest down to `UP_TO_PER_HOUR` false alarms."""
    judged_from_s: float


SILENT = Played({}, Alarms(np.empty(0), np.empty(0)), 0.0)
"""A recording of which the node said nothing."""


def read_played(scores_csv: Path, events_csv: Path) -> dict[str, Played]:
    """Return what the node's tables hold, by recording."""
    scores, events = _by_file(scores_csv), _by_file(events_csv)
    found = {}
    for file, rows in scores.items():
        lanes = {lane: windows for lane in LANES if (windows := _lane(rows, lane)).score.size}
        told = sorted(events.get(file, ()), key=lambda row: float(row["start_s"]))
        alarms = Alarms(*(np.array([float(row[key]) for row in told]) for key in ("start_s", "end_s")))
        found[file] = Played(lanes, alarms, max(float(row["end_s"]) for row in rows))
    return found


def judge(file: str, played: Played, events: Sequence[Annotation], *, rules: Rules) -> Judged:
    """Take the figures of one recording from what the node said.

    Judged is what follows the first onset less `LEARNED_MARGIN_S`; hours are those of it that hold no event.
    """
    from_s = max(0.0, events[0].onset_s - LEARNED_MARGIN_S)
    if played.end_s <= from_s:
        raise InputError(f"{file}: its {played.end_s:g} s end before what is to be judged, from {from_s:g} s on")
    hours = quiet_hours(events, from_s=from_s, to_s=played.end_s, guard_s=rules.guard_s)
    lanes, sweeps = [], {}
    for lane, all_windows in played.lanes.items():
        windows = all_windows.after(from_s)
        if windows.score.size:
            sweeps[lane] = sweep(windows, events, up_to_per_hour=UP_TO_PER_HOUR, hours=hours, rules=rules)
            lanes.append(_lane_figures(file, lane, window_auc(windows, events, rules), sweeps[lane], hours=hours))
    late = played.alarms.end_s > from_s
    alarms = Alarms(played.alarms.start_s[late], played.alarms.end_s[late])
    found = judge_alarms(alarms, events, hours=hours, rules=rules)
    counts = AlarmFigures(
        file, len(events), int(late.sum()), found.recall, found.false_alarms_per_hour, found.median_delay_s, hours
    )
    return Judged(RecordingFigures(tuple(lanes), counts), events, played, sweeps, from_s)


def _by_file(path: Path) -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = {}
    with path.open(newline="", encoding="utf-8") as handle:
        for row in csv.DictReader(handle):
            found.setdefault(row["file"], []).append(row)
    return found


def _lane(rows: Sequence[dict[str, str]], lane: str) -> WindowScores:
    kept = [row for row in rows if row[lane] != "" and row["valid"] == "true"]
    return WindowScores(*(np.array([float(row[key]) for row in kept]) for key in ("start_s", "end_s", lane)))


def _lane_figures(file: str, lane: str, auc: float, swept: Sequence[Detection], *, hours: float) -> LaneFigures:
    at_6, at_60 = (best_within(swept, per_hour=per_hour, hours=hours) for per_hour in (6.0, 60.0))
    return LaneFigures(
        recording=file,
        lane=lane,
        auc=auc,
        recall_at_6=at_6.recall,
        delay_at_6_s=at_6.median_delay_s,
        recall_at_60=at_60.recall,
        delay_at_60_s=at_60.median_delay_s,
    )


def write_figures(out: Path, figures: Sequence[RecordingFigures]) -> None:
    """Write windows.csv and alarms.csv."""
    _write(out / "windows.csv", LaneFigures, [lane for one in figures for lane in one.lanes])
    _write(out / "alarms.csv", AlarmFigures, [one.alarms for one in figures])


def _write(path: Path, kind: type[LaneFigures | AlarmFigures], figures: Sequence[LaneFigures | AlarmFigures]) -> None:
    try:
        with path.open("w", newline="", encoding="utf-8") as handle:
            table = csv.DictWriter(handle, [field.name for field in fields(kind)], lineterminator="\n")
            table.writeheader()
            table.writerows({key: _text(value) for key, value in asdict(one).items()} for one in figures)
    except OSError as exc:
        raise CannotWriteError(f"{path}: cannot be written: {exc.strerror}") from exc


def _text(value: float | str) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4f}"
    return str(value)


def mean_of_lane(figures: Sequence[RecordingFigures], lane: str) -> LaneFigures | None:
    """Return the mean over the recordings that have the lane; delays over those where something was found."""
    rows = [row for one in figures for row in one.lanes if row.lane == lane]
    if not rows:
        return None

    def mean(name: str) -> float:
        values = np.array([getattr(row, name) for row in rows], float)
        return float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")

    names = [field.name for field in fields(LaneFigures)][2:]
    return LaneFigures("mean", lane, **{name: mean(name) for name in names})


def window_table(figures: Sequence[RecordingFigures]) -> Table:
    """Return the window figures of each recording and lane, and their means, for a terminal."""
    table = Table("recording", "lane", "AUC", "recall at 6/h", "delay s", "recall at 60/h", "delay s", title="windows")
    means = [mean for lane in LANES if (mean := mean_of_lane(figures, lane)) is not None]
    rows = [row for one in figures for row in one.lanes] + (means if len(figures) > 1 else [])
    for row in rows:
        values = (row.auc, row.recall_at_6, row.delay_at_6_s, row.recall_at_60, row.delay_at_60_s)
        table.add_row(row.recording, row.lane, *(_shown(value) for value in values))
    return table


def alarm_table(figures: Sequence[RecordingFigures], *, budget: str) -> Table:
    """Return what the node's own threshold reports, for a terminal."""
    table = Table(
        "recording", "annotated", "reported", "recall", "false alarms/h", title=f"events at a budget of {budget}"
    )
    for alarms in (one.alarms for one in figures):
        counts = (str(alarms.n_annotated), str(alarms.n_reported))
        table.add_row(alarms.recording, *counts, _shown(alarms.recall), _shown(alarms.false_alarms_per_hour))
    if len(figures) > 1:
        recall = float(np.mean([one.alarms.recall for one in figures]))
        per_hour = float(np.mean([one.alarms.false_alarms_per_hour for one in figures]))
        table.add_row("mean", "", "", _shown(recall), _shown(per_hour))
    return table


def _shown(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
