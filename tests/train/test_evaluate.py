"""Judging on annotated recordings: what a user gets, from sound and annotations to figures."""

from __future__ import annotations

import csv
import io
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import soundfile
from rich.console import Console

from edgeasd.assembly import JudgeOptions
from edgeasd.errors import CannotWriteError, InputError
from edgeasd.replay import ReplayJob
from edgeasd_train.corpus.annotations import Annotation
from edgeasd_train.evaluate import evaluate_streams, kind_of
from edgeasd_train.judging.alarms import Rules
from edgeasd_train.judging.streams import (
    LANES,
    RecordingFigures,
    alarm_table,
    judge,
    mean_of_lane,
    read_played,
    window_table,
)
from tests.conftest import MakeSoundscape

Spans = Sequence[tuple[float, float]]

FIRST: Spans = ((40.0, 41.5), (57.0, 58.0), (75.0, 76.0))
SECOND: Spans = ((50.0, 51.0), (70.0, 72.0))


def _annotate(path: Path, spans: Spans) -> None:
    rows = "".join(f"{onset_s},{offset_s},rattle\n" for onset_s, offset_s in spans)
    path.write_text("onset,offset,label\n" + rows, encoding="utf-8")


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory, make_soundscape: MakeSoundscape) -> Path:
    """Two recordings of 90 s, each with its annotations beside it."""
    root = tmp_path_factory.mktemp("originals")
    for name, seed, spans in (("a/first.wav", 0, FIRST), ("second.wav", 1, SECOND)):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        sound = make_soundscape(90.0, seed=seed, events=tuple(spans))
        soundfile.write(path, sound.samples, sound.rate_hz, subtype="PCM_16")
        _annotate(path.with_suffix(".csv"), spans)
    return root


@pytest.fixture
def tree(originals: Path, tmp_path: Path) -> Path:
    """A copy of them that a test may spoil."""
    return Path(shutil.copytree(originals, tmp_path / "tree"))


