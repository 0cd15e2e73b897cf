"""What a corpus holds: every recording measured in worker processes, kept as columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeasd.capture.convert import Channel
from edgeasd.errors import InputError
from edgeasd.workers import Lost, work
from edgeasd_train.corpus.discover import Recordings
from edgeasd_train.corpus.facts import Facts, facts_of
from edgeasd_train.corpus.measure import N_BANDS, Measured, Task, measuring

_PATIENCE_S = 600.0
_SLOWEST_BYTES_PER_S = 100_000.0
_QUIET_DB = 40.0
"""A channel so far below the loudest of its file is as good as dead."""
_MAX_CHANNELS = 64

_COLUMNS = np.dtype(
    [
        ("rate_hz", "u4"),
        ("n_channels", "u2"),
        ("n_frames", "i8"),
        ("coding", "u2"),
        ("rms_dbfs", "f4"),
        ("peak_dbfs", "f4"),
        ("dc", "f4"),
        ("clipped_share", "f4"),
        ("quiet_channels", "u8"),
        ("digest", "V16"),
        ("spectrum_dbfs", "f2", (N_BANDS,)),
    ]
)


@dataclass(slots=True)
class Survey:
    """Every recording of a corpus and what was measured of it: some 230 bytes a recording."""

    recordings: Recordings
    columns: NDArray[Any]
    """Shape (n,), one record a recording; those of broken ones are 0."""
    codings: list[str]
    """What the column `coding` counts in."""
    broken: dict[int, str] = field(default_factory=dict)
    """Why recordings cannot be read, by number."""

    @property
    def good(self) -> NDArray[np.int64]:
        """Return the numbers of the recordings that could be read, in order."""
        return np.flatnonzero(self.columns["n_frames"] > 0)

    def duration_s(self) -> NDArray[np.float64]:
        """Return the length of each recording (n,); 0 where broken."""
        return np.asarray(self.columns["n_frames"] / np.maximum(self.columns["rate_hz"], 1), np.float64)

    def facts(self) -> list[Facts]:
        """Return what the name of each recording says, attributes aside; those that say the same share it."""
        kinds: dict[Facts, Facts] = {}
        bare = (replace(facts_of(name), attributes=()) for name in self.recordings.names())
        return [kinds.setdefault(one, one) for one in bare]

    def quiet_channels(self, number: int) -> list[int]:
        """Return the channels of a recording, from 0, that are as good as dead beside the others."""
        bits = int(self.columns["quiet_channels"][number])
        return [channel for channel in range(_MAX_CHANNELS) if bits >> channel & 1]


def survey(
    recordings: Recordings, *, channel: Channel, workers: int, on_file: Callable[[], None] = lambda: None
) -> Survey:
    """Measure every recording, in `workers` processes; `on_file` is called as each is done.

    What cannot be read is listed in `broken`; InputError when nothing can.
    """
    found = Survey(recordings, np.zeros(len(recordings), _COLUMNS), [])
    codes: dict[str, int] = {}
    tasks = (Task(number, name, _size(name)) for number, name in enumerate(recordings.names()))
    open_worker = partial(measuring, channel)
    for task, outcome in work(open_worker, tasks, workers=min(workers, len(recordings)), patience_s=_patience_s):
        if isinstance(outcome, Measured):
            code = codes.setdefault(outcome.coding, len(codes))
            found.columns[task.number] = _row(outcome, code)
        else:
            found.broken[task.number] = outcome.reason if isinstance(outcome, Lost) else outcome
        on_file()
    found.codings = list(codes)
    if len(found.broken) == len(recordings):
        first = min(found.broken)
        raise InputError(
            f"none of {len(recordings)} recordings can be read; {recordings.name(first)}: {found.broken[first]}"
        )
    return found


def _row(measured: Measured, coding: int) -> tuple[Any, ...]:
    levels = np.array(measured.channels_dbfs[:_MAX_CHANNELS])
    quiet = np.flatnonzero(levels < levels.max() - _QUIET_DB)
    return (
        measured.rate_hz,
        len(measured.channels_dbfs),
        measured.n_frames,
        coding,
        measured.rms_dbfs,
        measured.peak_dbfs,
        measured.dc,
        measured.clipped_share,
        sum(1 << int(channel) for channel in quiet),
        np.void(measured.digest),
        measured.spectrum_dbfs,
    )


def _size(name: str) -> int:
    try:
        return Path(name).stat().st_size
    except OSError:  # gone: the worker will say so
        return 0


def _patience_s(task: Task) -> float:
    return _PATIENCE_S + task.n_bytes / _SLOWEST_BYTES_PER_S
