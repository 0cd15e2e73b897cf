"""Recordings through the line: any format, bad ones among them, the same answer every time."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile

from edgeasd.assembly import JudgeOptions
from edgeasd.capture.convert import Channel
from edgeasd.cli import main
from edgeasd.errors import CannotWriteError, InputError
from edgeasd.records import FloatArray
from edgeasd.replay import ReplayJob, ReplayResult, TablePaths, replay
from tests.conftest import MakeSoundscape
from tests.small_bundle import write_small_bundle

pytestmark = pytest.mark.usefixtures("bare_environment")

PLANTED = ((40.0, 41.5), (57.0, 58.0))


def _write(path: Path, samples: FloatArray, rate_hz: int = 16_000, subtype: str = "PCM_16") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate_hz, subtype=subtype)
    return path


@pytest.fixture
def hall(tmp_path: Path, make_soundscape: MakeSoundscape) -> Path:
    """A minute and a bit of a machine hall in which two things happen, 16-bit at the model's own rate."""
    sound = make_soundscape(70.3, events=PLANTED)
    return _write(tmp_path / "sound" / "hall_20260115_063000.wav", sound.samples)


@pytest.fixture
def calm(tmp_path: Path, make_soundscape: MakeSoundscape) -> Path:
    return _write(tmp_path / "sound" / "calm.wav", make_soundscape(20.0, seed=4).samples)


def _run(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgeasd.cli", "replay", *map(str, arguments)],
        capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL, cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def _replay(out: Path, *paths: Path, judges: JudgeOptions | None = None, speed: float | None = None) -> ReplayResult:
    job = ReplayJob(paths, judges or JudgeOptions(), speed=speed)
    return replay(job, TablePaths(out / "scores.csv", out / "events.csv", out / "notices.csv"))


def _complaint(result: subprocess.CompletedProcess[str]) -> str:
    """Return the one line that was said, on stderr and nowhere else."""
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0]


def test_planted_events_are_found_and_dated(hall: Path, tmp_path: Path) -> None:
    result = _replay(tmp_path / "out", hall)
    events = _rows(tmp_path / "out" / "events.csv")
    assert len(events) == result.n_events == len(PLANTED)
    for event, (start_s, end_s) in zip(events, PLANTED, strict=True):
        assert float(event["start_s"]) == pytest.approx(start_s, abs=1.0)
        assert float(event["end_s"]) == pytest.approx(end_s, abs=1.5)
        assert event["confirmed"] == "true"
        seconds = float(event["start_s"])
        assert event["start_utc"] == f"2026-01-15T06:30:{seconds:06.3f}Z"
    assert result.heard_s == pytest.approx(70.3)
    assert (result.n_recordings, result.bad) == (1, [])


def test_every_window_is_a_row(hall: Path, calm: Path, tmp_path: Path) -> None:
    result = _replay(tmp_path / "out", hall.parent)
    rows = _rows(tmp_path / "out" / "scores.csv")
    assert len(rows) == result.n_windows == 139 + 39
    assert list(dict.fromkeys(row["file"] for row in rows)) == [calm.name, hall.name]
    of_hall = [row for row in rows if row["file"] == hall.name]
    assert [float(row["start_s"]) for row in of_hall] == [0.5 * index for index in range(139)]
    assert {row["start_utc"] for row in rows if row["file"] == calm.name} == {""}
    assert all(row["confirmed"] for row in rows)
    assert all(row["valid"] == "true" and row["fault"] == "" for row in rows)
    assert all(0.0 < float(row["p_value"]) <= 1.0 for row in rows)


def test_an_event_that_ends_with_the_recording_is_one_row(tmp_path: Path, make_soundscape: MakeSoundscape) -> None:
    sound = make_soundscape(60.3, events=((55.0, 56.2),))
    result = _replay(tmp_path / "out", _write(tmp_path / "late.wav", sound.samples))
    assert len(_rows(tmp_path / "out" / "events.csv")) == result.n_events == 1


def test_the_same_recordings_give_the_same_bytes(hall: Path, calm: Path, tmp_path: Path) -> None:
    seen = []
    for name in ("first", "second"):
        _replay(tmp_path / name, hall.parent)
        texts = [(tmp_path / name / table).read_text() for table in ("scores.csv", "events.csv", "notices.csv")]
        seen.append([re.sub(r"\b[0-7][0-9A-HJKMNP-TV-Z]{25}\b", "ULID", text) for text in texts])
    assert seen[0] == seen[1]
    assert "ULID" in seen[0][1]


