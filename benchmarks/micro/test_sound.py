"""From the ring to log mel: what a second of sound costs before anybody judges it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.workload import RATE_HZ, noise
from edgeasd.capture.ring import Ring
from edgeasd.capture.windows import WindowReader
from edgeasd.features.mel import MelFrontEnd, MelSpec
from edgeasd.health.inputs import measure
from edgeasd.records import AudioBlock

HOP_FRAMES = RATE_HZ // 2
BLOCK_FRAMES = RATE_HZ // 4


def _ring(capacity_s: int) -> tuple[Ring, Callable[[int], None]]:
    """Return a ring, and what writes so many frames to it in blocks of a quarter of a second."""
    ring = Ring(capacity_s * RATE_HZ, policy="overwrite", doorbell=threading.Condition())
    sound = noise(BLOCK_FRAMES)

    def write(n_frames: int) -> None:
        for _ in range(n_frames // BLOCK_FRAMES):
            ring.write(AudioBlock(ring.head_frame, sound, time.monotonic_ns()))

    return ring, write


def test_ring_write_and_read_one_second(benchmark: BenchmarkFixture) -> None:
    """Measure four blocks in and one window out."""
    ring, write = _ring(20)
    out = np.empty(RATE_HZ, np.float32)

    def turn() -> bool:
        write(RATE_HZ)
        first_frame = ring.head_frame - RATE_HZ
        read = ring.read(first_frame, out)
        ring.release(ring.head_frame)
        return read

    assert benchmark(turn)


@pytest.mark.parametrize("n_windows", [1, 64])
def test_windows_cut(benchmark: BenchmarkFixture, n_windows: int) -> None:
    """Measure the cutting of windows from sound that lies in the ring."""
    ring, write = _ring(60)
    reader = WindowReader(ring, source="mic0", window_frames=RATE_HZ, hop_frames=HOP_FRAMES)
    write(RATE_HZ)

    def setup() -> None:
        reader.ready(1_000)
        write(n_windows * HOP_FRAMES)

    found = benchmark.pedantic(lambda: reader.ready(n_windows), setup=setup, rounds=200)  # type: ignore[no-untyped-call]
    assert len(found) == n_windows


@pytest.mark.parametrize("n_hops", [1, 64])
def test_mel_push(benchmark: BenchmarkFixture, n_hops: int) -> None:
    """Measure the log mel of half seconds as they come, one by one and many at once."""
    front = MelFrontEnd(MelSpec())
    sound = noise(n_hops * HOP_FRAMES)
    frames = benchmark(front.push, sound)
    assert len(frames) == n_hops * HOP_FRAMES // front.spec.hop_frames


def test_level_and_fault(benchmark: BenchmarkFixture) -> None:
    """Measure the look at the input that every window gets."""
    _, fault = benchmark(measure, noise(RATE_HZ))
    assert fault is None
