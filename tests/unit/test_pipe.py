"""Pipes as sources: writers that come, go, fall silent, and files that are no pipes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgeasd.capture.pipe import PipeSource
from edgeasd.capture.source import SourceSpec
from edgeasd.errors import SettingsError
from edgeasd.records import AudioBlock, Gap, LossReason

RATE_HZ = 16_000
BLOCK = 1600


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now_ns = 10**12

    def __call__(self) -> int:
        return self.now_ns

    def pass_s(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def listening(tmp_path: Path, clock: Clock) -> Callable[..., PipeSource]:
    def listen(device: str = f"fifo:{tmp_path / 'pipe'}", channel: int = 0) -> PipeSource:
        spec = SourceSpec(name="s", device=device, rate_hz=RATE_HZ, channel=channel, block_frames=BLOCK)
        return PipeSource(spec, monotonic_ns=clock)

    return listen


def _write(path: Path, values: np.ndarray) -> None:
    descriptor = os.open(path, os.O_RDWR)
    os.write(descriptor, values.astype("<i2").tobytes())
    threading.Timer(0.5, os.close, [descriptor]).start()  # what nobody has read is lost with the last who has it open


def test_samples_come_as_they_were_written_and_a_writer_that_goes_leaves_a_gap(
    listening: Callable[..., PipeSource], tmp_path: Path, clock: Clock
) -> None:
    os.mkfifo(tmp_path / "pipe")
    ramp = np.arange(-BLOCK, BLOCK)
    _write(tmp_path / "pipe", ramp)
    source = listening()
    items = source.blocks()
    blocks = [next(items), next(items)]
    assert all(isinstance(block, AudioBlock) for block in blocks)
    heard = np.concatenate([block.samples for block in blocks if isinstance(block, AudioBlock)])
    np.testing.assert_array_equal(heard, (ramp / 2**15).astype(np.float32))
    threading.Timer(0.2, clock.pass_s, [3.0]).start()

    gap = next(items)

    assert isinstance(gap, Gap)
    assert (gap.first_frame, gap.reason) == (2 * BLOCK, LossReason.DEVICE_ABSENT)
    _write(tmp_path / "pipe", ramp)
    back = next(item for item in items if isinstance(item, AudioBlock))
    np.testing.assert_array_equal(back.samples, heard[:BLOCK])
    assert back.first_frame == pytest.approx(3 * RATE_HZ + 2 * BLOCK, abs=2 * BLOCK)
    source.close()


def test_a_file_that_is_no_pipe_is_absent_until_one_takes_its_place(
    listening: Callable[..., PipeSource], tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "pipe"
    path.write_bytes(b"RIFF")
    threading.Timer(0.2, clock.pass_s, [1.0]).start()
    source = listening()
    items = source.blocks()
    assert isinstance(next(items), Gap)
    assert f"{path} is no pipe" in caplog.text
    path.unlink()
    os.mkfifo(path)
    _write(path, np.ones(BLOCK))
    assert isinstance(next(item for item in items if isinstance(item, AudioBlock)), AudioBlock)
    source.close()


def test_stdin_ends_with_its_writer(listening: Callable[..., PipeSource], monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.write(writer, np.ones(2 * BLOCK + 7, "<i2").tobytes())
    os.close(writer)
    source = listening("-")
    monkeypatch.setattr(source, "_path", f"/dev/fd/{reader}")
    items = list(source.blocks())
    os.close(reader)
    assert sum(len(item.samples) for item in items if isinstance(item, AudioBlock)) == 2 * BLOCK


def test_a_pipe_has_one_channel(listening: Callable[..., PipeSource]) -> None:
    with pytest.raises(SettingsError, match="s: a pipe has one channel, no channel 1"):
        listening(channel=1)
