"""Scores, events and notices of replayed recordings as CSV files.

Columns are only ever added, at the end. A row of scores.csv waits until the confirming lane has had its second look at
the window, so that its `score` is the final one.
"""

from __future__ import annotations

import csv
import os
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from datetime import date, timedelta
from functools import lru_cache
from pathlib import Path
from typing import IO

from edgeasd.errors import CannotWriteError
from edgeasd.records import Confirmation, Event, EventType, Opinion, Score, StateNotice

SCORE_COLUMNS = [
    "file",
    "start_s",
    "end_s",
    "score",
    "p_value",
    "valid",
    "model",
    "model_p_value",
    "prompt",
    "prompt_p_value",
    "confirmed",
    "confirmed_p_value",
    "warmup",
    "fault",
    "rms_dbfs",
    "start_utc",
]
EVENT_COLUMNS = [
    "file",
    "start_s",
    "end_s",
    "peak_score",
    "p_value",
    "peak_s",
    "confirmed",
    "bands",
    "event_id",
    "start_utc",
]
NOTICE_COLUMNS = ["file", "start_s", "distance_db", "start_utc"]

Join = Callable[[Opinion | None, Opinion | None], Opinion]


class Table:
    """A CSV file that appears under its name only when it is complete."""

    def __init__(self, path: Path, columns: list[str]) -> None:
        self._path = path
        self._partial = path.with_name(path.name + ".partial")
        if path.is_dir():
            raise CannotWriteError(f"{path}: cannot be written: Is a directory")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._handle: IO[str] = self._partial.open("w", newline="", encoding="utf-8")
        except OSError as error:
            raise self._refusal(error) from error
        self._rows = csv.writer(self._handle, lineterminator="\n")
        self.write(columns)

    def write(self, row: list[str]) -> None:
        """Append one row; CannotWriteError when the disk is full."""
        try:
            self._rows.writerow(row)
        except OSError as error:
            raise self._refusal(error) from error

    def close(self) -> None:
        """Put the finished file in its place."""
        try:
            self._handle.close()
            os.replace(self._partial, self._path)
        except OSError as error:
            raise self._refusal(error) from error

    def discard(self) -> None:
        """Leave nothing behind, unless the table is in its place already."""
        with suppress(OSError):
            self._handle.close()
        with suppress(OSError):
            self._partial.unlink()

    def _refusal(self, error: OSError) -> CannotWriteError:
        return CannotWriteError(f"{self._path}: cannot be written: {error.strerror}")


