"""Every recording is decoded once, into shards that survive kills, damage and company, and are never half believed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile
from numpy.typing import NDArray

from edgeasd import workers
from edgeasd.capture.convert import Channel
from edgeasd.errors import CannotWriteError, UnavailableError
from edgeasd_train.corpus import Sound, load, shards
from edgeasd_train.corpus.decode import int16_blocks
from edgeasd_train.corpus.discover import Recordings, discover
from edgeasd_train.corpus.load import BadFile, Cache, load_sounds
from edgeasd_train.corpus.shards import read_index
from edgeasd_train.corpus.sounds import Sounds
from edgeasd_train.ranks import Ranks
from tests.wav import RATE_HZ, noise, write


def load_one(path: Path, cache: Cache) -> Sound:
    sounds, bad_files = load_sounds(discover([path]), cache)
    assert not bad_files
    return sounds[0]


def many(folder: Path, n_files: int) -> Recordings:
    for i in range(n_files):
        write(folder / f"{i:02}.wav", noise(0.3 + 0.01 * i, seed=i))
    return discover([folder])


def check(sounds: Sounds, recordings: Recordings) -> None:
    """Compare with the recordings themselves, which are of 16 bits at the rate of the cache."""
    assert [sound.path for sound in sounds] == [recording.path for recording in recordings]
    for sound in sounds:
        samples, _ = soundfile.read(sound.path, dtype="int16")
        assert np.array_equal(sound.samples(), samples), sound.path


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the recordings that this process has decoded, in order."""
    names: list[str] = []

    def counted(path: Path, *, rate_hz: int, channel: Channel) -> Iterator[NDArray[np.int16]]:
        names.append(path.name)
        return int16_blocks(path, rate_hz=rate_hz, channel=channel)

    monkeypatch.setattr(load, "int16_blocks", counted)
    return names


