"""The picture of a corpus: lengths, levels, spectra, and spectrograms of typical and of extreme files."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.ticker import MaxNLocator

from edgeasd.capture.convert import Channel
from edgeasd_train.corpus.measure import BAND_CENTRES_HZ, N_BANDS
from edgeasd_train.corpus.report import Group, Report
from edgeasd_train.corpus.report_examples import N_COLUMNS, draw_spectrograms, pick
from edgeasd_train.corpus.survey import Survey
from edgeasd_train.pictures import GREY, NORMAL, STRANGE, picture

_MOST_MACHINES = 24
_TICKS_HZ = np.array([125, 250, 500, 1000, 2000, 4000, 8000, 16000])
_KINDS = {
    ("train", "normal"): ("train, normal", NORMAL),
    ("train", "anomaly"): ("train, anomaly", "#7b2d26"),
    ("test", "normal"): ("test, normal", "#9cc5da"),
    ("test", "anomaly"): ("test, anomaly", STRANGE),
    ("test", ""): ("test, unlabelled", "#c9b458"),
}
"""Name and colour of the clips of a split and label; all others are grey."""


def draw_corpus(path: Path, survey: Survey, report: Report, *, channel: Channel) -> None:
    """Draw what a corpus holds to a PNG file; CannotWriteError when that fails."""
    picks = pick(survey)
    n_rows = -(-len(picks) // N_COLUMNS)
    heights = [3.2, 4.0, 2.9 * n_rows]
    with picture(path, size_in=(15.0, sum(heights) + 0.5)) as drawn:
        drawn.suptitle(f"{report.n_read} files, {report.total_s / 3600:.2f} h of sound", fontsize=13)
        places = drawn.subfigures(3, 1, height_ratios=heights, squeeze=False)
        top, middle, bottom = (places[i, 0] for i in range(3))
        axes = top.subplots(1, 3 if report.groups else 2)
        _draw_lengths(axes[0], survey)
        _draw_levels(axes[1], survey)
        if report.groups:
            _draw_clips(axes[2], report.groups)
        _draw_spectra(middle, report)
        draw_spectrograms(bottom, survey, picks, channel=channel)


def _draw_lengths(axes: Axes, survey: Survey) -> None:
    duration_s = survey.duration_s()[survey.good]
    low, high = float(duration_s.min()), float(duration_s.max())
    if high > 20 * low:
        axes.hist(duration_s, np.geomspace(low, high, 41).tolist(), color=NORMAL)
        axes.set_xscale("log")
    else:
        edges = np.linspace(low - 0.5, high + 0.5, 21) if high - low < 1 else np.linspace(low, high, 41)
        axes.hist(duration_s, edges.tolist(), color=NORMAL)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    axes.set(xlabel="length, s", ylabel="files", title="lengths")


def _draw_levels(axes: Axes, survey: Survey) -> None:
    rms_dbfs, peak_dbfs = (survey.columns[name][survey.good].astype(np.float64) for name in ("rms_dbfs", "peak_dbfs"))
    low = max(-100.0, float(min(rms_dbfs.min(), peak_dbfs.min())))
    edges = np.linspace(5 * np.floor(low / 5) - 1, max(1.0, float(peak_dbfs.max()) + 1), 61)
    axes.hist(np.maximum(rms_dbfs, edges[0]), edges.tolist(), color=NORMAL, alpha=0.75, label="RMS")
    axes.hist(np.maximum(peak_dbfs, edges[0]), edges.tolist(), color=STRANGE, alpha=0.6, label="peak")
    axes.axvline(0.0, color=GREY, linewidth=0.8, linestyle=":")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    axes.set(xlabel="level, dBFS", ylabel="files", title="levels")
    axes.legend(fontsize=8)


def _draw_clips(axes: Axes, groups: Sequence[Group]) -> None:
    """Draw a bar a machine: its clips by split and label."""
    counts: defaultdict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
    for one in groups:
        kind = (one.split, one.label)
        counts[one.machine][kind if kind in _KINDS else ("", "")] += one.n_files
    machines = sorted(counts, key=lambda machine: (-counts[machine].total(), machine))[:_MOST_MACHINES]
    left = np.zeros(len(machines))
    for kind, (name, colour) in {**_KINDS, ("", ""): ("other", "#bbbbbb")}.items():
        width = np.array([counts[machine][kind] for machine in machines], float)
        if width.any():
            axes.barh(range(len(machines)), width, left=left, color=colour, label=name)
        left += width
    axes.set_yticks(range(len(machines)), [machine or "no name" for machine in machines], fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="clips", title="clips of each machine")
    axes.legend(fontsize=8, loc="lower right")


def _draw_spectra(figure: SubFigure, report: Report) -> None:
    """Draw the spectrum of all files and, of several machines, that of each."""
    machines = [machine for machine in report.spectra if machine][:_MOST_MACHINES]
    everything = report.spectra[""]
    n_bands = int((~np.isnan(everything.median)).sum())  # up to half the highest rate
    places = figure.subplots(1, 2 if len(machines) > 1 else 1, squeeze=False)[0]
    left, bands = places[0], np.arange(n_bands)
    spread = (everything.q10[:n_bands], everything.q90[:n_bands])
    left.fill_between(bands, *spread, color=NORMAL, alpha=0.25, linewidth=0, label="10 to 90 % of the files")
    left.plot(bands, everything.median[:n_bands], color=NORMAL, linewidth=1.8, label="median")
    left.set(ylabel="level of a mel band, dBFS", title="long-term average spectrum", xlim=(0, n_bands - 1))
    left.grid(alpha=0.25)
    left.legend(fontsize=8)
    if len(machines) > 1:
        levels = np.array([report.spectra[machine].median[:n_bands] for machine in machines])
        image = places[1].imshow(levels, aspect="auto", interpolation="nearest", cmap="viridis")
        places[1].set_yticks(range(len(machines)), machines, fontsize=8)
        places[1].set(title="median spectrum of each machine")
        figure.colorbar(image, ax=places[1], label="level of a mel band, dBFS", pad=0.01)
    ticks_hz = _TICKS_HZ[BAND_CENTRES_HZ[n_bands - 1] * 1.05 >= _TICKS_HZ]
    for place in places:
        place.set_xticks(
            np.interp(ticks_hz, BAND_CENTRES_HZ, np.arange(N_BANDS)), [_hz(hz) for hz in ticks_hz.tolist()]
        )
        place.set_xlabel("frequency, Hz (mel scale)")


def _hz(frequency_hz: int) -> str:
    return f"{frequency_hz}" if frequency_hz < 1000 else f"{frequency_hz // 1000}k"
