"""What windows can be coloured by beside cluster and score: what names and annotations say of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeasd.errors import InputError
from edgeasd_train.corpus.annotations import Annotation, read_annotations
from edgeasd_train.corpus.facts import Facts
from edgeasd_train.explore.gather import HeardRecording, ShownWindows
from edgeasd_train.judging.alarms import Rules, WindowScores, positives

NO_EVENT = "no event"


@dataclass(frozen=True, slots=True)
class Facet:
    """One thing that is known of every window, out of few values."""

    name: str
    values: tuple[str, ...]
    codes: NDArray[np.int64]
    """Shape (n,): which value."""


def events_of(recording: Path, table: Path | None, *, label: str) -> list[Annotation]:
    """Return what is annotated in a recording: in `table`, else in the CSV of its name beside it, if that marks events.

    InputError when `table`, which was asked for, cannot be read.
    """
    if table is not None:
        return read_annotations(table, files=(recording.name, label))
    beside = recording.with_suffix(".csv")
    try:
        return read_annotations(beside) if beside.is_file() else []
    except InputError:  # some other table that happens to lie there
        return []


def holds_event(
    recording: HeardRecording, first_frames: NDArray[np.int64], *, window_frames: int, rate_hz: int
) -> NDArray[np.int64]:
    """Return which event each window (n,) holds enough of to count; -1 for none.

    As `evaluate` counts it; windows that are shorter than that count when half of them is event.
    """
    start_s, window_s = first_frames / rate_hz, window_frames / rate_hz
    rules = Rules(min_overlap_s=min(Rules().min_overlap_s, window_s / 2))
    windows = WindowScores(start_s, start_s + window_s, np.zeros(len(start_s)))
    held = np.full(len(start_s), -1, np.int64)
    for number, event in enumerate(recording.events):
        held[positives(windows, [event], rules)] = number
    return held


def facets_of(
    recordings: Sequence[HeardRecording], windows: ShownWindows, *, window_frames: int, rate_hz: int
) -> list[Facet]:
    """Return the recording of each window, and whatever else tells windows apart."""
    facets = [Facet("recording", tuple(one.label for one in recordings), windows.recording)]
    if any(one.events for one in recordings):
        words = np.full(len(windows.score), NO_EVENT, object)
        for number, recording in enumerate(recordings):
            mine = np.flatnonzero(windows.recording == number)
            held = holds_event(recording, windows.first_frame[mine], window_frames=window_frames, rate_hz=rate_hz)
            for i, event in zip(mine.tolist(), held.tolist(), strict=True):
                if event >= 0:
                    words[i] = recording.events[event].label or "event"
        facets.append(_facet("event", words.tolist()))
    for name in ("label", "machine", "section", "domain", "split"):
        by_recording = [_word(one.facts, name) for one in recordings]
        if len(set(by_recording)) > 1:
            facets.append(_facet(name, [by_recording[i] for i in windows.recording.tolist()]))
    return facets


def _word(facts: Facts, name: str) -> str:
    value = getattr(facts, name)
    return "unknown" if value in ("", -1) else f"{value:02d}" if isinstance(value, int) else str(value)


def _facet(name: str, words: Sequence[str]) -> Facet:
    """Return the facet of words (n,), the most frequent value first."""
    values, codes, counts = np.unique(np.array(words, object).astype(str), return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    rank = np.empty(len(values), np.int64)
    rank[order] = np.arange(len(values))
    return Facet(name, tuple(str(values[i]) for i in order), rank[codes])