@pytest.fixture
def two_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even little work goes to worker processes."""
    monkeypatch.setattr(load, "_SMALL_BYTES", 0)


def test_sixteen_bit_sound_at_the_models_rate_arrives_to_the_bit(tmp_path: Path) -> None:
    samples = np.random.default_rng(1).integers(-32768, 32767, 300_000, dtype=np.int16)
    for name in ("a.wav", "a.flac"):
        soundfile.write(tmp_path / name, samples, RATE_HZ)
        sound = load_one(tmp_path / name, Cache(tmp_path / "cache", RATE_HZ))
        assert np.array_equal(sound.samples(), samples)
    assert isinstance(sound.samples(), np.memmap)


def test_channels_are_averaged_or_chosen_and_float_sound_beyond_full_scale_is_clipped(tmp_path: Path) -> None:
    left, right = np.full(1000, 0.5, np.float32), np.full(1000, -0.25, np.float32)
    stereo = write(tmp_path / "s.wav", np.stack([left, right], axis=1))
    mix, first, second = (load_one(stereo, Cache(tmp_path / "cache", RATE_HZ, channel)) for channel in ("mix", 0, 1))
    assert [set(sound.samples().tolist()) for sound in (mix, first, second)] == [{4096}, {16384}, {-8192}]
    assert len({mix.key, first.key, second.key}) == 3
    loud = write(tmp_path / "l.wav", np.float32(3) * left, subtype="FLOAT")
    assert set(load_one(loud, Cache(tmp_path / "cache", RATE_HZ)).samples().tolist()) == {32767}


def test_a_recording_without_the_channel_asked_for_is_bad(tmp_path: Path) -> None:
    write(tmp_path / "a.wav", noise(1.0))
    _, bad_files = load_sounds(discover([tmp_path]), Cache(tmp_path / "cache", RATE_HZ, 1))
    assert bad_files == [BadFile(tmp_path / "a.wav", "has 1 channel, no channel 1 (counted from 0)")]


@pytest.mark.parametrize("rate_hz", [8000, 22050, 44100, 48000])
def test_another_rate_is_resampled_without_moving_the_sound(tmp_path: Path, rate_hz: int) -> None:
    duration_s = 20.0  # several decoder blocks
    time_s = np.arange(round(duration_s * rate_hz)) / rate_hz
    tone = (0.5 * np.sin(2 * np.pi * 1000.0 * time_s)).astype(np.float32)
    sound = load_one(write(tmp_path / "t.wav", tone, rate_hz=rate_hz), Cache(tmp_path / "cache", RATE_HZ))
    assert sound.n_frames == pytest.approx(duration_s * RATE_HZ, abs=2)
    middle = slice(RATE_HZ, -RATE_HZ)
    expected = 0.5 * np.sin(2 * np.pi * 1000.0 * np.arange(sound.n_frames) / RATE_HZ)
    assert np.abs(sound.samples()[middle] / 32768.0 - expected[middle]).max() < 2e-3


def test_a_recording_is_decoded_once_and_again_when_it_changes(tmp_path: Path, decoded: list[str]) -> None:
    path, cache = write(tmp_path / "a.wav", noise(2.0)), Cache(tmp_path / "cache", RATE_HZ)
    first = load_one(path, cache)
    assert load_one(path, cache) == first
    assert decoded == ["a.wav"]
    write(path, noise(2.0, seed=1))
    os.utime(path, (1, 1))
    changed = load_one(path, cache)
    assert changed.key != first.key
    assert changed.sha256 != first.sha256
    assert load_one(path, Cache(tmp_path / "cache", 8000)).n_frames == RATE_HZ
    assert len(decoded) == 3
    link = tmp_path / "elsewhere" / "same.wav"
    link.parent.mkdir()
    link.symlink_to(path)
    assert load_one(link, cache).key == changed.key


def test_many_recordings_share_few_files(tmp_path: Path) -> None:
    recordings = many(tmp_path / "in", 40)
    sounds, _ = load_sounds(recordings, Cache(tmp_path / "cache", RATE_HZ))
    check(sounds, recordings)
    assert len([path for path in (tmp_path / "cache").rglob("*") if path.is_file()]) == 2


def test_a_full_shard_is_followed_by_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 30_000)
    recordings = many(tmp_path / "in", 12)
    cache = Cache(tmp_path / "cache", RATE_HZ)
    check(load_sounds(recordings, cache)[0], recordings)
    sizes = [path.stat().st_size for path in cache.shards.glob("*.i16")]
    assert len(sizes) >= 3
    assert max(sizes) < 30_000 + 2 * RATE_HZ


def test_what_was_added_later_goes_into_the_shard_with_room(tmp_path: Path, decoded: list[str]) -> None:
    cache = Cache(tmp_path / "cache", RATE_HZ)
    load_sounds(many(tmp_path / "in", 3), cache)
    recordings = many(tmp_path / "in", 5)  # the first three anew: their time of change differs
    check(load_sounds(recordings, cache)[0], recordings)
    assert len(decoded) == 8
    assert len(list(cache.shards.glob("*.i16"))) == 1


def _cut_ledger(ledger: Path) -> None:
    os.truncate(ledger, ledger.stat().st_size - 30)


def _zero_ledger(ledger: Path) -> None:
    ledger.write_bytes(bytes(ledger.stat().st_size))


def _flip_ledger(ledger: Path) -> None:
    data = bytearray(ledger.read_bytes())
    data[50] ^= 1  # the place of the first sound
    ledger.write_bytes(data)


def _cut_samples(ledger: Path) -> None:
    os.truncate(ledger.with_suffix(".i16"), 1001)


def _lose_samples(ledger: Path) -> None:
    ledger.with_suffix(".i16").unlink()


def _leave_more_samples(ledger: Path) -> None:
    with ledger.with_suffix(".i16").open("ab") as file:
        file.write(b"half a recording, then the power went")


@pytest.mark.parametrize(
    ("spoil", "n_lost"),
    [
        (_cut_ledger, 1), (_zero_ledger, 6), (_flip_ledger, 1), (_cut_samples, 6), (_lose_samples, 6),
        (Path.unlink, 6), (_leave_more_samples, 0),
    ],
)  # fmt: skip
def test_damage_costs_the_recordings_it_hit_and_is_never_believed(
    tmp_path: Path, decoded: list[str], spoil: Callable[[Path], None], n_lost: int
) -> None:
    recordings, cache = many(tmp_path / "in", 6), Cache(tmp_path / "cache", RATE_HZ)
    load_sounds(recordings, cache)
    decoded.clear()
    spoil(next(cache.shards.glob("*.ledger")))
    check(load_sounds(recordings, cache)[0], recordings)
    assert len(decoded) == n_lost
    more = many(tmp_path / "more", 3)
    check(load_sounds(more, cache)[0], more)  # written after the damage
    check(load_sounds(recordings, cache)[0], recordings)
    assert len(decoded) == n_lost + 3


def test_a_disk_that_is_full_is_not_blamed_on_the_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    recordings, cache = many(tmp_path / "in", 2), Cache(tmp_path / "cache", RATE_HZ)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", full_disk)
        with pytest.raises(CannotWriteError, match="No space left"):
            load_sounds(recordings, cache)
    check(load_sounds(recordings, cache)[0], recordings)
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotWriteError, match="cannot be written"):
        load_sounds(recordings, Cache(tmp_path / "file", RATE_HZ))


LOADING = """
import json, os, signal, sys
from pathlib import Path
from edgeasd_train.corpus import load, shards
from edgeasd_train.corpus.discover import discover
load._SMALL_BYTES = 0
shards._COMMIT_S = 0.0
folder, cache, n_workers, kill_after = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
done = []
def on_file(path):
    done.append(path.name)
    if len(done) == kill_after:
        os.kill(os.getpid(), signal.SIGKILL)
