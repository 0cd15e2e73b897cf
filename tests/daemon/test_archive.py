"""Archives: the same bytes however the work is divided, and nothing lost whatever ends it."""

from __future__ import annotations

import os
import pty
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile

from edgeasd.archive import ArchiveOptions, Progress, replay_archive
from edgeasd.archive.takes import Shard, survey
from edgeasd.assembly import JudgeOptions
from edgeasd.cli import main
from edgeasd.errors import InputError, TemporaryError, UnavailableError, UsageError
from edgeasd.replay import ReplayJob, ReplayResult, TablePaths, replay
from tests.conftest import MakeSoundscape
from tests.deadly_player import open_deadly_player

pytestmark = pytest.mark.usefixtures("bare_environment")

RATE_HZ = 16_000
LENGTHS_S = {"a/long.wav": 600.0, "a/short.wav": 20.0, "b/event_20260115_063000.wav": 40.0, "c.wav": 30.0}
TABLES = ("scores.csv", "events.csv", "notices.csv")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, make_soundscape: MakeSoundscape) -> Path:
    """A tree of a long recording, some short ones, one of them with an event, and one that is none."""
    root = tmp_path_factory.mktemp("archive")
    calm = make_soundscape(60.0).samples
    for name, length_s in LENGTHS_S.items():
        sound = make_soundscape(length_s, events=((30.0, 31.0),)).samples if "event" in name else calm
        (root / name).parent.mkdir(exist_ok=True)
        soundfile.write(root / name, np.resize(sound, round(length_s * RATE_HZ)), RATE_HZ)
    (root / "b" / "bad.wav").write_bytes(b"this is no sound\n")
    return root


@pytest.fixture(scope="module")
def expected(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """The tables of a replay of one recording after another, without parts."""
    out = tmp_path_factory.mktemp("expected")
    replay(_job(archive), _tables(out))
    assert b"event_20260115" in (out / "events.csv").read_bytes()
    return _written(out)


def _job(*paths: Path) -> ReplayJob:
    return ReplayJob(paths, JudgeOptions())


def _tables(out: Path) -> TablePaths:
    return TablePaths(*(out / name for name in TABLES))


def _written(out: Path) -> list[bytes]:
    assert sorted(path.name for path in out.iterdir()) == sorted(TABLES)  # and no parts, no locks
    return [(out / name).read_bytes() for name in TABLES]


def _command(*arguments: str | Path, out: Path) -> list[str]:
    flags = [part for flag, name in zip(("--out", "--events", "--notices"), TABLES, strict=True)
             for part in (flag, str(out / name))]  # fmt: skip
    return [sys.executable, "-m", "edgeasd.cli", "replay", *map(str, arguments), *flags]


def _run(
    *arguments: str | Path, out: Path, before: Callable[[], None] | None = None, patience_s: float = 60.0
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        _command(*arguments, out=out), capture_output=True, text=True, timeout=patience_s, check=False,
        stdin=subprocess.DEVNULL, preexec_fn=before,
    )  # fmt: skip


def _alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)  # a container's init may not reap
    except psutil.NoSuchProcess:
        return False


def _interrupted(archive: Path, out: Path, number: signal.Signals, *, group: bool) -> tuple[int, str, int]:
    """Send a signal when something, but not the long one, is done; return exit code, stderr and how many are done."""
    command = _command(archive, "--jobs", "2", out=out)
    command = ["env", "--default-signal=INT", *command]  # who runs tests in the background ignores it
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    parts = out / "scores.csv.parts"
    until_s = time.monotonic() + 60.0
    family = [process.pid]
    while len(family) < 3 or not list(parts.glob("*.json")):  # who belongs to it is known by then: it is a short while
        assert process.poll() is None
        assert time.monotonic() < until_s
        time.sleep(0.002)
        if len(family) < 3:
            family = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
    os.killpg(process.pid, number) if group else os.kill(process.pid, number)
    _, said = process.communicate(timeout=30)
    while any(map(_alive, family)):
        assert time.monotonic() < until_s
        time.sleep(0.01)
    assert not (out / "scores.csv").exists()
    return process.returncode, said, len(list(parts.glob("*.json")))


@pytest.mark.parametrize("jobs", [1, 2])
def test_however_many_processes_the_tables_are_the_same(
    archive: Path, expected: list[bytes], tmp_path: Path, jobs: int
) -> None:
    seen: list[Progress] = []
    result = replay_archive(_job(archive), _tables(tmp_path), ArchiveOptions(jobs=jobs), watch=seen.append)
    assert _written(tmp_path) == expected
    assert (result.n_recordings, len(result.bad), result.n_events, result.n_before) == (4, 1, 1, 0)
    assert result.heard_s == pytest.approx(sum(LENGTHS_S.values()))
    assert ([each.n_done for each in seen], seen[-1].left_s) == ([1, 2, 3, 4, 5], 0.0)


