"""The figures of a corpus: what a survey found, summed up over all files and by what names say of them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from edgeasd_train.corpus.annotations import Annotation, Marks
from edgeasd_train.corpus.facts import Facts
from edgeasd_train.corpus.measure import N_BANDS, Spectrum
from edgeasd_train.corpus.survey import Survey

Key = TypeVar("Key", int, str)

SILENT_DBFS = -80.0
"""Below this, without DC, a recording holds nothing but the converter's own noise."""
LARGE_DC = 0.01
"""Mean of a channel, in full scales, above which its microphone or preamplifier is worth a look."""


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Spread of a figure over the files."""

    low: float
    q05: float
    median: float
    q95: float
    high: float


@dataclass(frozen=True, slots=True)
class Group:
    """Files of which names say the same."""

    machine: str
    section: int
    domain: str
    split: str
    label: str
    n_files: int
    duration_s: float
    rms_dbfs: float
    """Median over the files."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A file that is worth a look, and its figure."""

    file: str
    value: float


@dataclass(frozen=True, slots=True)
class BandLevels:
    """Long-term average spectrum of several files: quantiles over the files (N_BANDS,), dBFS; NaN without sound."""

    n_files: int
    q10: Spectrum
    median: Spectrum
    q90: Spectrum


@dataclass(frozen=True, slots=True)
class Marked:
    """The annotated events of one label."""

    label: str
    n_events: int
    total_s: float
    shortest_s: float
    median_s: float
    longest_s: float


@dataclass(frozen=True, slots=True)
class MarkedFigures:
    """What a table of annotations holds."""

    n_files: int
    """Recordings that it marks events in."""
    labels: tuple[Marked, ...]
    beyond_end: tuple[Listed, ...]
    """Recordings, and by how many seconds the last event lies beyond their end."""
    n_unknown_files: int
    """Files of the table that are none of the recordings."""


@dataclass(frozen=True, slots=True)
class Report:
    """Everything about a corpus but its single files."""

    n_files: int
    n_read: int
    total_s: float
    duration_s: Quantiles
    rates_hz: Mapping[int, int]
    channels: Mapping[int, int]
    codings: Mapping[str, int]
    groups: tuple[Group, ...]
    """Empty when no name is one of DCASE's."""
    rms_dbfs: Quantiles
    peak_dbfs: Quantiles
    clipped: tuple[Listed, ...]
    """Share of samples clipped; the worst first, as in all lists."""
    dc: tuple[Listed, ...]
    silent: tuple[Listed, ...]
    quiet_channels: tuple[tuple[str, tuple[int, ...]], ...]
    duplicates: tuple[tuple[str, ...], ...]
    """Files that hold the very same sound."""
    n_leaks: int
    """Groups of duplicates with files both to train on and to test with."""
    spectra: Mapping[str, BandLevels]
    """By machine, all of them last, under the empty name."""
    marked: MarkedFigures | None
    broken: tuple[tuple[str, str], ...]
    """Files that cannot be read, and why."""


def report_on(survey: Survey, marks: Marks | None = None) -> Report:
    """Return the figures of a survey, and of the annotations of its recordings."""
    good, columns = survey.good, survey.columns
    name, duration_s, facts = survey.recordings.name, survey.duration_s(), survey.facts()

    def listed(values: NDArray[np.float64], wanted: NDArray[np.bool_]) -> tuple[Listed, ...]:
        numbers = good[wanted[good]]
        worst = numbers[np.argsort(-np.abs(values[numbers]), kind="stable")]
        return tuple(Listed(name(number), float(values[number])) for number in worst.tolist())

    duplicates = same_sound(survey)
    rms_dbfs = columns["rms_dbfs"].astype(np.float64)
    return Report(
        n_files=len(columns),
        n_read=len(good),
        total_s=float(duration_s.sum()),
        duration_s=_quantiles(duration_s[good]),
        rates_hz=_counts(columns["rate_hz"][good].tolist()),
        channels=_counts(columns["n_channels"][good].tolist()),
        codings=_counts(survey.codings[code] for code in columns["coding"][good].tolist()),
        groups=_groups(survey, facts),
        rms_dbfs=_quantiles(rms_dbfs[good]),
        peak_dbfs=_quantiles(columns["peak_dbfs"][good]),
        clipped=listed(columns["clipped_share"], columns["clipped_share"] > 0),
        dc=listed(columns["dc"], np.abs(columns["dc"]) > LARGE_DC),
        silent=listed(rms_dbfs, rms_dbfs < SILENT_DBFS),
        quiet_channels=tuple(
            (name(number), tuple(survey.quiet_channels(number)))
            for number in np.flatnonzero(columns["quiet_channels"]).tolist()
        ),
        duplicates=tuple(tuple(map(name, group)) for group in duplicates),
        n_leaks=sum({"train", "test"} <= {facts[number].split for number in group} for group in duplicates),
        spectra=spectra_of(survey, facts),
        marked=None if marks is None else _marked(survey, marks),
        broken=tuple((name(number), survey.broken[number]) for number in sorted(survey.broken)),
    )


