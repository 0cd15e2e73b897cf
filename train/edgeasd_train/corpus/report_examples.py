"""Spectrograms of a few recordings that stand for a corpus, and of those that stand out of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure

from edgeasd.capture.convert import Channel, to_mono
from edgeasd.features.mel import StftPower
from edgeasd_train.corpus.measure import dbfs, fft_frames
from edgeasd_train.corpus.report import SILENT_DBFS
from edgeasd_train.corpus.survey import Survey

N_COLUMNS = 3
_SHOWN_S = 10.0
_RANGE_DB = 70.0
_MOST_COMPARED = 20_000
"""Spectra looked at for what is typical and what is odd, evenly spread over the files."""
_LONGEST_NAME = 54


@dataclass(frozen=True, slots=True)
class Pick:
    """A recording to show, and why."""

    number: int
    why: str


def pick(survey: Survey) -> list[Pick]:
    """Return two typical recordings, the quietest that is not silent, the loudest, and the two oddest; each once."""
    rms_dbfs = survey.columns["rms_dbfs"]
    good = survey.good
    audible = good[rms_dbfs[good] >= SILENT_DBFS]
    audible = audible if len(audible) else good
    by_level = audible[np.argsort(rms_dbfs[audible], kind="stable")]
    compared = audible[:: -(-len(audible) // _MOST_COMPARED)]
    spectra = survey.columns["spectrum_dbfs"][compared].astype(np.float32)
    filled = ~np.isnan(spectra).all(axis=0)
    away_db = spectra[:, filled] - np.nanmedian(spectra[:, filled], axis=0)
    typical = compared[np.argsort(np.nanmean(away_db**2, axis=1), kind="stable")]
    odd = compared[np.argsort(-np.nanstd(away_db, axis=1), kind="stable")]  # odd in shape, however loud
    wanted = [("typical", typical[:2]), ("quietest", by_level[:1]), ("loudest", by_level[-1:])]
    wanted.append(("odd spectrum", odd[:2]))
    reasons: dict[int, list[str]] = {}
    for why, numbers in wanted:
        for number in numbers.tolist():
            reasons.setdefault(number, []).append(why)
    return [Pick(number, ", ".join(why)) for number, why in reasons.items()]


def draw_spectrograms(figure: SubFigure, survey: Survey, picks: Sequence[Pick], *, channel: Channel) -> None:
    """Draw the beginning of each recording picked."""
    n_rows = -(-len(picks) // N_COLUMNS)
    places = figure.subplots(n_rows, N_COLUMNS, squeeze=False).ravel()
    for place in places[len(picks) :]:
        place.set_axis_off()
    for place, one in zip(places[: len(picks)], picks, strict=True):
        _draw(place, survey, one, channel)


def _draw(axes: Axes, survey: Survey, one: Pick, channel: Channel) -> None:
    path = Path(survey.recordings.name(one.number))
    row = survey.columns[one.number]
    rate_hz = int(row["rate_hz"])
    with soundfile.SoundFile(path) as file:
        block = file.read(round(_SHOWN_S * rate_hz), dtype="float32", always_2d=True)
    samples = np.ascontiguousarray(to_mono(block, channel))
    n_fft = fft_frames(rate_hz)
    power = StftPower(n_fft, n_fft // 4).transform(np.pad(samples, (0, max(0, n_fft - len(samples)))))
    level_dbfs = dbfs(power.T.astype(np.float64) / n_fft**2)
    top_dbfs = float(np.quantile(level_dbfs[3:], 0.999))  # DC and its skirts aside
    axes.imshow(
        level_dbfs,
        origin="lower",
        aspect="auto",
        extent=(0.0, len(samples) / rate_hz, 0.0, rate_hz / 2000),
        vmin=top_dbfs - _RANGE_DB,
        vmax=top_dbfs,
        cmap="magma",
    )
    level = f"{one.why}; RMS {row['rms_dbfs']:.1f} dBFS, peak {row['peak_dbfs']:.1f} dBFS"
    axes.set_title(f"{level}\n{_shortened(path)}", fontsize=8.5)
    whole_s = int(row["n_frames"]) / rate_hz
    axes.set(xlabel="time, s" + (f" (of {whole_s:.0f})" if whole_s > _SHOWN_S + 1 else ""), ylabel="frequency, kHz")


def _shortened(path: Path) -> str:
    """Return the end of a path, as much of it as there is room for; the folder tells the machine."""
    parts = [part for part in path.parts[-3:] if part not in (path.anchor, "train", "test")]
    name = "/".join(parts[-2:])
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME // 2]}...{name[-_LONGEST_NAME // 2 :]}"