def test_paced_and_fast_replay_agree(hall: Path, tmp_path: Path) -> None:
    _replay(tmp_path / "fast", hall)
    result = _replay(tmp_path / "paced", hall, speed=50.0)
    assert result.wall_s >= 70.3 / 50.0 * 0.95
    assert (tmp_path / "paced" / "scores.csv").read_bytes() == (tmp_path / "fast" / "scores.csv").read_bytes()


def test_paced_and_fast_replay_agree_when_resampled(tmp_path: Path, make_soundscape: MakeSoundscape) -> None:
    sound = make_soundscape(30.0, rate_hz=44_100, events=((24.0, 25.0),))
    path = _write(tmp_path / "a.wav", sound.samples, 44_100)
    _replay(tmp_path / "fast", path)
    _replay(tmp_path / "paced", path, speed=200.0)
    fast, paced = (_rows(tmp_path / name / "scores.csv") for name in ("fast", "paced"))
    assert len(fast) == len(paced) == 59
    for one, other in zip(fast, paced, strict=True):
        assert float(one["score"]) == pytest.approx(float(other["score"]), rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 44_100, 48_000])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_rates_and_sample_formats_make_no_difference(
    tmp_path: Path, make_soundscape: MakeSoundscape, rate_hz: int, subtype: str
) -> None:
    sound = make_soundscape(20.25, rate_hz=rate_hz)
    result = _replay(tmp_path / "out", _write(tmp_path / "a.wav", sound.samples, rate_hz, subtype))
    rows = _rows(tmp_path / "out" / "scores.csv")
    assert len(rows) == result.n_windows == 39
    expected_dbfs = 20.0 * np.log10(np.sqrt(np.mean(np.square(sound.samples, dtype=np.float64))))
    levels = [float(row["rms_dbfs"]) for row in rows]
    assert np.median(levels) == pytest.approx(expected_dbfs, abs=1.0)
    assert result.n_events == 0


def test_channels_are_mixed_or_chosen(tmp_path: Path, make_soundscape: MakeSoundscape) -> None:
    sound = make_soundscape(60.0, events=((45.0, 46.0),))
    calm = make_soundscape(60.0, seed=9)
    path = _write(tmp_path / "a.wav", np.stack([calm.samples, sound.samples, calm.samples], axis=1), subtype="PCM_24")
    found: dict[Channel, int] = {}
    channels: tuple[Channel, ...] = (0, 1, "mix")
    for channel in channels:
        job = ReplayJob((path,), JudgeOptions(), channel=channel)
        found[channel] = replay(job, TablePaths()).n_events
    assert (found[0], found[1]) == (0, 1)
    with pytest.raises(InputError, match=r"has 3 channels, no channel 3"):
        replay(ReplayJob((path,), JudgeOptions(), channel=3), TablePaths())


def _spoil(tree: Path, whole: bytes) -> list[str]:
    """Write recordings that cannot be read; return their names."""
    spoilt = {
        "bad/cut_in_the_header.wav": whole[:30],
        "bad/empty.wav": b"",
        "bad/no_audio.wav": whole[:44],
        "bad/text.wav": b"this is no sound\n" * 100,
        "bad/not.flac": whole,
    }
    for name, content in spoilt.items():
        (tree / name).parent.mkdir(exist_ok=True)
        (tree / name).write_bytes(content)
    return list(spoilt)


def test_bad_recordings_in_a_tree_are_passed_over_and_counted(hall: Path, calm: Path, tmp_path: Path) -> None:
    bad = _spoil(hall.parent, calm.read_bytes())
    result = _replay(tmp_path / "out", hall.parent)
    assert (result.n_recordings, len(result.bad)) == (2, len(bad))
    for name in bad:
        assert sum(Path(name).name in line for line in result.bad) == 1
    assert {row["file"] for row in _rows(tmp_path / "out" / "scores.csv")} == {hall.name, calm.name}
    said = _run(hall.parent, "--out", "scores.csv", cwd=tmp_path)
    assert said.returncode == 0
    assert f"2 recordings, {len(bad)} passed over" in said.stderr.splitlines()[-1]
    assert "Traceback" not in said.stderr