class Recording:
    """How one replayed file turns frames into the times of its rows."""

    def __init__(self, file: str, *, rate_hz: int, origin_utc_ns: int | None) -> None:
        self.file = file
        self._rate_hz = rate_hz
        self._origin_utc_ns = origin_utc_ns

    def seconds(self, frame: int) -> str:
        """Return the position of `frame` in seconds from the start of the file."""
        return f"{frame / self._rate_hz:.3f}"

    def utc(self, frame: int) -> str:
        """Return UTC of `frame` as RFC 3339, empty when the file does not say when it was made."""
        if self._origin_utc_ns is None:
            return ""
        stamp_ms = (self._origin_utc_ns // 1000 + frame * 1_000_000 // self._rate_hz) // 1000
        seconds, ms = divmod(stamp_ms, 1000)
        day, seconds = divmod(seconds, 86_400)
        minutes, seconds = divmod(seconds, 60)
        return f"{_date(day)}T{minutes // 60:02}:{minutes % 60:02}:{seconds:02}.{ms:03}Z"


@lru_cache(maxsize=16)
def _date(day: int) -> str:
    """Return the date of a day counted from 1970-01-01 as ISO 8601; a row takes it from here, most are of one day."""
    return (date(1970, 1, 1) + timedelta(days=day)).isoformat()


class ScoreTable:
    """Writes scores.csv: one row a window, in order, each once its second look is known.

    Bound: the windows between a window and its second look, some six seconds.
    """

    def __init__(self, path: Path, *, join: Join, waits_for_confirmation: bool) -> None:
        self._table = Table(path, SCORE_COLUMNS)
        self._join = join
        self._waits = waits_for_confirmation
        self._open: OrderedDict[int, tuple[Score, Opinion | None]] = OrderedDict()
        self.n_rows = 0

    def take(self, recording: Recording, said: Score | Confirmation) -> None:
        """Take a score, or the second look at an earlier one."""
        if isinstance(said, Score):
            self._open[said.first_frame] = (said, None)
            confirmation = said.confirmed
        else:
            confirmation = said
        if confirmation is not None and confirmation.first_frame in self._open:
            score, _ = self._open[confirmation.first_frame]
            self._open[confirmation.first_frame] = (score, confirmation.opinion)
        self._write_known(recording)

    def end_of_file(self, recording: Recording) -> None:
        """Write what still waits: no second look will come."""
        for score, confirmed in self._open.values():
            self._write(recording, score, confirmed)
        self._open.clear()

    def close(self) -> None:
        """Put the file in its place."""
        self._table.close()

    def discard(self) -> None:
        """Leave nothing behind of a table that is not finished."""
        self._table.discard()

    def _write_known(self, recording: Recording) -> None:
        while self._open:
            first_frame, (score, confirmed) = next(iter(self._open.items()))
            if self._waits and confirmed is None and score.valid:
                return
            self._write(recording, score, confirmed)
            del self._open[first_frame]

    def _write(self, recording: Recording, score: Score, confirmed: Opinion | None) -> None:
        novelty = None if score.warmup else confirmed or score.prompt
        final = self._join(novelty, score.model) if score.valid else Opinion(0.0, 1.0)
        self.n_rows += 1
        self._table.write(
            [
                recording.file,
                recording.seconds(score.first_frame),
                recording.seconds(score.first_frame + score.n_frames),
                f"{final.score:.6g}",
                f"{final.p_value:.6g}",
                "true" if score.valid else "false",
                *_columns(score.model),
                *_columns(score.prompt),
                *_columns(confirmed),
                "true" if score.warmup else "false",
                score.fault or "",
                f"{score.level.rms_dbfs:.2f}",
                recording.utc(score.first_frame),
            ]
        )


def _columns(opinion: Opinion | None) -> tuple[str, str]:
    return ("", "") if opinion is None else (f"{opinion.score:.6g}", f"{opinion.p_value:.6g}")


class EventTable:
    """Writes events.csv: one row an event that ended, except those the second look took back."""

    def __init__(self, path: Path) -> None:
        self._table = Table(path, EVENT_COLUMNS)
        self.n_rows = 0

    def take(self, recording: Recording, event: Event) -> None:
        """Take an event message; only `end` makes a row."""
        if event.event_type is not EventType.END or event.confirmed is False:
            return
        self.n_rows += 1
        bands = " ".join(f"{band.low_hz:.0f}-{band.high_hz:.0f}Hz:{band.share:.2f}" for band in event.bands)
        self._table.write(
            [
                recording.file,
                recording.seconds(event.start_frame),
                recording.seconds(event.end_frame),
                f"{event.peak_score:.6g}",
                f"{event.p_value:.6g}",
                recording.seconds(event.peak_frame),
                "" if event.confirmed is None else "true",
                bands,
                event.event_id,
                recording.utc(event.start_frame),
            ]
        )

    def close(self) -> None:
        """Put the file in its place."""
        self._table.close()

    def discard(self) -> None:
        """Leave nothing behind of a table that is not finished."""
        self._table.discard()


class NoticeTable:
    """Writes notices.csv: one row a new lasting state."""

    def __init__(self, path: Path) -> None:
        self._table = Table(path, NOTICE_COLUMNS)

    def take(self, recording: Recording, notice: StateNotice) -> None:
        """Take a notice of a new state."""
        self._table.write(
            [
                recording.file,
                recording.seconds(notice.first_frame),
                f"{notice.distance_db:.2f}",
                recording.utc(notice.first_frame),
            ]
        )

    def close(self) -> None:
        """Put the file in its place."""
        self._table.close()

    def discard(self) -> None:
        """Leave nothing behind of a table that is not finished."""
        self._table.discard()