def same_sound(survey: Survey) -> list[list[int]]:
    """Return the numbers of recordings that hold the same sound, group by group."""
    good = survey.good
    digests = np.frombuffer(survey.columns["digest"][good].tobytes(), np.uint64).reshape(-1, 2)
    order = np.lexsort((good, digests[:, 1], digests[:, 0]))
    changes = np.flatnonzero((digests[order][1:] != digests[order][:-1]).any(axis=1)) + 1
    groups = np.split(good[order], changes) if len(good) else []
    return sorted(group.tolist() for group in groups if len(group) > 1)


def spectra_of(survey: Survey, facts: Sequence[Facts]) -> dict[str, BandLevels]:
    """Return the spectra of each machine and, under the empty name, of all."""
    good = survey.good
    machines: defaultdict[str, list[int]] = defaultdict(list)
    for number in good.tolist():
        if facts[number].known:
            machines[facts[number].machine].append(number)
    spectra = survey.columns["spectrum_dbfs"]
    found = {machine: _levels(spectra[numbers]) for machine, numbers in sorted(machines.items()) if machine}
    return {**found, "": _levels(spectra[good])}


def _levels(spectra: NDArray[np.float16]) -> BandLevels:
    """Return quantiles over files (n, N_BANDS), each band over those that reach so high."""
    quantiles = np.full((3, N_BANDS), np.nan, np.float32)
    for band in range(N_BANDS):  # one at a time: a million spectra are not copied
        levels = spectra[:, band]
        levels = levels[~np.isnan(levels)].astype(np.float32)
        if len(levels):
            quantiles[:, band] = np.quantile(levels, (0.1, 0.5, 0.9))
    return BandLevels(len(spectra), *quantiles)


def _quantiles(values: NDArray[np.float64]) -> Quantiles:
    return Quantiles(*np.quantile(values.astype(np.float64), (0.0, 0.05, 0.5, 0.95, 1.0)).tolist())


def _counts(values: Iterable[Key]) -> dict[Key, int]:
    return dict(sorted(Counter(values).items(), key=lambda item: (-item[1], item[0])))


def _groups(survey: Survey, facts: Sequence[Facts]) -> tuple[Group, ...]:
    if not any(one.known for one in facts):
        return ()
    numbers: defaultdict[tuple[str, int, str, str, str], list[int]] = defaultdict(list)
    for number in survey.good.tolist():
        one = facts[number]
        numbers[one.machine, one.section, one.domain, one.split, one.label].append(number)
    duration_s = survey.duration_s()
    return tuple(
        Group(*key, len(own), float(duration_s[own].sum()), float(np.median(survey.columns["rms_dbfs"][own])))
        for key, own in sorted(numbers.items())
    )


def _marked(survey: Survey, marks: Marks) -> MarkedFigures:
    duration_s = survey.duration_s()
    lengths_s: defaultdict[str, list[float]] = defaultdict(list)
    n_files, beyond, seen = 0, list[Listed](), set[str]()
    for number in survey.good.tolist():
        name = survey.recordings.name(number)
        events: list[Annotation] = marks.of(Path(name))
        n_files += bool(events)
        for event in events:
            lengths_s[event.label].append(event.offset_s - event.onset_s)
        over_s = max((event.offset_s for event in events), default=0.0) - float(duration_s[number])
        if over_s > 0:
            beyond.append(Listed(name, over_s))
        seen.update(marks.files_of(Path(name)))
    labels = tuple(
        Marked(label, len(own), sum(own), min(own), float(np.median(own)), max(own))
        for label, own in sorted(lengths_s.items())
    )
    return MarkedFigures(n_files, labels, tuple(beyond), sum(file not in seen for file, _ in marks))
