from __future__ import annotations

import os
import struct
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from edgeasd.capture.files import FileSource, discover
from edgeasd.errors import InputError
from edgeasd.records import AudioBlock, FloatArray

RATE_HZ = 16_000


def write_wav(path: Path, samples: FloatArray, rate_hz: int = RATE_HZ) -> Path:
    """Write samples, shape (n,) or (n, channels), as 16-bit PCM, full scale 1.0."""
    n_channels = 1 if samples.ndim == 1 else samples.shape[1]
    body = np.round(samples * 32767).astype("<i2").tobytes()
    head = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, n_channels, rate_hz, rate_hz * 2 * n_channels, 2 * n_channels, 16)
    path.write_bytes(
        b"RIFF" + struct.pack("<I", 36 + len(body)) + b"WAVE" + head + b"data" + struct.pack("<I", len(body)) + body
    )
    return path


def tone(hz: float, *, rate_hz: int = RATE_HZ, duration_s: float = 1.0) -> FloatArray:
    t = np.arange(round(rate_hz * duration_s)) / rate_hz
    return (0.5 * np.sin(2 * np.pi * hz * t)).astype(np.float32)


def play(path: Path, **options: Any) -> tuple[FloatArray, FileSource]:
    source = FileSource(path, name="f", rate_hz=RATE_HZ, **options)
    blocks = []
    frame = 0
    for block in source.blocks():
        assert isinstance(block, AudioBlock)
        assert block.first_frame == frame
        frame += len(block.samples)
        blocks.append(block.samples)
    return np.concatenate(blocks), source


def test_plays_what_the_file_holds(tmp_path: Path) -> None:
    samples = np.random.default_rng(1).uniform(-1, 1, 40_000).astype(np.float32)
    heard, source = play(write_wav(tmp_path / "20260115_063000.wav", samples), block_frames=777)
    np.testing.assert_array_equal(heard, np.round(samples * 32767).astype(np.float32) / 32768)
    assert (source.n_frames, source.n_channels, source.native_rate_hz) == (40_000, 1, RATE_HZ)
    assert source.duration_s == 2.5
    assert source.began_utc_ns == 1_768_458_600 * 10**9
    assert not source.truncated


@pytest.mark.parametrize("rate_hz", [8000, 22_050, 44_100, 48_000, 96_000])
def test_resamples_to_the_model_rate(tmp_path: Path, rate_hz: int) -> None:
    heard, _ = play(write_wav(tmp_path / "x.wav", tone(1000, rate_hz=rate_hz, duration_s=2), rate_hz))
    assert abs(len(heard) - 2 * RATE_HZ) <= 1
    middle = slice(2000, -2000)
    np.testing.assert_allclose(heard[middle], tone(1000, duration_s=2)[middle][: len(heard[middle])], atol=2e-3)


def test_resampling_does_not_depend_on_the_blocks(tmp_path: Path) -> None:
    noise = np.random.default_rng(2).uniform(-1, 1, (100_000, 2)).astype(np.float32)
    path = write_wav(tmp_path / "x.wav", noise, 44_100)
    whole, _ = play(path)
    cut, _ = play(path, block_frames=1237)
    np.testing.assert_array_equal(cut, whole)


def test_channels_are_picked_or_mixed(tmp_path: Path) -> None:
    samples = np.random.default_rng(3).uniform(-1, 1, (5000, 3)).astype(np.float32)
    path = write_wav(tmp_path / "x.wav", samples)
    quantised = np.round(samples * 32767) / 32768
    np.testing.assert_array_equal(play(path, channel=2)[0], quantised[:, 2].astype(np.float32))
    np.testing.assert_allclose(play(path, channel="mix")[0], quantised.mean(axis=1), atol=1e-6)
    with pytest.raises(InputError, match=r"has 3 channels, no channel 3 \(counted from 0\)"):
        play(path, channel=3)


