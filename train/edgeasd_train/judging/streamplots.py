"""The picture of a long recording: what was said when, what that costs in false alarms, and how late it came."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from edgeasd_train.judging.alarms import Detection, best_within
from edgeasd_train.judging.streams import UP_TO_PER_HOUR, Judged
from edgeasd_train.pictures import GREY, NORMAL, STRANGE, picture

_COLOURS = {"score": "black", "confirmed": NORMAL, "prompt": "#7fb069", "model": STRANGE}
_PER_HOUR = 60.0
"""Where delays are looked at."""


def draw_recording(path: Path, judged: Judged) -> None:
    """Draw score over time with annotated and reported events; recall against false alarms per hour; delays."""
    with picture(path, size_in=(12.0, 7.0)) as drawn:
        grid = drawn.add_gridspec(2, 2, height_ratios=(1.0, 1.15))
        _draw_timeline(drawn.add_subplot(grid[0, :]), judged)
        _draw_sweeps(drawn.add_subplot(grid[1, 0]), judged)
        _draw_delays(drawn.add_subplot(grid[1, 1]), judged)
        drawn.suptitle(judged.figures.alarms.recording)


def _draw_timeline(axes: Axes, judged: Judged) -> None:
    windows = judged.played.lanes.get("score")
    top = 1.0
    if windows is not None:
        axes.plot(windows.end_s, windows.score, color="black", linewidth=0.7, label="score")
        top = max(1.0, float(windows.score.max()))
    for i, event in enumerate(judged.events):
        name = "annotated" if i == 0 else None
        axes.axvspan(event.onset_s, event.offset_s, color=STRANGE, alpha=0.35, linewidth=0, label=name)
    alarms = judged.played.alarms
    spans = list(zip(alarms.start_s.tolist(), (alarms.end_s - alarms.start_s).tolist(), strict=True))
    axes.broken_barh(spans, (-0.09 * top, 0.06 * top), color=NORMAL, label="reported")
    axes.axvspan(0, judged.judged_from_s, color=GREY, alpha=0.12, linewidth=0, label="not judged")
    axes.set(xlim=(0, judged.played.end_s), ylim=(-0.12 * top, 1.25 * top), xlabel="s", ylabel="score (-log10 p)")
    axes.legend(loc="upper left", ncols=4, fontsize=8, framealpha=0.9)


def _draw_sweeps(axes: Axes, judged: Judged) -> None:
    """Draw the recall that is to be had at each rate of false alarms, for each lane, and the node's own threshold."""
    for lane, swept in judged.sweeps.items():
        if _is_other(judged, lane):
            continue
        rate = np.array([found.false_alarms_per_hour for found in swept])
        recall = np.maximum.accumulate([found.recall for found in swept])
        reached = np.maximum.accumulate(rate)  # a lower threshold may join two false alarms into one
        ends = np.append(reached, UP_TO_PER_HOUR), np.append(recall, recall[-1])
        axes.step(*ends, where="post", color=_COLOURS[lane], linewidth=1.6, label=lane)
    alarms = judged.figures.alarms
    if alarms.false_alarms_per_hour <= UP_TO_PER_HOUR:
        place = ([alarms.false_alarms_per_hour], [alarms.recall])
        axes.plot(*place, "o", color="black", markersize=8, fillstyle="none", label="reported events")
    axes.set(xlim=(-2, UP_TO_PER_HOUR), ylim=(-0.02, 1.05), xlabel="false alarms per hour", ylabel="recall of events")
    axes.legend(loc="lower right", fontsize=8)


def _draw_delays(axes: Axes, judged: Judged) -> None:
    """Draw how long after the onset each event was found, at the threshold for `_PER_HOUR` false alarms an hour."""
    hours = judged.figures.alarms.hours
    found = {
        lane: best_within(swept, per_hour=_PER_HOUR, hours=hours)
        for lane, swept in judged.sweeps.items()
        if not _is_other(judged, lane)
    }
    longest_s = max((delay_s for one in found.values() for delay_s in one.delays_s), default=1.0)
    edges = np.arange(0.0, max(2.0, longest_s) + 0.25, 0.25)
    axes.hist(
        [one.delays_s for one in found.values()],
        edges.tolist(),
        color=[_COLOURS[lane] for lane in found],
        label=[_named(lane, one) for lane, one in found.items()],
    )
    axes.set(xlabel=f"s from onset to the window that tells, at {_PER_HOUR:g} false alarms/h", ylabel="events")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize=8)


def _named(lane: str, found: Detection) -> str:
    late = ", known 6 s later" if lane in ("score", "confirmed") else ""
    return f"{lane}: {len(found.delays_s)} found{late}"


def _is_other(judged: Judged, lane: str) -> bool:
    """Return whether a lane is drawn as another already: the joined score is mostly one judge's on another scale."""
    if lane != "score":
        return False
    found = [(one.false_alarms, one.delays_s) for one in judged.sweeps[lane]]
    others = (swept for name, swept in judged.sweeps.items() if name != lane)
    return any(found == [(one.false_alarms, one.delays_s) for one in swept] for swept in others)
