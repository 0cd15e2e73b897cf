"""What every source promises, held against the real ones: recordings, pipes, microphones on a PulseAudio rig."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile

from edgeasd.capture.files import FileSource
from edgeasd.capture.source import Source, SourceSpec, open_source
from edgeasd.records import AudioBlock, Gap
from tests.rig.pulse import PulseMicrophone, available, one_microphone

RATE_HZ = 16_000
DEADLINE_S = 10.0
Opener = Callable[[], Source]


@pytest.fixture(scope="module")
def microphone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PulseMicrophone]:
    """A microphone in which noise plays."""
    reason = available()
    if reason is not None:
        pytest.skip(reason)
    with one_microphone(tmp_path_factory.mktemp("rig"), "contract_mic") as microphone:
        microphone.play(np.random.default_rng(1).uniform(-0.5, 0.5, 48_000 * 60).astype(np.float32), 48_000)
        yield microphone


KINDS = (
    "wav",
    "wav_paced",
    "flac_44k1_stereo",
    "microphone",
    "microphone_48k",
    "microphone_absent",
    "pipe",
    "pipe_48k",
)


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Make a pipe into which somebody writes noise, at so many samples a second, in driblets of 20 ms."""
    stop = threading.Event()
    writers: list[threading.Thread] = []

    def write(path: Path, rate_hz: int) -> None:
        noise = np.random.default_rng(1).integers(-9999, 9999, rate_hz // 50).astype("<i2").tobytes()
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK)  # RDWR: a writer that need not wait for its reader
        with contextlib.suppress(BlockingIOError):
            while not stop.wait(0.02):
                os.write(descriptor, noise)
        os.close(descriptor)

    def make(rate_hz: int) -> Path:
        path = tmp_path / "pipe"
        os.mkfifo(path)
        writers.append(threading.Thread(target=write, args=(path, rate_hz)))
        writers[-1].start()
        return path

    yield make
    stop.set()
    for writer in writers:
        writer.join(DEADLINE_S)


@pytest.fixture(params=KINDS)
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
    """Open a source named src that lasts for at least two seconds."""
    kind: str = request.param
    if kind.startswith("pipe"):
        native_rate_hz = 48_000 if kind == "pipe_48k" else None
        device = f"fifo:{request.getfixturevalue('pipe')(native_rate_hz or RATE_HZ)}"
        piped = SourceSpec(name="src", device=device, rate_hz=RATE_HZ, native_rate_hz=native_rate_hz)
        return lambda: open_source(piped)
    if kind.startswith("microphone"):
        device = request.getfixturevalue("microphone").name if kind != "microphone_absent" else "no such microphone"
        native_rate_hz = 48_000 if kind == "microphone_48k" else None
        spec = SourceSpec(name="src", device=device, rate_hz=RATE_HZ, native_rate_hz=native_rate_hz)
        return lambda: open_source(spec)
    rate_hz, n_channels = (44_100, 2) if "44k1" in kind else (RATE_HZ, 1)
    path = tmp_path / f"x.{kind[:4].strip('_')}"
    soundfile.write(path, np.random.default_rng(1).uniform(-0.5, 0.5, (rate_hz * 30, n_channels)), rate_hz)
    return lambda: FileSource(path, name="src", rate_hz=RATE_HZ, speed=4.0 if kind == "wav_paced" else None)


def take(source: Source, duration_s: float) -> list[AudioBlock | Gap]:
    """Take about so much of a source, then close it."""
    items = []
    for item in source.blocks():
        items.append(item)
        if item.first_frame > duration_s * RATE_HZ:
            source.close()
    return items


def test_blocks_are_contiguous_finite_mono_and_in_order_of_time(opener: Opener) -> None:
    source = opener()
    assert (source.name, source.rate_hz) == ("src", RATE_HZ)
    items = take(source, 2.0)
    frame = 0
    for item in items:
        assert item.first_frame == frame
        frame += len(item.samples) if isinstance(item, AudioBlock) else item.n_frames
    assert frame > 2.0 * RATE_HZ
    blocks = [item for item in items if isinstance(item, AudioBlock)]
    for block in blocks:
        assert block.samples.dtype == np.float32
        assert block.samples.ndim == 1
        assert len(block.samples) > 0
        assert np.isfinite(block.samples).all()
    assert all(item.n_frames > 0 for item in items if isinstance(item, Gap))
    assert all(before.captured_ns <= after.captured_ns for before, after in pairwise(blocks))


def test_blocks_are_not_overwritten_by_later_ones(opener: Opener) -> None:
    source = opener()
    kept: list[tuple[AudioBlock, bytes]] = []
    for item in source.blocks():
        if isinstance(item, AudioBlock):
            kept.append((item, item.samples.tobytes()))
        if item.first_frame > RATE_HZ:
            source.close()
    assert all(block.samples.tobytes() == as_it_came for block, as_it_came in kept)


def test_close_from_another_thread_ends_the_blocks(opener: Opener) -> None:
    source = opener()
    ended, begun = threading.Event(), threading.Event()

    def drain() -> None:
        for _ in source.blocks():
            begun.set()
            ended.wait(0.05)  # a slow taker: no recording ends before it is closed
        ended.set()

    thread = threading.Thread(target=drain)
    thread.start()
    try:
        assert begun.wait(DEADLINE_S)
    finally:
        source.close()
        thread.join(DEADLINE_S)
    assert ended.is_set()


def test_closed_before_it_began_gives_nothing(opener: Opener) -> None:
    source = opener()
    source.close()
    source.close()
    assert list(source.blocks()) == []
