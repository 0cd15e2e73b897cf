"""The tables of a replay: their columns, what makes a row, and when there is a file."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edgeasd.errors import CannotWriteError
from edgeasd.publish.tables import EventTable, NoticeTable, Recording, ScoreTable, Table
from edgeasd.records import Band, Confirmation, Event, EventType, Fault, Level, Opinion, Score, StateNotice

RATE_HZ, WINDOW, HOP = 16_000, 16_000, 8_000
UTC_NS = 1_768_458_600_250_000_000  # 2026-01-15T06:30:00.25Z
RECORDING = Recording("hall/a.wav", rate_hz=RATE_HZ, origin_utc_ns=UTC_NS)

# Columns are a promise: new ones go to the end.
SCORE_HEADER = (
    "file,start_s,end_s,score,p_value,valid,model,model_p_value,prompt,prompt_p_value,confirmed,confirmed_p_value,"
    "warmup,fault,rms_dbfs,start_utc"
)
EVENT_HEADER = "file,start_s,end_s,peak_score,p_value,peak_s,confirmed,bands,event_id,start_utc"
NOTICE_HEADER = "file,start_s,distance_db,start_utc"


def _join(novelty: Opinion | None, model: Opinion | None) -> Opinion:
    return novelty or model or Opinion(0.0, 1.0)


def _score(index: int, **changes: object) -> Score:
    score = Score(
        source="replay",
        first_frame=index * HOP,
        n_frames=WINDOW,
        captured_ns=0,
        score=1.0,
        p_value=0.1,
        threshold=4.0,
        model=None,
        prompt=Opinion(2.5, 0.125),
        confirmed=None,
        level=Level(-30.0, -12.0, 0.0, 0.0),
        fault=None,
        warmup=False,
    )
    return replace(score, **changes)  # type: ignore[arg-type]


def _confirmation(index: int, score: float = 7.0) -> Confirmation:
    return Confirmation(index * HOP, WINDOW, Opinion(score, 10.0**-score))


def _event(event_type: EventType = EventType.END, *, confirmed: bool | None = True) -> Event:
    return Event(
        event_type=event_type,
        event_id="01ARYZ6S410000000000000000",
        source="replay",
        start_frame=32_000,
        end_frame=56_000,
        peak_score=6.25,
        peak_frame=40_000,
        p_value=5.623413e-07,
        bands=(Band(1770.4, 7680.0, 0.8125), Band(28.0, 86.0, 0.1)),
        confirmed=confirmed,
    )


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "scores.csv"


def _waiting(path: Path) -> ScoreTable:
    return ScoreTable(path, join=_join, waits_for_confirmation=True)


def test_the_columns_are_the_promised_ones(tmp_path: Path) -> None:
    makers: dict[str, Callable[[Path], ScoreTable | EventTable | NoticeTable]] = {
        SCORE_HEADER: _waiting,
        EVENT_HEADER: EventTable,
        NOTICE_HEADER: NoticeTable,
    }
    for number, (header, make) in enumerate(makers.items()):
        table = make(tmp_path / f"{number}.csv")
        table.close()
        assert (tmp_path / f"{number}.csv").read_bytes() == header.encode() + b"\n"


def test_a_row_says_everything_about_a_window(path: Path) -> None:
    table = ScoreTable(path, join=_join, waits_for_confirmation=False)
    table.take(RECORDING, _score(3, model=Opinion(123.4567891, 0.25)))
    table.close()
    assert path.read_text(encoding="utf-8").splitlines()[1] == (
        "hall/a.wav,1.500,2.500,2.5,0.125,true,123.457,0.25,2.5,0.125,,,false,,-30.00,2026-01-15T06:30:01.750Z"
    )
    assert table.n_rows == 1


def test_rows_wait_for_the_second_look_and_keep_their_order(path: Path) -> None:
    table = _waiting(path)
    for index in range(4):
        table.take(RECORDING, _score(index))
    assert table.n_rows == 0
    table.take(RECORDING, _confirmation(1))  # not its turn yet
    assert table.n_rows == 0
    table.take(RECORDING, _score(4, confirmed=_confirmation(0)))
    assert table.n_rows == 2
    table.end_of_file(RECORDING)
    table.close()
    rows = _rows(path)
    assert [row["start_s"] for row in rows] == ["0.000", "0.500", "1.000", "1.500", "2.000"]
    assert [row["confirmed"] for row in rows] == ["7", "7", "", "", ""]
    assert [row["score"] for row in rows] == ["7", "7", "2.5", "2.5", "2.5"]  # the joined one follows the second look


def test_a_faulty_window_is_a_row_without_a_score(path: Path) -> None:
    table = _waiting(path)
    table.take(RECORDING, _score(0, fault=Fault.CLIPPED, prompt=None))
    table.close()
    (row,) = _rows(path)
    assert (row["valid"], row["fault"], row["score"], row["p_value"]) == ("false", "clipped", "0", "1")
    assert row["prompt"] == row["confirmed"] == row["model"] == ""


def test_a_faulty_window_does_not_overtake_those_that_wait(path: Path) -> None:
    table = _waiting(path)
    table.take(RECORDING, _score(0))
    table.take(RECORDING, _score(1, fault=Fault.DEAD, prompt=None))
    assert table.n_rows == 0
    table.take(RECORDING, _confirmation(0))
    assert table.n_rows == 2
    table.close()
    assert [row["valid"] for row in _rows(path)] == ["true", "false"]


def test_in_warm_up_the_other_judge_is_heard_as_in_the_messages(path: Path) -> None:
    table = _waiting(path)
    table.take(RECORDING, _score(0, warmup=True, prompt=Opinion(0.0, 1.0), model=Opinion(9.0, 1e-3)))
    table.take(RECORDING, _confirmation(0, 0.0))
    table.close()
    (row,) = _rows(path)
    assert (row["warmup"], row["score"], row["p_value"]) == ("true", "9", "0.001")


def test_a_second_look_at_nothing_is_ignored(path: Path) -> None:
    table = _waiting(path)
    table.take(RECORDING, _confirmation(17))
    table.end_of_file(RECORDING)
    table.close()
    assert _rows(path) == []


def test_the_next_file_begins_anew(path: Path) -> None:
    table = _waiting(path)
    for name in ("a.wav", "b.wav"):
        recording = Recording(name, rate_hz=RATE_HZ, origin_utc_ns=None)
        table.take(recording, _score(0))
        table.end_of_file(recording)
    table.close()
    assert [(row["file"], row["start_s"], row["start_utc"]) for row in _rows(path)] == [
        ("a.wav", "0.000", ""),
        ("b.wav", "0.000", ""),
    ]


def test_an_event_is_one_row_once_it_has_ended(tmp_path: Path) -> None:
    table = EventTable(tmp_path / "events.csv")
    table.take(RECORDING, _event(EventType.START))
    table.take(RECORDING, _event(EventType.UPDATE))
    assert table.n_rows == 0
    table.take(RECORDING, _event())
    assert table.n_rows == 1
    table.close()
    assert (tmp_path / "events.csv").read_text(encoding="utf-8").splitlines()[1] == (
        "hall/a.wav,2.000,3.500,6.25,5.62341e-07,2.500,true,1770-7680Hz:0.81 28-86Hz:0.10,"
        "01ARYZ6S410000000000000000,2026-01-15T06:30:02.250Z"
    )


def test_what_the_second_look_took_back_leaves_no_row(tmp_path: Path) -> None:
    table = EventTable(tmp_path / "events.csv")
    table.take(RECORDING, _event(confirmed=False))
    table.take(RECORDING, _event(confirmed=None))  # nobody looked twice: it stands
    table.close()
    assert [row["confirmed"] for row in _rows(tmp_path / "events.csv")] == [""]


def test_a_notice_is_a_row(tmp_path: Path) -> None:
    table = NoticeTable(tmp_path / "notices.csv")
    table.take(RECORDING, StateNotice("replay", 24_000, distance_db=5.678))
    table.close()
    line = (tmp_path / "notices.csv").read_text(encoding="utf-8").splitlines()[1]
    assert line == "hall/a.wav,1.500,5.68,2026-01-15T06:30:01.750Z"


def test_odd_file_names_survive_the_table(path: Path) -> None:
    name = 'odd, "quoted"\n\u00e9.wav'
    table = ScoreTable(path, join=_join, waits_for_confirmation=False)
    table.take(Recording(name, rate_hz=RATE_HZ, origin_utc_ns=None), _score(0))
    table.close()
    assert _rows(path)[0]["file"] == name


def test_a_file_appears_only_when_it_is_complete(path: Path) -> None:
    path.write_text("of before", encoding="utf-8")
    table = _waiting(path)
    table.take(RECORDING, _score(0))
    assert path.read_text(encoding="utf-8") == "of before"
    table.end_of_file(RECORDING)
    table.close()
    assert path.read_text(encoding="utf-8").startswith(SCORE_HEADER)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_folders_are_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deep" / "scores.csv"
    _waiting(path).close()
    assert path.is_file()


def test_what_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    with pytest.raises(CannotWriteError, match=r"scores\.csv: cannot be written: (Not a directory|File exists)"):
        _waiting(in_the_way / "scores.csv")
    folder = tmp_path / "scores.csv"
    folder.mkdir()
    with pytest.raises(CannotWriteError, match=r"scores\.csv: cannot be written: Is a directory"):
        _waiting(folder)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "scores.csv"]


def test_a_full_disk_is_said(path: Path) -> None:
    path.with_name("scores.csv.partial").symlink_to("/dev/full")
    table = Table(path, ["a"])
    with pytest.raises(CannotWriteError, match=r"scores\.csv: cannot be written: No space left on device"):
        table.write(["x" * 100_000])
    table.discard()
    table = Table(path, ["a"])
    path.with_name("scores.csv.partial").unlink()
    with pytest.raises(CannotWriteError, match=r"scores\.csv: cannot be written: No such file"):
        table.close()
    assert list(path.parent.iterdir()) == []


def test_what_is_not_finished_leaves_nothing_behind(path: Path) -> None:
    path.write_text("of before", encoding="utf-8")
    table = _waiting(path)
    table.take(RECORDING, _score(0))
    table.discard()
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert path.read_text(encoding="utf-8") == "of before"


def test_what_is_in_its_place_stays_there(path: Path) -> None:
    table = _waiting(path)
    table.close()
    table.discard()
    assert path.is_file()


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (0, "2026-01-15T06:30:00.250Z"),
        (15_999, "2026-01-15T06:30:01.249Z"),
        (16_000 * 86_400, "2026-01-16T06:30:00.250Z"),
    ],
)
def test_utc_is_exact_to_the_millisecond(frame: int, expected: str) -> None:
    assert RECORDING.utc(frame) == expected
