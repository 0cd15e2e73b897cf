"""Tables of events that someone marked in recordings: CSV with onset and offset in seconds, label and file."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeasd.errors import InputError


@dataclass(frozen=True, slots=True)
class Annotation:
    """One event that someone marked in a recording."""

    onset_s: float
    offset_s: float
    label: str = ""


class Marks:
    """The marked events of many recordings, found by file."""

    def __init__(self, by_file: dict[str, list[Annotation]]) -> None:
        """Keep the events of each file as the table calls it."""
        self._by_file = {_normal(file): sorted(events, key=_onset_s) for file, events in by_file.items()}

    def __len__(self) -> int:
        """Return the number of events."""
        return sum(map(len, self._by_file.values()))

    def __iter__(self) -> Iterator[tuple[str, list[Annotation]]]:
        """Yield each file of the table and its events."""
        return iter(self._by_file.items())

    def of(self, path: Path) -> list[Annotation]:
        """Return the events of the recording at `path`, by onset; none when the table does not name it.

        A table may call a file by its name or by the last parts of its path, down to the whole; all that fit count.
        """
        return sorted((event for file in self.files_of(path) for event in self._by_file[file]), key=_onset_s)

    def files_of(self, path: Path) -> list[str]:
        """Return what the table calls the recording at `path`."""
        parts = path.parts
        names = ["/".join(parts[i:]) for i in range(len(parts) - 1, 0, -1)] + [path.as_posix()]
        return [name for name in dict.fromkeys(names) if name in self._by_file]


def read_marks(path: Path) -> Marks:
    """Read a table of file, onset, offset (s) and, optionally, label; InputError names the line that cannot be read."""
    by_file: dict[str, list[Annotation]] = {}
    for number, row in _rows(path):
        file = (row.get("file") or "").strip()
        if not file:
            raise InputError(f"{path}: line {number} names no file")
        by_file.setdefault(file, []).append(_annotation(path, number, row))
    return Marks(by_file)


def read_annotations(path: Path, *, files: Sequence[str] = ()) -> list[Annotation]:
    """Read onset and offset (s) and label from a CSV file; with a `file` column only the rows that name one of `files`.

    InputError names the line that cannot be read.
    """
    wanted = (None, "", *files)
    rows = ((number, row) for number, row in _rows(path) if not files or row.get("file") in wanted)
    return sorted((_annotation(path, number, row) for number, row in rows), key=_onset_s)


def annotations_for(recording: Path, table: Path | None, *, label: str) -> list[Annotation]:
    """Return the annotated events of a recording: from `table`, else from the CSV of the same name beside it.

    In a table a recording goes by its name, or by its `label`: its path below the folder that was named. InputError
    when there are none.
    """
    path = table or recording.with_suffix(".csv")
    events = read_annotations(path, files=() if table is None else (recording.name, label))
    if not events:
        raise InputError(f"{path}: holds no event of {recording.name}")
    return events


def _rows(path: Path) -> list[tuple[int, dict[str, str | None]]]:
    """Return each row of a table with the number of its line."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:  # spreadsheets put a mark in front
            reader = csv.DictReader(handle)
            return [(reader.line_num, row) for row in reader]
    except OSError as exc:
        raise InputError(f"{path}: annotations cannot be read: {exc.strerror}") from exc
    except (UnicodeDecodeError, csv.Error) as exc:
        raise InputError(f"{path}: annotations cannot be read: {exc}") from exc


def _annotation(path: Path, number: int, row: dict[str, str | None]) -> Annotation:
    try:
        onset_s, offset_s = (float(row[key] or "") for key in ("onset", "offset"))
    except (KeyError, ValueError) as exc:
        raise InputError(f"{path}: line {number} has no onset and offset in seconds") from exc
    if not 0 <= onset_s < offset_s < math.inf:
        raise InputError(f"{path}: line {number}: the onset {onset_s:g} is not before the offset {offset_s:g}")
    return Annotation(onset_s, offset_s, row.get("label") or "")


def _normal(file: str) -> str:
    """Return a table's file as `Marks.of` looks for it, whichever way the slashes lean."""
    slashed = file.replace("\\", "/")
    return slashed.removeprefix("./")


def _onset_s(event: Annotation) -> float:
    return event.onset_s
