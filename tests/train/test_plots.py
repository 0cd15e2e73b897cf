"""The pictures: that they show what was measured, read from what is drawn rather than from pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.image import imread
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from edgeasd.bundle import read_bundle
from edgeasd.errors import CannotWriteError
from edgeasd_train.corpus.annotations import Annotation
from edgeasd_train.judging.alarms import Alarms, Rules, WindowScores
from edgeasd_train.judging.clipfiles import ClipReport
from edgeasd_train.judging.clips import MachineScores
from edgeasd_train.judging.dcase import Clips, judge_clips
from edgeasd_train.judging.plots import draw_clips
from edgeasd_train.judging.streamplots import draw_recording
from edgeasd_train.judging.streams import Judged, Played, judge
from edgeasd_train.judging.threshold import Threshold
from edgeasd_train.pictures import picture
from tests.small_bundle import write_small_bundle

Floats = NDArray[np.float64]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Picture]:
    """Every figure that is written, by file name; it is written nevertheless."""
    figures: dict[str, Picture] = {}
    write = Picture.savefig

    def keep(self: Picture, path: Path) -> None:
        figures[path.name] = self
        write(self, path)

    monkeypatch.setattr(Picture, "savefig", keep)
    return figures


def _report(tmp_path: Path, *, anomalies_at: float = 3.0) -> ClipReport:
    bundle = read_bundle(write_small_bundle(tmp_path / "small.edgeasd"))
    random = np.random.default_rng(0)
    labels = np.arange(40) % 2
    scores = np.where(labels == 1, anomalies_at, 1.0) * random.uniform(0.8, 1.4, 40)
    files = tuple(f"{i}.wav" for i in range(40))
    clips = Clips("fan", 0, files, labels, np.arange(40) // 2 % 2, scores)
    machine = MachineScores("fan", bundle, (clips,), Threshold(1.3, "gamma", 20), ())
    judged = judge_clips([clips], thresholds={"fan": 1.3}, year=2023, n_draws=0)
    return ClipReport((machine,), judged)


def test_curves_and_histogram_show_the_clips(tmp_path: Path, drawn: dict[str, Picture]) -> None:
    report = _report(tmp_path, anomalies_at=1.3)
    draw_clips(tmp_path, report)
    assert sorted(drawn) == ["fan.png", "roc.png"]
    curves, histogram = drawn["fan.png"].axes
    found = report.judgement.find("AUC", machine="fan")
    source = report.judgement.find("AUC", machine="fan", section="00", domain="source")
    assert found is not None
    assert source is not None
    legend = [str(line.get_label()) for line in curves.lines[1:]]
    assert legend[0].startswith(f"all clips: AUC {found.value:.3f}, pAUC ")
    assert legend[1] == f"all clips, source: AUC {source.value:.3f}"
    fpr, tpr = _line(curves, 1)
    assert np.trapezoid(tpr, fpr) == pytest.approx(found.value)
    assert _legend(histogram) == [
        "normal (20)", "anomaly (20)", "threshold (gamma)",
    ]  # fmt: skip
    assert sum(bar.get_height() for bar in _bars(histogram)) == 40
    assert histogram.get_xscale() == "linear"
    assert imread(tmp_path / "fan.png").std() > 0.05


def test_anomalies_far_away_do_not_hide_what_is_normal(tmp_path: Path, drawn: dict[str, Picture]) -> None:
    draw_clips(tmp_path, _report(tmp_path, anomalies_at=100.0))
    assert drawn["fan.png"].axes[1].get_xscale() == "log"


def test_a_picture_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    with (
        pytest.raises(CannotWriteError, match=r"missing/x\.png: cannot be written: No such file"),
        picture(tmp_path / "missing" / "x.png", size_in=(2.0, 2.0)) as figure,
    ):
        figure.add_subplot()


def _line(axes: Axes, number: int) -> tuple[Floats, Floats]:
    line = axes.lines[number]
    return np.asarray(line.get_xdata(), np.float64), np.asarray(line.get_ydata(), np.float64)


def _bars(axes: Axes) -> list[Rectangle]:
    return [patch for patch in axes.patches if isinstance(patch, Rectangle)]


def _legend(axes: Axes) -> list[str]:
    legend = axes.get_legend()
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]


def _judged() -> Judged:
    """Two events, the second heard late; one false alarm louder than it."""
    start_s = np.arange(0.0, 120.0, 0.5)
    score = np.full(len(start_s), 0.1)
    score[[60, 140, 200]] = 5.0, 4.0, 3.0  # at 30 s, 70 s and 100 s
    windows = WindowScores(start_s, start_s + 1.0, score)
    played = Played({"score": windows, "prompt": windows}, Alarms(np.array([30.0]), np.array([31.0])), 121.0)
    return judge("a.wav", played, [Annotation(30.0, 31.0), Annotation(98.0, 101.5)], rules=Rules())


def test_a_recording_is_drawn_with_what_it_costs(tmp_path: Path, drawn: dict[str, Picture]) -> None:
    judged = _judged()
    draw_recording(tmp_path / "a.png", judged)
    timeline, sweep, delays = drawn["a.png"].axes
    assert _line(timeline, 0)[1].max() == 5.0
    spans = [span.get_x() for span in _bars(timeline)]
    assert spans == [30.0, 98.0, 0.0]  # the events, and what is not judged
    per_hour = 1 / judged.figures.alarms.hours
    rates, recalls = _line(sweep, 0)
    assert rates[0] == 0.0
    assert (rates[1], recalls[1]) == (0.0, 0.5)  # the first event comes without a false alarm
    assert rates[2] == pytest.approx(per_hour)
    assert recalls.max() == 1.0
    assert [line.get_label() for line in sweep.lines] == ["prompt", "reported events"]  # the score says the same
    assert sum(bar.get_height() for bar in _bars(delays)) == 2
    assert _legend(delays) == ["prompt: 2 found"]
