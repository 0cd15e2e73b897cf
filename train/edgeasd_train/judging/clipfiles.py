"""The files of an evaluation of clips: those of the DCASE challenge, those of the 3CNN system, and all figures.

Files of the challenge have no header, commas and line feeds; numbers are written in full, so that a reader gets the
very figures. `result.csv` is laid out as that of the year's baseline, machine after machine.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeasd.errors import CannotWriteError
from edgeasd_train.corpus.facts import DOMAIN_CODES
from edgeasd_train.judging.clips import MachineScores
from edgeasd_train.judging.dcase import DOMAINS, Clips, Figure, Judgement, section_name

Row = Sequence[object]

_MEANS = (("arithmetic mean", "mean"), ("harmonic mean", "harmonic mean"))
_COLUMNS = [
    *(("AUC", domain) for domain in DOMAINS),
    ("pAUC", ""),
    *((name, domain) for name in ("pAUC", "precision", "recall", "F1") for domain in DOMAINS),
]
"""Of result.csv since 2022."""
_PLAIN = ("AUC", "pAUC", "precision", "recall", "F1")


@dataclass(frozen=True, slots=True)
class ClipReport:
    """All that an evaluation of clips found out."""

    machines: tuple[MachineScores, ...]
    judgement: Judgement


def write_files(out: Path, report: ClipReport, *, root: Path) -> None:
    """Write all tables into the folder `out`; clips are named by their path below `root` where the format allows it.

    CannotWriteError names what cannot be written.
    """
    for machine in report.machines:
        for clips in machine.sections:
            _write_section(out, clips, threshold=machine.threshold.value, year=report.judgement.year)
    if any((clips.label >= 0).any() for machine in report.machines for clips in machine.sections):
        rows: Iterable[Row] = {2020: _rows_2020, 2021: _rows_2021}.get(report.judgement.year, _rows)(report)
        write_csv(out / "result.csv", rows)
        write_csv(out / "test_results.csv", _test_results(report))
    write_csv(out / "anomaly_scores.csv", _plain_scores(report, root))
    write_csv(out / "figures.csv", _figure_rows(report.judgement))


def write_csv(path: Path, rows: Iterable[Row]) -> None:
    """Write rows in the challenge's dialect: commas, line feeds, floats in full."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)
    except OSError as exc:
        raise CannotWriteError(f"{path}: cannot be written: {exc.strerror}") from exc


def _write_section(out: Path, clips: Clips, *, threshold: float, year: int) -> None:
    """Write scores and decisions of one section, in 2021 of each of its domains, under the names of the year."""
    names = [Path(file).name for file in clips.files]
    everything = np.ones(len(names), bool)
    stem = f"{clips.machine}_section_{section_name(clips.section)}"
    parts = [(f"{stem}_test", everything)]
    if year == 2020:
        parts = [(f"{clips.machine}_id_{section_name(clips.section)}", everything)]
    elif year == 2021:
        parts = [(f"{stem}_{domain}_test", clips.domain == DOMAIN_CODES[domain]) for domain in DOMAINS]
    for part, own in parts:
        chosen = [(names[i], float(clips.score[i])) for i in np.flatnonzero(own).tolist()]
        if chosen:
            write_csv(out / f"anomaly_score_{part}.csv", chosen)
            write_csv(out / f"decision_result_{part}.csv", ((name, int(score > threshold)) for name, score in chosen))


def _cell(judgement: Judgement, name: str, **place: str) -> float | str:
    found = judgement.find(name, **place)
    return "" if found is None else found.value


def _sections(machine: MachineScores) -> list[str]:
    return [section_name(clips.section) for clips in machine.sections]


def _rows(report: ClipReport) -> Iterator[Row]:
    """Yield result.csv as the baselines have written it since 2022."""
    judgement = report.judgement
    titles = {"F1": "F1 score"}
    has_target = any(f.domain == "target" for f in judgement.figures)
    columns = _COLUMNS if has_target else [(name, "") for name in _PLAIN]
    header = [f"{titles.get(name, name)} ({domain})" if domain else titles.get(name, name) for name, domain in columns]
    for machine in report.machines:
        yield [machine.machine]
        yield ["section", *header]
        for section in _sections(machine):
            place = {"machine": machine.machine, "section": section}
            yield [section, *(_cell(judgement, name, domain=domain, **place) for name, domain in columns)]
        for title, mean in _MEANS:
            cells = (_cell(judgement, f"{n}, {mean}", domain=d, machine=machine.machine) for n, d in columns)
            yield [title, *cells]
        yield []
    yield ["", *header]
    for title, mean in _MEANS:
        cells = (_cell(judgement, f"{name}, {mean}", domain=domain) for name, domain in columns)
        yield [f"{title} over all machine types and sections", *cells]
    yield []
    yield ["official score", _cell(judgement, "official")]