@pytest.mark.parametrize(
    ("number", "group", "exit_code"),
    [(signal.SIGKILL, True, -9), (signal.SIGKILL, False, -9), (signal.SIGTERM, False, 143), (signal.SIGINT, True, 130)],
)
def test_what_was_done_before_a_signal_is_not_done_again(
    archive: Path, expected: list[bytes], tmp_path: Path, number: signal.Signals, group: bool, exit_code: int
) -> None:
    code, said, n_done = _interrupted(archive, tmp_path, number, group=group)
    assert code == exit_code
    assert "Traceback" not in said
    if number != signal.SIGKILL:
        assert f"{n_done} recordings are done and kept: go on with --resume" in said
    job, tables = _job(archive), _tables(tmp_path)
    with pytest.raises(UsageError, match=f"holds {n_done} recordings of a replay .* go on with --resume, or remove"):
        replay_archive(job, tables)
    other = replace(job, judges=JudgeOptions(hop_s=1.0))
    with pytest.raises(UsageError, match=r"hop_s: 0\.5 there, 1\.0 now"):
        replay_archive(other, tables, ArchiveOptions(resume=True))
    result = replay_archive(job, tables, ArchiveOptions(resume=True))
    assert (result.n_before, result.n_recordings, len(result.bad)) == (n_done, 4, 1)
    assert _written(tmp_path) == expected


def test_a_recording_that_kills_its_process_is_tried_twice_and_costs_itself_alone(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = (archive / "c.wav").read_bytes()
    for name in ("deadly", "risky", "plain"):
        (tmp_path / "sound" / name).mkdir(parents=True)
        (tmp_path / "sound" / name / f"{name}.wav").write_bytes(sound)
    monkeypatch.setattr("edgeasd.archive.open_player", open_deadly_player)
    out = tmp_path / "out"
    result = replay_archive(_job(tmp_path / "sound"), _tables(out), ArchiveOptions(jobs=2))
    assert result.n_recordings == 2
    [line] = result.bad
    assert re.search(r"deadly\.wav: cannot be judged: ended its process by SIGKILL, twice", line)
    files = {row.partition(",")[0] for row in (out / "scores.csv").read_text().splitlines()[1:]}
    assert files == {"risky/risky.wav", "plain/plain.wav"}


def test_the_last_shard_writes_the_tables(archive: Path, expected: list[bytes], tmp_path: Path) -> None:
    waiting: list[int] = []
    for index in (2, 3, 1, 1):  # a shard that is queued again has nothing left to do
        if index == 1 and waiting[-1:] == [0]:
            break
        result = replay_archive(_job(archive), _tables(tmp_path), ArchiveOptions(jobs=1, shard=Shard(index, 3)))
        waiting.append(result.n_missing)
        if len(waiting) == 1:
            again = replay_archive(_job(archive), _tables(tmp_path), ArchiveOptions(shard=Shard(index, 3)))
            assert (again.n_before, again.heard_s) == (result.n_recordings, 0.0)
        assert (tmp_path / "scores.csv").exists() == (not result.n_missing)
    assert waiting[-1] == 0
    assert waiting[0] > waiting[1] > 0
    assert result.n_recordings == 4
    assert _written(tmp_path) == expected


def test_a_bad_recording_that_was_named_keeps_the_others(archive: Path, tmp_path: Path) -> None:
    good = [archive / name for name in LENGTHS_S]
    with pytest.raises(InputError, match=r"bad\.wav: .* \(4 recordings are done and kept: go on with --resume\)"):
        replay_archive(_job(*good, archive / "b" / "bad.wav"), _tables(tmp_path))
    assert not (tmp_path / "scores.csv").exists()
    result = replay_archive(_job(*good), _tables(tmp_path), ArchiveOptions(resume=True))
    assert (result.n_before, result.heard_s) == (4, 0.0)
    replay(_job(*good), _tables(tmp_path / "named"))
    assert (tmp_path / "scores.csv").read_bytes() == (tmp_path / "named" / "scores.csv").read_bytes()


def _fail_beyond(n_bytes: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))