@pytest.mark.parametrize(("suffix", "form", "tolerance"), [(".flac", "FLAC", 1e-4), (".OGG", "OGG", 0.3)])
def test_flac_and_ogg_play_like_wav(tmp_path: Path, suffix: str, form: str, tolerance: float) -> None:
    samples = np.stack([tone(500, rate_hz=32_000, duration_s=3), tone(900, rate_hz=32_000, duration_s=3)], axis=1)
    path = tmp_path / f"2026-01-15T06-30-00Z{suffix}"
    soundfile.write(path, samples, 32_000, format=form)
    heard, source = play(path, channel=0, block_frames=5000)
    assert abs(len(heard) - 3 * RATE_HZ) <= 1
    assert source.began_utc_ns == 1_768_458_600 * 10**9
    np.testing.assert_allclose(
        heard[1000:-1000], tone(500, duration_s=3)[1000:-1000][: len(heard) - 2000], atol=tolerance
    )


def test_truncated_flac_plays_up_to_the_damage_then_says_so(tmp_path: Path) -> None:
    path = tmp_path / "x.flac"
    soundfile.write(path, np.random.default_rng(4).uniform(-1, 1, 60_000), RATE_HZ)
    os.truncate(path, path.stat().st_size // 2)
    source = FileSource(path, name="f", rate_hz=RATE_HZ, block_frames=4000)
    n_heard = 0

    def drain() -> None:
        nonlocal n_heard
        for block in source.blocks():
            assert isinstance(block, AudioBlock)
            n_heard += len(block.samples)

    with pytest.raises(InputError, match="damaged behind frame"):
        drain()
    assert 20_000 < n_heard < 40_000


def test_pace_follows_the_clock(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "x.wav", tone(500, duration_s=2))
    began = time.monotonic()
    arrivals = []
    source = FileSource(path, name="f", rate_hz=RATE_HZ, speed=4.0)
    for block in source.blocks():
        assert isinstance(block, AudioBlock)
        arrivals.append((block.first_frame + len(block.samples), time.monotonic() - began))
    assert len(arrivals) == 20
    for end_frame, elapsed_s in arrivals:
        assert elapsed_s >= end_frame / RATE_HZ / 4 - 1e-3
    assert arrivals[-1][1] < 1.5


def test_close_ends_the_wait_for_a_slow_pace(tmp_path: Path) -> None:
    source = FileSource(write_wav(tmp_path / "x.wav", tone(500)), name="f", rate_hz=RATE_HZ, speed=0.01)
    closer = threading.Timer(0.1, source.close)
    closer.start()
    began = time.monotonic()
    assert list(source.blocks()) == []
    closer.join()
    assert time.monotonic() - began < 3


def test_discovers_recordings_in_files_and_trees(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tree = tmp_path / "tree"
    for name in ("b/2.WAV", "b/1.wav", "a.flac", "c/d/e.Ogg", "notes.txt", ".hidden.wav", ".git/x.wav", "b/._1.wav"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(b"")
    os.mkfifo(tree / "pipe.wav")
    (tree / "loop").symlink_to(tree)
    (tree / "link.wav").symlink_to(tree / "b" / "1.wav")
    named = tmp_path / "odd.bin"
    named.write_bytes(b"")
    found = discover([tree, named, tree / "a.flac"])
    assert [str(path.relative_to(tmp_path)) for path in found] == [
        "odd.bin", "tree/a.flac", "tree/b/1.wav", "tree/b/2.WAV", "tree/c/d/e.Ogg",
    ]  # fmt: skip
    assert caplog.messages == [f"{tree / 'link.wav'}: is a link and is passed over; name it to have it read"]
    assert discover([tree / "link.wav"]) == [tree / "link.wav"]
    assert [path.name for path in discover([tree], glob="b/*")] == ["1.wav", "2.WAV"]
    assert [path.name for path in discover([tree], glob="*.flac")] == ["a.flac"]


def test_says_when_there_is_nothing_to_play(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or directory"):
        discover([tmp_path / "missing"])
    with pytest.raises(InputError, match="no WAV, FLAC or Ogg recording that matches x"):
        discover([tmp_path], glob="x")