def _rows_2021(report: ClipReport) -> Iterator[Row]:
    """Yield result.csv as the baseline of 2021 wrote it: a line for each section and domain."""
    judgement = report.judgement
    header = ["section", "domain", "AUC", "pAUC", "precision", "recall", "F1 score"]
    everything: list[Figure] = []
    for machine in report.machines:
        yield [machine.machine]
        yield header
        for domain in DOMAINS:
            for section in _sections(machine):
                place = {"machine": machine.machine, "section": section, "domain": domain}
                if judgement.find("pAUC", **place) is not None:
                    yield [section, domain, *(_cell(judgement, name, **place) for name in _PLAIN)]
        own = [f for f in judgement.figures if f.machine == machine.machine and f.section and f.domain]
        everything += own
        yield from _mean_rows(own, "")
        yield []
    yield ["", "", *header[2:]]
    yield from _mean_rows(everything, " over all machine types, sections, and domains")
    yield []
    yield ["official score", "", _cell(judgement, "official")]


def _mean_rows(figures: Sequence[Figure], over: str) -> Iterator[Row]:
    """Yield arithmetic and harmonic means over sections and domains together."""
    values = [np.array([f.value for f in figures if f.name == name]) for name in _PLAIN]
    floor = np.finfo(np.float64).eps
    yield ["arithmetic mean" + over, "", *(float(v.mean()) if v.size else "" for v in values)]
    yield [
        "harmonic mean" + over,
        "",
        *(float(len(v) / (1.0 / np.maximum(v, floor)).sum()) if v.size else "" for v in values),
    ]


def _rows_2020(report: ClipReport) -> Iterator[Row]:
    """Yield result.csv as the baseline of 2020 wrote it."""
    judgement = report.judgement
    for machine in report.machines:
        yield [machine.machine]
        yield ["id", "AUC", "pAUC"]
        for section in _sections(machine):
            place = {"machine": machine.machine, "section": section}
            yield [section, *(_cell(judgement, name, **place) for name in ("AUC", "pAUC"))]
        yield ["Average", *(_cell(judgement, f"{name}, mean", machine=machine.machine) for name in ("AUC", "pAUC"))]
        yield []


def _plain_scores(report: ClipReport, root: Path) -> Iterator[Row]:
    """Yield the table of the 3CNN system: every clip with its label, 0 or 1, empty where unknown."""
    yield ["file", "label", "score"]
    for machine in report.machines:
        for clips in machine.sections:
            for file, label, score in zip(clips.files, clips.label.tolist(), clips.score.tolist(), strict=True):
                path = Path(file)
                shown = path.relative_to(root) if path.is_relative_to(root) else path
                yield [shown.as_posix(), "" if label < 0 else label, score]


def _test_results(report: ClipReport) -> Iterator[Row]:
    """Yield the figures of the 3CNN system; of several machines, the mean over them and the sum of clips."""
    judgement = report.judgement
    labels = np.concatenate([clips.label for machine in report.machines for clips in machine.sections])
    yield ["metric", "value"]
    yield ["auc", _cell(judgement, "AUC, mean of machines")]
    yield ["pauc", _cell(judgement, "pAUC, mean of machines")]
    yield ["n_normal", int(np.count_nonzero(labels == 0))]
    yield ["n_anomaly", int(np.count_nonzero(labels == 1))]


def _figure_rows(judgement: Judgement) -> Iterator[Row]:
    yield ["machine", "section", "domain", "figure", "value", "low", "high"]
    for figure in judgement.figures:
        ends = ["" if np.isnan(end) else end for end in figure.interval]
        name = f"official {judgement.year}" if figure.name == "official" else figure.name
        yield [figure.machine, figure.section, figure.domain, name, figure.value, *ends]
