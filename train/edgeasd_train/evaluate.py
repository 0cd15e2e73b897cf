"""Judging a bundle, and the untrained second opinion, on annotated long recordings.

What is judged is what ships: recordings go through the node's own replay, scores.csv and events.csv are what a user
would get, and the figures are taken from these.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from rich.table import Table

from edgeasd.errors import CannotWriteError, InputError
from edgeasd.replay import ReplayJob, TablePaths, replay
from edgeasd_train.metrics import (
    Alarms,
    Annotation,
    Rules,
    WindowScores,
    best_within,
    judge_alarms,
    quiet_hours,
    window_auc,
)

LANES = ("score", "confirmed", "prompt", "model")
LEARNED_MARGIN_S = 5.0
"""By the rules of the comparison what lies before the first onset less this was there to learn from."""


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
    hours: float


@dataclass(frozen=True, slots=True)
class RecordingFigures:
    """Everything measured on one recording."""

    lanes: tuple[LaneFigures, ...]
    alarms: AlarmFigures


def read_annotations(path: Path, *, files: Sequence[str] = ()) -> list[Annotation]:
    """Read onset and offset (s) and label from a CSV file; with a `file` column only the rows that name one of `files`.

    InputError names the line that cannot be read.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:  # spreadsheets put a mark in front
            rows = list(csv.DictReader(handle))
    except OSError as exc:
        raise InputError(f"{path}: annotations cannot be read: {exc.strerror}") from exc
    except (UnicodeDecodeError, csv.Error) as exc:
        raise InputError(f"{path}: annotations cannot be read: {exc}") from exc
    found = []
    for number, row in enumerate(rows, start=2):
        if files and row.get("file") not in (None, "", *files):
            continue
        try:
            onset_s, offset_s = (float(row[key]) for key in ("onset", "offset"))
        except (KeyError, TypeError, ValueError) as exc:
            raise InputError(f"{path}: line {number} has no onset and offset in seconds") from exc
        if not 0 <= onset_s < offset_s < math.inf:
            raise InputError(f"{path}: line {number}: the onset {onset_s:g} is not before the offset {offset_s:g}")
        found.append(Annotation(onset_s, offset_s, row.get("label") or ""))
    return sorted(found, key=lambda event: event.onset_s)


def annotations_for(recording: Path, table: Path | None, *, label: str) -> list[Annotation]:
    """Return the annotated events of a recording: from `table`, else from the CSV of the same name beside it.

    In a table a recording goes by its name, or by its `label`: its path below the folder that was named.
    """
    path = table or recording.with_suffix(".csv")
    events = read_annotations(path, files=() if table is None else (recording.name, label))
    if not events:
        raise InputError(f"{path}: holds no event of {recording.name}")
    return events


def judge(
    scores_csv: Path, events_csv: Path, *, file: str, events: Sequence[Annotation], rules: Rules
) -> RecordingFigures:
    """Take the figures of one recording from the node's tables.

    Judged is what follows the first onset less `LEARNED_MARGIN_S`; hours are those of it that hold no event.
    """
    rows = [row for row in _rows(scores_csv) if row["file"] == file]
    judged_from_s = max(0.0, events[0].onset_s - LEARNED_MARGIN_S)
    end_s = max((float(row["end_s"]) for row in rows), default=0.0)
    if end_s <= judged_from_s:
        raise InputError(f"{file}: its {end_s:g} s end before what is to be judged, from {judged_from_s:g} s on")
    hours = quiet_hours(events, from_s=judged_from_s, to_s=end_s, guard_s=rules.guard_s)
    lanes = []
    for lane in LANES:
        windows = _lane(rows, lane).after(judged_from_s)
        if windows.score.size:
            lanes.append(_lane_figures(file, lane, windows, events, hours=hours, rules=rules))
    reported = [row for row in _rows(events_csv) if row["file"] == file and float(row["end_s"]) > judged_from_s]
    reported.sort(key=lambda row: float(row["start_s"]))
    alarms = Alarms(*(np.array([float(row[key]) for row in reported]) for key in ("start_s", "end_s")))
    found = judge_alarms(alarms, events, hours=hours, rules=rules)
    return RecordingFigures(
        lanes=tuple(lanes),
        alarms=AlarmFigures(file, len(events), len(reported), found.recall, found.false_alarms_per_hour, hours),
    )


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def _lane(rows: Sequence[dict[str, str]], lane: str) -> WindowScores:
    kept = [row for row in rows if row[lane] != "" and row["valid"] == "true"]
    return WindowScores(*(np.array([float(row[key]) for row in kept]) for key in ("start_s", "end_s", lane)))


def _lane_figures(
    file: str, lane: str, windows: WindowScores, events: Sequence[Annotation], *, hours: float, rules: Rules
) -> LaneFigures:
    at_6, at_60 = (best_within(windows, events, per_hour=n, hours=hours, rules=rules) for n in (6.0, 60.0))
    return LaneFigures(
        recording=file,
        lane=lane,
        auc=window_auc(windows, events, rules),
        recall_at_6=at_6.recall,
        delay_at_6_s=at_6.median_delay_s,
        recall_at_60=at_60.recall,
        delay_at_60_s=at_60.median_delay_s,
    )


def evaluate(job: ReplayJob, *, annotations: Path | None, out: Path) -> list[RecordingFigures]:
    """Replay the job's recordings into `out`, judge each against its annotations, write the figures as CSV files."""
    recordings = {path: job.label(path) for path in job.recordings()}
    if len(set(recordings.values())) < len(recordings):
        raise InputError("two recordings have the same name; name the folder that holds both instead")
    wanted = {label: annotations_for(path, annotations, label=label) for path, label in recordings.items()}
    scores_csv, events_csv = out / "scores.csv", out / "events.csv"
    replay(job, TablePaths(scores=scores_csv, events=events_csv))
    figures = [
        judge(scores_csv, events_csv, file=label, events=events, rules=Rules()) for label, events in wanted.items()
    ]
    _write(out / "windows.csv", LaneFigures, [lane for one in figures for lane in one.lanes])
    _write(out / "alarms.csv", AlarmFigures, [one.alarms for one in figures])
    return figures


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
