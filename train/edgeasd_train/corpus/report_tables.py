"""The report of a corpus for a terminal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from rich.table import Table

from edgeasd_train.corpus.measure import BAND_CENTRES_HZ, Spectrum
from edgeasd_train.corpus.report import Group, Quantiles, Report

_SHOWN = 5
_OCTAVES_HZ = (63, 125, 250, 500, 1000, 2000, 4000, 8000, 16000)


def tables(report: Report) -> Iterator[Table]:
    """Yield the tables of a corpus: what it is, what names say, levels, spectra, annotated events."""
    yield _overview(report)
    yield _spreads(report)
    if report.groups:
        yield _groups(report.groups)
    yield _spectra(report)
    if report.marked is not None and report.marked.labels:
        yield _marked(report)


def findings(report: Report) -> Iterator[str]:
    """Yield one line for each thing worth a look, with the worst files below it."""
    for text, files in _findings(report):
        if files:
            yield f"{text}: {len(files)}"
            yield from (f"  {file}" for file in files[:_SHOWN])
            if len(files) > _SHOWN:
                yield f"  and {len(files) - _SHOWN} more"
    if report.n_leaks:
        yield f"of these, the same sound to train on and to test with: {report.n_leaks}"
    if report.marked is not None and report.marked.n_unknown_files:
        yield f"annotated files that are none of the recordings: {report.marked.n_unknown_files}"


def _findings(report: Report) -> Iterator[tuple[str, Sequence[str]]]:
    yield "cannot be read", [f"{file}: {reason}" for file, reason in report.broken]
    yield "silent", [f"{one.file}: {one.value:.0f} dBFS" for one in report.silent]
    yield "clipped", [f"{one.file}: {100 * one.value:.2g} % of all samples" for one in report.clipped]
    yield "DC offset", [f"{one.file}: {100 * one.value:.1f} % of full scale" for one in report.dc]
    yield "channels as good as dead", [f"{file}: {', '.join(map(str, dead))}" for file, dead in report.quiet_channels]
    beyond = report.marked.beyond_end if report.marked else ()
    yield "events beyond the end", [f"{one.file}: by {one.value:.3g} s" for one in beyond]
    yield "same sound in several files", [" = ".join(group) for group in report.duplicates]


def _overview(report: Report) -> Table:
    table = Table("", "", title="corpus", show_header=False)
    broken = f", {report.n_files - report.n_read} cannot be read" if report.n_read < report.n_files else ""
    table.add_row("files", f"{report.n_files}{broken}")
    table.add_row("sound", _duration(report.total_s))
    table.add_row("rates", _counted(report.rates_hz, " Hz"))
    table.add_row("channels", _counted(report.channels, ""))
    table.add_row("formats", _counted(report.codings, ""))
    return table


def _counted(counts: Mapping[int, int] | Mapping[str, int], unit: str) -> str:
    shown = [f"{value}{unit}" + (f" ({n} files)" if len(counts) > 1 else "") for value, n in counts.items()]
    return ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "")


def _spreads(report: Report) -> Table:
    table = Table("of a file", "least", "5 %", "median", "95 %", "most", title="lengths and levels")
    rows: tuple[tuple[str, Quantiles], ...] = (
        ("length, s", report.duration_s),
        ("RMS, dBFS", report.rms_dbfs),
        ("peak, dBFS", report.peak_dbfs),
    )
    for name, one in rows:
        table.add_row(name, *(f"{value:.1f}" for value in (one.low, one.q05, one.median, one.q95, one.high)))
    return _right_aligned(table)


def _groups(groups: Sequence[Group]) -> Table:
    """Return a row for each machine, section and domain, a column for each split and label that occurs."""
    kinds = sorted({(one.split, one.label) for one in groups}, key=lambda kind: (kind[0] != "train", *kind))
    names = [" ".join(filter(None, kind)) or "other" for kind in kinds]
    table = Table("machine", "section", "domain", *names, "min", "dBFS", title="clips by DCASE's names, minutes, RMS")
    table.columns[0].overflow = "fold"
    rows: defaultdict[tuple[str, int, str], list[Group]] = defaultdict(list)
    for one in groups:
        rows[one.machine, one.section, one.domain].append(one)
    for (machine, section, domain), own in rows.items():
        counts = {(one.split, one.label): str(one.n_files) for one in own}
        weights = [one.n_files for one in own]
        level = float(np.average([one.rms_dbfs for one in own], weights=weights))
        shown = ["-" if section < 0 else f"{section:02}", domain or "-", *(counts.get(kind, "") for kind in kinds)]
        minutes = sum(one.duration_s for one in own) / 60
        table.add_row(machine or "-", *shown, f"{minutes:.1f}", f"{level:.1f}")
    return _right_aligned(table, after=3)


def _spectra(report: Report) -> Table:
    used = [hz for hz in _OCTAVES_HZ if not np.isnan(_octave(report.spectra[""].median, hz))]
    header = [f"{hz}" if hz < 1000 else f"{hz // 1000}k" for hz in used]
    table = Table("octave at, Hz", *header, title="long-term spectrum, median dBFS")
    for machine, levels in report.spectra.items():
        if machine and len(report.spectra) == 2:
            continue  # one machine is all
        table.add_row(machine or "all", *(f"{_octave(levels.median, hz):.0f}" for hz in used))
    return _right_aligned(table)


def _octave(spectrum_dbfs: Spectrum, centre_hz: float) -> float:
    """Return the level of an octave band; NaN where the sound does not reach its centre."""
    inside = (centre_hz / np.sqrt(2) <= BAND_CENTRES_HZ) & (centre_hz * np.sqrt(2) > BAND_CENTRES_HZ)
    power = 10.0 ** (spectrum_dbfs[inside].astype(np.float64) / 10.0)
    reaches = not np.isnan(spectrum_dbfs[np.abs(BAND_CENTRES_HZ - 0.9 * centre_hz).argmin()])
    return float(10.0 * np.log10(np.nansum(power))) if reaches else float("nan")


def _marked(report: Report) -> Table:
    assert report.marked is not None
    table = Table("label", "events", "shortest, s", "median, s", "longest, s", "in all, s")
    table.title = f"annotated events in {report.marked.n_files} of {report.n_read} files"
    for one in report.marked.labels:
        lengths = (f"{value:.2f}" for value in (one.shortest_s, one.median_s, one.longest_s))
        table.add_row(one.label or "-", str(one.n_events), *lengths, f"{one.total_s:.1f}")
    return _right_aligned(table)


def _right_aligned(table: Table, *, after: int = 1) -> Table:
    for column in table.columns[after:]:
        column.justify = "right"
    return table


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