def test_a_disk_that_takes_no_more_ends_it_and_keeps_what_is_done(
    archive: Path, expected: list[bytes], tmp_path: Path
) -> None:
    replay_archive(_job(archive), _tables(tmp_path), ArchiveOptions(shard=Shard(2, 2)))  # all but the long one
    failed = _run(archive, "--resume", out=tmp_path, before=_fail_beyond(60_000))  # which does not fit
    assert failed.returncode == 73
    assert "cannot be written: File too large" in failed.stderr.splitlines()[-1]
    assert "Traceback" not in failed.stderr
    assert re.search(r"[34] recordings are done and kept: go on with --resume", failed.stderr)
    replay_archive(_job(archive), _tables(tmp_path), ArchiveOptions(resume=True))
    assert _written(tmp_path) == expected


def _stopped_short(archive: Path, out: Path) -> Path:
    """Leave the parts of a replay that stopped just before its tables; return their folder."""
    with pytest.raises(InputError):
        replay_archive(_job(*(archive / name for name in LENGTHS_S), archive / "b" / "bad.wav"), _tables(out))
    return out / "scores.csv.parts"


def test_what_has_changed_or_is_damaged_is_played_again(archive: Path, tmp_path: Path) -> None:
    parts = _stopped_short(archive, tmp_path)
    job = _job(*(archive / name for name in LENGTHS_S))
    first, second, third, _ = survey(job)
    part = parts / f"{first.key}.scores.csv"
    part.write_bytes(part.read_bytes()[:-100])
    (parts / f"{second.key}.json").write_text("{")
    os.utime(third.path, ns=(0, 10**18))
    result = replay_archive(job, _tables(tmp_path), ArchiveOptions(resume=True))
    assert (result.n_before, result.n_recordings) == (1, 4)


def test_one_replay_at_a_time_works_on_a_table_but_shards_do_together(
    archive: Path, expected: list[bytes], tmp_path: Path
) -> None:
    together: list[ReplayResult] = []

    def also(_: Progress) -> None:
        if not together:
            options = ArchiveOptions(jobs=1, resume=True)
            for shard in (None, Shard(1, 2)):
                with pytest.raises(TemporaryError, match="another replay is at work"):
                    replay_archive(_job(archive), _tables(tmp_path), replace(options, shard=shard))
            together.append(replay_archive(_job(archive), _tables(tmp_path), replace(options, shard=Shard(2, 2))))

    longest = ArchiveOptions(jobs=1, shard=Shard(1, 2))  # nothing but the long one: the other share ends before it
    together.append(replay_archive(_job(archive), _tables(tmp_path), longest, watch=also))
    assert [result.n_missing for result in together] == [0, 0]
    assert _written(tmp_path) == expected


@pytest.mark.parametrize(
    "arguments",
    [
        ["--shard", "0/4"],
        ["--shard", "5/4"],
        ["--shard", "half"],
        ["--jobs", "2", "--speed", "1"],
        ["--resume", "--mqtt", "mqtt://127.0.0.1:1"],
        ["--ray", "local", "--publish", "--mqtt", "mqtt://127.0.0.1:1"],
    ],
)
def test_what_cannot_be_divided_is_refused(
    arguments: Sequence[str], archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(_command(archive, *arguments, out=tmp_path)[3:]) == 2
    assert capsys.readouterr().err.startswith(f"edgeasd: {arguments[0]}: ")
    assert list(tmp_path.iterdir()) == []


def test_a_terminal_sees_how_long_it_will_take(archive: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = _command(archive, "--jobs", "1", out=tmp_path)
    with subprocess.Popen(command, stderr=theirs, stdin=subprocess.DEVNULL) as process:
        os.close(theirs)
        seen = b""
        with suppress(OSError):  # EIO: nobody is at the other end any more
            while more := os.read(ours, 4096):
                seen += more
    os.close(ours)
    assert process.returncode == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode())
    assert re.search(r"\d of 5 recordings, 0\.\d of 0\.2 h, \d+ x, 0:\d\d left", text)
    assert "4 recordings, 1 passed over" in text.splitlines()[-1]


@pytest.mark.ray
@pytest.mark.timeout(180)
def test_ray_gives_the_same_tables(archive: Path, expected: list[bytes], tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs edgeasd[ray]")
    done = _run(archive, "--ray", "local", "--jobs", "2", out=tmp_path / "out", patience_s=150.0)
    assert done.returncode == 0, done.stderr
    assert "4 recordings, 1 passed over" in done.stderr.splitlines()[-1]
    assert _written(tmp_path / "out") == expected


def test_without_ray_its_extra_is_named(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as where it is not installed
    with pytest.raises(UnavailableError, match=r"pip install 'edgeasd\[ray\]'"):
        replay_archive(_job(archive), _tables(tmp_path), ArchiveOptions(ray="local"))
    assert list(tmp_path.iterdir()) == []