def test_a_bad_recording_that_was_named_ends_it_in_one_line(hall: Path, calm: Path, tmp_path: Path) -> None:
    bad = _spoil(hall.parent, calm.read_bytes())
    for name in (bad[0], "missing.wav"):
        result = _run(calm, hall.parent / name, "--out", "scores.csv", cwd=tmp_path)
        assert result.returncode == 66, result.stderr
        assert Path(name).name in _complaint(result)
        assert not (tmp_path / "scores.csv").exists()


def test_a_recording_that_breaks_half_way_ends_it_in_one_line(tmp_path: Path, make_soundscape: MakeSoundscape) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, make_soundscape(20.0).samples, 16_000, format="FLAC")
    whole = bytearray(path.read_bytes())
    for at in range(len(whole) // 2, len(whole) // 2 + 20_000):
        whole[at] ^= 0x5A
    path.write_bytes(whole)
    result = _run(path, "--out", "scores.csv", cwd=tmp_path)
    assert result.returncode == 66
    assert "damaged" in _complaint(result)


def test_nothing_is_left_of_tables_that_were_not_finished(calm: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.wav"
    empty.write_bytes(b"")
    out = tmp_path / "out"
    with pytest.raises(InputError):
        _replay(out, calm, empty)
    assert list(out.iterdir()) == []


def test_a_tree_of_nothing_but_rubbish_is_refused(calm: Path, tmp_path: Path) -> None:
    _spoil(tmp_path / "sound", calm.read_bytes())
    calm.unlink()
    result = _run("sound", "--events", "events.csv", cwd=tmp_path)
    assert result.returncode == 66
    assert "none of the 5 recordings can be read" in result.stderr.splitlines()[-1]


def test_a_recording_cut_short_is_judged_as_far_as_it_goes(calm: Path, tmp_path: Path) -> None:
    whole = calm.read_bytes()
    calm.write_bytes(whole[: 44 + 2 * 16_000 * 10])  # ten seconds of twenty
    result = _run(calm, "--out", "scores.csv", cwd=tmp_path)
    assert result.returncode == 0
    assert len(_rows(tmp_path / "scores.csv")) == 19
    assert "calm.wav ends before its header says" in result.stderr


def test_a_recording_shorter_than_a_window_has_no_rows(tmp_path: Path, make_soundscape: MakeSoundscape) -> None:
    result = _replay(tmp_path / "out", _write(tmp_path / "short.wav", make_soundscape(0.9).samples))
    assert (result.n_recordings, result.n_windows) == (1, 0)
    assert _rows(tmp_path / "out" / "scores.csv") == []


def test_recordings_are_named_by_their_place_in_the_tree(tmp_path: Path, make_soundscape: MakeSoundscape) -> None:
    samples = make_soundscape(2.0).samples
    for name in ("b/a.wav", "a/z.wav", "c.wav"):
        _write(tmp_path / "tree" / name, samples)
    _replay(tmp_path / "out", tmp_path / "tree")
    rows = _rows(tmp_path / "out" / "scores.csv")
    assert list(dict.fromkeys(row["file"] for row in rows)) == ["a/z.wav", "b/a.wav", "c.wav"]


def test_a_pattern_picks_recordings(hall: Path, calm: Path, tmp_path: Path) -> None:
    result = _run(hall.parent, "--glob", "calm*", "--out", "scores.csv", cwd=tmp_path)
    assert result.returncode == 0
    assert {row["file"] for row in _rows(tmp_path / "scores.csv")} == {"calm.wav"}


def test_an_anomaly_is_an_exit_code_when_asked_for(hall: Path, calm: Path, tmp_path: Path) -> None:
    assert _run(hall, "--events", "e.csv", "--fail-on-anomaly", cwd=tmp_path).returncode == 3
    assert len(_rows(tmp_path / "e.csv")) == 2  # written all the same
    assert _run(calm, "--events", "e.csv", "--fail-on-anomaly", cwd=tmp_path).returncode == 0


def test_messages_are_printed_when_nothing_else_was_asked_for(hall: Path, calm: Path, tmp_path: Path) -> None:
    result = _run(hall, calm, "--source", "door", cwd=tmp_path)
    assert result.returncode == 0
    messages = [json.loads(line) for line in result.stdout.splitlines()]
    assert all(set(message) == {"topic", "payload"} for message in messages)
    kinds: dict[str, list[dict[str, object]]] = {}
    for message in messages:
        kinds.setdefault(message["topic"].split("/door/")[-1], []).append(message["payload"])
    assert len(kinds["score"]) == 139 + 39
    assert [payload["event_type"] for payload in kinds["event"]].count("end") == 2
    assert kinds["score"][39]["ts"] == "2026-01-15T06:30:00.000000Z"  # behind the 39 windows of the calm one
    assert kinds["score"][-1]["ts"] == "2026-01-15T06:31:09.000000Z"
    assert not any(payload["late"] for payload in kinds["score"])
    # A level every second of each recording.
    assert len(kinds["level"]) == pytest.approx(69 + 19, abs=6)


def test_the_window_of_a_paced_replay_is_now(calm: Path, tmp_path: Path) -> None:
    calm.write_bytes(calm.read_bytes()[: 44 + 2 * 16_000 * 2])
    result = _run(calm, "--speed", "1", cwd=tmp_path)
    scores = [json.loads(line)["payload"] for line in result.stdout.splitlines() if '/score"' in line]
    assert len(scores) == 3
    stamps = [score["ts_ns"] for score in scores]
    assert stamps == sorted(stamps)
    assert stamps[2] - stamps[0] == pytest.approx(1e9, abs=3e8)


@pytest.mark.parametrize(
    ("arguments", "exit_code", "named"),
    [
        (["--speed", "0"], 2, "--speed"),
        (["--speed", "-1"], 2, "--speed"),
        (["--speed", "fast"], 2, "--speed"),
        (["--speed", "nan"], 2, "--speed"),
        (["--speed", "inf"], 2, "--speed"),
        (["--channel", "left"], 2, "--channel"),
        (["--channel", "-1"], 2, "--channel"),
        (["--channel", "64"], 2, "--channel"),
        (["--channel", "1"], 66, "has 1 channel"),
        (["--hop", "2"], 78, "hop_s"),
        (["--hop", "nan"], 78, "hop_s"),
        (["--bundle", "missing.edgeasd"], 65, "missing.edgeasd"),
        (["--publish"], 2, "--publish"),
        (["--mqtt", "ftp://x"], 78, "mqtt"),
        (["--events", "scores.csv"], 2, "--events: scores.csv is where another table goes"),
        (["--notices", "./scores.csv"], 2, "--notices: scores.csv is where another table goes"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    calm: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: Sequence[str],
    exit_code: int,
    named: str,
) -> None:
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(variable, "1")  # as the program itself would, for good
    monkeypatch.chdir(tmp_path)
    assert main(["replay", str(calm), "--out", "scores.csv", *arguments]) == exit_code
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert said.err.startswith("edgeasd: ")
    assert named in said.err
    assert not (tmp_path / "scores.csv").exists()


def test_a_table_that_cannot_be_written_is_said_in_one_line(calm: Path, tmp_path: Path) -> None:
    result = _run(calm, "--out", calm / "scores.csv", cwd=tmp_path)
    assert result.returncode == 73
    assert "cannot be written" in _complaint(result)
    with pytest.raises(CannotWriteError):
        _replay(calm, calm)


def test_a_bundle_and_the_second_opinion_both_speak(tmp_path: Path, make_soundscape: MakeSoundscape) -> None:
    bundle = write_small_bundle(tmp_path / "small.edgeasd")
    path = _write(tmp_path / "a.wav", make_soundscape(20.0, rate_hz=48_000).samples, 48_000)
    result = _run(path, "--bundle", bundle, "--hop", "0.032", "--out", "scores.csv", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    rows = _rows(tmp_path / "scores.csv")
    assert len(rows) == (20 * 8_000 - 512) // 256 + 1
    assert all(row["model"] and row["prompt"] and row["confirmed"] for row in rows)


def test_a_dead_recording_is_rows_without_scores(tmp_path: Path) -> None:
    path = _write(tmp_path / "dead.wav", np.zeros(5 * 16_000, np.float32))
    result = _replay(tmp_path / "out", path)
    assert result.n_events == 0
    rows = _rows(tmp_path / "out" / "scores.csv")
    assert len(rows) == 9
    assert {(row["valid"], row["fault"], row["score"], row["p_value"]) for row in rows} == {("false", "dead", "0", "1")}