def _evaluate(out: Path, *paths: Path, annotations: Path | None = None) -> list[RecordingFigures]:
    return evaluate_streams(ReplayJob(paths, JudgeOptions()), annotations=annotations, out=out)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def _text(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_planted_events_are_found(tree: Path, tmp_path: Path) -> None:
    figures = _evaluate(tmp_path / "out", tree)
    assert [one.alarms.recording for one in figures] == ["a/first.wav", "second.wav"]
    for one, spans in zip(figures, (FIRST, SECOND), strict=True):
        lanes = {lane.lane: lane for lane in one.lanes}
        assert set(lanes) == {"score", "confirmed", "prompt"}  # no bundle, no model
        assert lanes["score"].auc > 0.95
        assert lanes["score"].recall_at_60 == 1.0
        assert 0.0 < lanes["score"].delay_at_60_s < 2.0
        assert one.alarms.n_annotated == len(spans)
        assert one.alarms.recall == 1.0
    # Judged from 5 s before the first event on; left out are the events and a second on either side.
    end_s, quiet_s = 90.0, sum(offset_s - onset_s + 2.0 for onset_s, offset_s in FIRST)
    assert figures[0].alarms.hours == pytest.approx((end_s - 35.0 - quiet_s) / 3600)


def test_figures_are_written_beside_what_they_are_taken_from(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    figures = _evaluate(out, tree)
    tables = ["alarms.csv", "events.csv", "scores.csv", "windows.csv"]
    assert sorted(path.name for path in out.iterdir()) == sorted([*tables, "a_first.wav.png", "second.wav.png"])
    windows, alarms = _rows(out / "windows.csv"), _rows(out / "alarms.csv")
    assert [(row["recording"], row["lane"]) for row in windows] == [
        (one.alarms.recording, lane.lane) for one in figures for lane in one.lanes
    ]
    assert float(windows[0]["auc"]) == pytest.approx(figures[0].lanes[0].auc, abs=1e-4)
    assert [row["recording"] for row in alarms] == ["a/first.wav", "second.wav"]
    assert [int(row["n_reported"]) for row in alarms] == [one.alarms.n_reported for one in figures]
    assert [float(row["median_delay_s"]) for row in alarms] == pytest.approx(
        [one.alarms.median_delay_s for one in figures], abs=1e-4
    )


def test_one_table_may_annotate_all(tree: Path, tmp_path: Path) -> None:
    lines = [f"{onset},{offset},first.wav" for onset, offset in FIRST]
    lines += [f"{onset},{offset},second.wav" for onset, offset in SECOND]
    by_name = _text(tmp_path / "by_name.csv", "\n".join(["onset,offset,file", *lines]))
    by_path = _text(tmp_path / "by_path.csv", by_name.read_text().replace("first.wav", "a/first.wav"))
    beside = _evaluate(tmp_path / "beside", tree)
    assert _evaluate(tmp_path / "by_name", tree, annotations=by_name) == beside
    assert _evaluate(tmp_path / "by_path", tree, annotations=by_path) == beside


def test_missing_annotations_are_named_before_any_work(tree: Path, tmp_path: Path) -> None:
    (tree / "second.csv").unlink()
    with pytest.raises(InputError, match=r"second\.csv: annotations cannot be read: No such file"):
        _evaluate(tmp_path / "out", tree)
    _text(tree / "second.csv", "onset,offset\n")
    with pytest.raises(InputError, match=r"second\.csv: holds no event of second\.wav"):
        _evaluate(tmp_path / "out", tree)
    table = _text(tmp_path / "table.csv", "onset,offset,file\n1,2,first.wav\n")
    with pytest.raises(InputError, match=r"table\.csv: holds no event of second\.wav"):
        _evaluate(tmp_path / "out", tree, annotations=table)
    assert not (tmp_path / "out").exists()


def test_events_behind_the_end_of_a_recording_are_refused(tree: Path, tmp_path: Path) -> None:
    _annotate(tree / "second.csv", ((500.0, 501.0),))
    with pytest.raises(InputError, match=r"second\.wav: its 90 s end before what is to be judged, from 495 s on"):
        _evaluate(tmp_path / "out", tree / "second.wav")


def test_two_recordings_of_one_name_are_not_mixed_up(
    tree: Path, tmp_path: Path, make_soundscape: MakeSoundscape
) -> None:
    other = tree / "first.wav"
    soundfile.write(other, make_soundscape(20.0).samples, 16_000)
    _annotate(other.with_suffix(".csv"), ((5.0, 6.0),))
    with pytest.raises(InputError, match="same name"):
        _evaluate(tmp_path / "out", tree / "a" / "first.wav", other)


def test_an_early_event_leaves_no_time_before_the_start(tmp_path: Path) -> None:
    header = "file,start_s,end_s,score,valid,confirmed,prompt,model\n"
    rows = "".join(f"x.wav,{i},{i + 1},{9 if i == 2 else 0}.0,true,,,\n" for i in range(20))
    scores = _text(tmp_path / "scores.csv", header + rows)
    events = _text(tmp_path / "events.csv", "file,start_s,end_s\nx.wav,2.0,3.0\nx.wav,15.0,16.0\ny.wav,9.0,10.0\n")
    judged = judge("x.wav", read_played(scores, events)["x.wav"], [Annotation(2.0, 3.0)], rules=Rules())
    figures = judged.figures
    assert figures.alarms.hours == pytest.approx(17.0 / 3600)
    assert (figures.alarms.n_reported, figures.alarms.recall) == (2, 1.0)
    assert figures.alarms.false_alarms_per_hour == pytest.approx(3600 / 17.0)
    (lane,) = figures.lanes
    assert (lane.lane, lane.auc, lane.recall_at_6, lane.delay_at_6_s) == ("score", 1.0, 1.0, 1.0)


def test_faulty_windows_are_not_judged(tmp_path: Path) -> None:
    header = "file,start_s,end_s,score,valid,confirmed,prompt,model\n"
    rows = "".join(f"x.wav,{i},{i + 1},0.0,false,,,\n" for i in range(20))
    scores = _text(tmp_path / "scores.csv", header + rows)
    events = _text(tmp_path / "events.csv", "file,start_s,end_s\n")
    judged = judge("x.wav", read_played(scores, events)["x.wav"], [Annotation(8.0, 9.0)], rules=Rules())
    figures = judged.figures
    assert figures.lanes == ()
    assert figures.alarms.recall == 0.0


def test_a_place_that_cannot_be_written_is_said(tree: Path, tmp_path: Path) -> None:
    in_the_way = _text(tmp_path / "file", "")
    with pytest.raises(CannotWriteError):
        _evaluate(in_the_way / "out", tree / "second.wav")


def test_the_tables_for_a_terminal_say_the_same(tree: Path, tmp_path: Path) -> None:
    figures = _evaluate(tmp_path / "out", tree)
    stream = io.StringIO()
    Console(file=stream, width=120).print(window_table(figures), alarm_table(figures, budget="12/hour"))
    text = stream.getvalue()
    assert "events at a budget of 12/hour" in text
    assert text.count("a/first.wav") == 4
    mean = mean_of_lane(figures, "score")
    assert mean is not None
    assert mean.auc == pytest.approx(sum(one.lanes[0].auc for one in figures) / 2)
    assert f"{mean.auc:.3f}" in text
    assert mean_of_lane(figures, "model") is None
    assert LANES[0] == "score"
    assert not math.isnan(mean.delay_at_60_s)


def test_what_recordings_are_judged_by_is_seen_from_what_lies_there(tree: Path, tmp_path: Path) -> None:
    assert kind_of([tree], events=None) == "streams"
    assert kind_of([tree / "second.wav"], events=None) == "streams"
    shutil.copy(tree / "second.wav", tmp_path / "anomaly_1.wav")
    assert kind_of([tmp_path / "anomaly_1.wav"], events=None) == "clips"
    assert kind_of([tmp_path / "anomaly_1.wav"], events=tmp_path / "events.csv") == "streams"


def test_recordings_without_truth_are_refused_saying_what_was_looked_for(tree: Path) -> None:
    (tree / "second.csv").unlink()
    with pytest.raises(InputError) as caught:
        kind_of([tree / "second.wav"], events=None)
    assert str(caught.value) == (
        f"{tree / 'second.wav'}: nothing to judge by: no name says normal or anomaly (as in DCASE's trees, or "
        "normal_1.wav), and no table of events, second.csv, lies beside it; --events names another"
    )
