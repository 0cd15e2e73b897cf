"""What an evaluation of clips says on a terminal."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from edgeasd_train.judging.clipfiles import ClipReport
from edgeasd_train.judging.clips import MachineScores
from edgeasd_train.judging.dcase import DOMAINS, Figure, Judgement, section_name

_NAMES = ("AUC", "pAUC", "precision", "recall", "F1")


def clip_table(report: ClipReport) -> Table:
    """Return the figures of every machine, section and domain, with their 95 % intervals."""
    judgement = report.judgement
    table = _table("clips, normal+anomalous; P precision, R recall")
    table.add_column("machine", overflow="fold")
    widths = {"sec": 3, "domain": 6, "clips": 5, "AUC": 5, "95 %": 7, "pAUC": 5, "95 % ": 7, "P": 4, "R": 4, "F1": 4}
    for title, width in widths.items():
        table.add_column(title, no_wrap=True, min_width=width)
    for machine in report.machines:
        sections = [section_name(clips.section) for clips in machine.sections]
        for section in (*sections, "") if len(sections) > 1 else sections:
            for domain in ("", *DOMAINS):
                cells = [judgement.find(n, machine=machine.machine, section=section, domain=domain) for n in _NAMES]
                if any(cells):
                    clips = _counts(machine, section, domain)
                    shown = (text for i, cell in enumerate(cells) for text in _shown(cell, wide=i < 2))
                    table.add_row(machine.machine, section or "all", domain or "all", clips, *shown)
        table.add_section()
    return table


def mean_table(judgement: Judgement) -> Table:
    """Return the means over machines and sections and the official figure of the year."""
    table = _table(f"rule of {judgement.year}", "over all", "value", "95 %")
    for figure in judgement.figures:
        if not figure.machine and figure.name.startswith(("AUC", "pAUC", "official")):
            name = f"{figure.name} ({figure.domain})" if figure.domain else figure.name
            table.add_row(name, f"{figure.value:.4f}", _interval(figure))
    return table


def notes(report: ClipReport) -> Iterator[str]:
    """Yield where each threshold is from, and what could not be read."""
    for machine in report.machines:
        threshold = machine.threshold
        origin = "held out" if threshold.unseen else "most of them learned from"
        clips = f"{threshold.n_clips} clips of the training part, {origin}"
        source = {
            "gamma": f"90 % quantile of a gamma distribution fitted to {clips}",
            "quantile": f"90 % quantile of {clips}; no gamma distribution fits",
            "calibration": "90 % quantile of windows in the bundle's calibration, for want of clips held out",
        }[threshold.rule]
        yield f"{machine.machine}: strange above {threshold.value:.6g}, the {source}"
        if machine.bad:
            yield f"{machine.machine}: {len(machine.bad)} clips cannot be read: {machine.bad[0]}"


def _counts(machine: MachineScores, section: str, domain: str) -> str:
    """Return how many normal clips and anomalies a row speaks of."""
    counts = [0, 0]
    for clips in machine.sections:
        if section in ("", section_name(clips.section)):
            own = clips.domain == DOMAINS.index(domain) if domain else np.ones(len(clips.files), bool)
            for label in (0, 1):
                counts[label] += int(np.count_nonzero(own & (clips.label == label)))
    return f"{counts[0]}+{counts[1]}"


def _shown(figure: Figure | None, *, wide: bool) -> list[str]:
    """Return the cells of a figure: itself and, if wide, its interval."""
    if figure is None:
        return ["-", "-"] if wide else ["-"]
    return [f"{figure.value:.3f}", _interval(figure)] if wide else [f"{figure.value:.2f}"]


def _interval(figure: Figure) -> str:
    low, high = (f"{end:.2f}".removeprefix("0").replace("1.00", "1") for end in figure.interval)
    return "-" if low == "nan" else f"{low}-{high}"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table