sounds, bad = load.load_sounds(discover([folder]), load.Cache(cache, 16000), workers=n_workers, on_file=on_file)
print(json.dumps([len(sounds), len(bad)]))
"""


def start(folder: Path, cache: Path, *, n_workers: int, kill_after: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", LOADING, str(folder), str(cache), str(n_workers), str(kill_after)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def wait_until(true: Callable[[], bool]) -> None:
    end_s = time.monotonic() + 30.0
    while not true():
        assert time.monotonic() < end_s
        time.sleep(0.02)


@pytest.mark.parametrize("n_workers", [1, 2])
def test_after_a_kill_only_what_is_missing_is_decoded(tmp_path: Path, decoded: list[str], n_workers: int) -> None:
    recordings, cache = many(tmp_path / "in", 20), Cache(tmp_path / "cache", RATE_HZ)
    killed = start(tmp_path / "in", tmp_path / "cache", n_workers=n_workers, kill_after=8)
    assert killed.wait(timeout=30) == -signal.SIGKILL
    assert killed.stdout
    killed.stdout.close()
    wait_until(lambda: not any("serve(int" in " ".join(p.info["cmdline"] or ()) for p in _ours()))
    n_there = len(read_index(cache.shards).keys)
    assert 8 <= n_there < 20
    check(load_sounds(recordings, cache)[0], recordings)
    assert len(decoded) == 20 - n_there


def _ours() -> list[psutil.Process]:
    """Return the processes that have no parent but init, or are ours: where the workers of a killed process are."""
    return [p for p in psutil.process_iter(["ppid", "cmdline"]) if p.info["ppid"] in (1, os.getpid())]


def test_two_processes_may_fill_one_cache_at_the_same_time(tmp_path: Path, decoded: list[str]) -> None:
    recordings, cache = many(tmp_path / "in", 60), Cache(tmp_path / "cache", RATE_HZ)
    running = [start(tmp_path / "in", tmp_path / "cache", n_workers=1) for _ in range(2)]
    assert [json.loads(process.communicate(timeout=60)[0]) for process in running] == [[60, 0], [60, 0]]
    check(load_sounds(recordings, cache)[0], recordings)
    assert decoded == []


def test_worker_processes_decode_the_same_and_tell_of_each_file(tmp_path: Path, two_workers: None) -> None:
    recordings, told = many(tmp_path / "in", 12), list[str]()
    cache = Cache(tmp_path / "cache", RATE_HZ)
    sounds, _ = load_sounds(recordings, cache, workers=2, on_file=lambda path: told.append(path.name))
    check(sounds, recordings)
    assert sorted(told) == [recording.path.name for recording in recordings]
    assert len(list(cache.shards.glob("*.i16"))) <= 2


def with_hanging(tmp_path: Path) -> tuple[Recordings, int]:
    """Return eight recordings and, among them, the number of a pipe that nobody writes to: reading it never ends."""
    names = [str(recording.path) for recording in many(tmp_path / "in", 8)]
    os.mkfifo(tmp_path / "in" / "03-hangs.wav")
    names.insert(4, str(tmp_path / "in" / "03-hangs.wav"))
    return Recordings(names, [False] * 9), 4


def test_a_file_that_hangs_is_given_up_and_the_others_are_not(
    tmp_path: Path, two_workers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "_PATIENCE_S", 2.0)
    recordings, number = with_hanging(tmp_path)
    sounds, bad_files = load_sounds(recordings, Cache(tmp_path / "cache", RATE_HZ), workers=2)
    assert bad_files == [BadFile(recordings[number].path, "took longer than 2 s")]
    check(sounds, Recordings([r.path.as_posix() for i, r in enumerate(recordings) if i != number], [False] * 8))


def test_a_worker_that_dies_costs_the_file_it_was_at_and_nothing_else(tmp_path: Path, two_workers: None) -> None:
    recordings, number = with_hanging(tmp_path)
    told: list[Path] = []

    def on_file(path: Path) -> None:
        told.append(path)
        if len(told) == 8:  # all but the one that hangs; what they decoded last is not safe on disk yet
            for child in psutil.Process().children():
                child.kill()

    sounds, bad_files = load_sounds(recordings, Cache(tmp_path / "cache", RATE_HZ), workers=2, on_file=on_file)
    assert bad_files == [BadFile(recordings[number].path, "ended its process by SIGKILL")]
    check(sounds, Recordings([r.path.as_posix() for i, r in enumerate(recordings) if i != number], [False] * 8))
    assert sorted(told) == sorted(recording.path for recording in recordings)


def test_a_worker_that_cannot_start_is_not_blamed_on_a_file(
    tmp_path: Path, two_workers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_CODE", "raise SystemExit(3)")
    with pytest.raises(UnavailableError, match="does not start: exit 3"):
        load_sounds(many(tmp_path / "in", 2), Cache(tmp_path / "cache", RATE_HZ), workers=2)


def test_an_error_of_a_worker_is_raised_where_it_can_be_read(tmp_path: Path, two_workers: None) -> None:
    recordings = many(tmp_path / "in", 4)
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotWriteError, match="cannot be written"):
        load_sounds(recordings, Cache(tmp_path / "file", RATE_HZ), workers=2)


@dataclass(frozen=True)
class ThreadRanks(Ranks):
    """Ranks that are threads of one process and wait for each other as processes do."""

    meeting: threading.Barrier = field(kw_only=True)

    def barrier(self) -> None:
        self.meeting.wait(timeout=30)


def in_ranks(n_ranks: int, recordings: Recordings, cache: Cache) -> list[tuple[Sounds, list[BadFile]]]:
    meeting = threading.Barrier(n_ranks)
    with ThreadPoolExecutor(n_ranks) as pool:
        ranks = [ThreadRanks(rank, n_ranks, rank, meeting=meeting) for rank in range(n_ranks)]
        return list(pool.map(lambda one: load_sounds(recordings, cache, ranks=one), ranks))


def test_ranks_share_the_work_and_get_the_same(tmp_path: Path, decoded: list[str]) -> None:
    many(tmp_path / "in", 15)
    (tmp_path / "in" / "03.wav").write_bytes(b"RIFF")
    recordings, cache = discover([tmp_path / "in"]), Cache(tmp_path / "cache", RATE_HZ)
    answers = in_ranks(3, recordings, cache)
    assert sorted(decoded) == [f"{i:02}.wav" for i in range(15)]
    for sounds, bad_files in answers:
        assert [sound.path for sound in sounds] == [r.path for r in recordings if r.path.name != "03.wav"]
        assert [sound.sha256 for sound in sounds] == [sound.sha256 for sound in answers[0][0]]
        assert bad_files == answers[0][1]
        assert bad_files[0].path.name == "03.wav"
        assert bad_files[0].reason
    decoded.clear()
    in_ranks(2, recordings, cache)
    assert decoded == ["03.wav"]  # by the one rank whose share it is: a fault may have been a passing one
