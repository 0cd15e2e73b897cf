"""The report of a corpus as files: corpus.csv with a row a recording, corpus.json with the figures."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from edgeasd.errors import CannotWriteError
from edgeasd_train.corpus.facts import facts_of
from edgeasd_train.corpus.measure import BAND_CENTRES_HZ
from edgeasd_train.corpus.report import Report, same_sound
from edgeasd_train.corpus.survey import Survey

_COLUMNS = (
    "file", "machine", "section", "domain", "split", "label", "attributes", "duration_s", "rate_hz", "channels",
    "coding", "rms_dbfs", "peak_dbfs", "dc", "clipped_share", "quiet_channels", "same_sound_as", "cannot_be_read",
)  # fmt: skip


def write_csv(path: Path, survey: Survey) -> None:
    """Write one row a recording, those that cannot be read included; CannotWriteError when that fails."""
    first_of = {number: group[0] for group in same_sound(survey) for number in group[1:]}
    try:
        with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(_COLUMNS)
            rows.writerows(_rows(survey, first_of))
    except OSError as exc:
        raise CannotWriteError(f"{path}: cannot be written: {exc.strerror}") from exc


def _rows(survey: Survey, first_of: dict[int, int]) -> Iterator[list[Any]]:
    duration_s = survey.duration_s()
    for number, (name, row) in enumerate(zip(survey.recordings.names(), survey.columns, strict=True)):
        facts = facts_of(name)
        attributes = " ".join(f"{key}={value}" if value else key for key, value in facts.attributes)
        said = [facts.machine, facts.section if facts.known else "", facts.domain, facts.split, facts.label, attributes]
        if number in survey.broken:
            yield [name, *said, *[""] * 10, survey.broken[number]]
            continue
        same_as = survey.recordings.name(first_of[number]) if number in first_of else ""
        quiet = " ".join(map(str, survey.quiet_channels(number)))
        yield [
            name, *said, f"{duration_s[number]:.3f}", row["rate_hz"], row["n_channels"], survey.codings[row["coding"]],
            f"{row['rms_dbfs']:.2f}", f"{row['peak_dbfs']:.2f}", f"{row['dc']:.6f}", f"{row['clipped_share']:.6f}",
            quiet, same_as, "",
        ]  # fmt: skip


def as_json(report: Report) -> str:
    """Return the figures as JSON; levels in dBFS, spectra by band with null where no file has sound."""
    values = asdict(report)
    values["bands_hz"] = [round(float(hz), 1) for hz in BAND_CENTRES_HZ]
    values["spectra"]["all"] = values["spectra"].pop("")
    return json.dumps(_plain(values), indent=2, ensure_ascii=True)


def write_json(path: Path, report: Report) -> None:
    """Write the figures; CannotWriteError when that fails."""
    try:
        path.write_text(as_json(report) + "\n", encoding="utf-8")
    except OSError as exc:
        raise CannotWriteError(f"{path}: cannot be written: {exc.strerror}") from exc


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(inner) for inner in value]
    if isinstance(value, float | np.floating):
        return round(float(value), 6) if math.isfinite(value) else None
    return value
