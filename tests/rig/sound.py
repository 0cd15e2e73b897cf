"""Endless, seeded sound for a microphone of the rig: made in a process of its own, played until it is stopped.

python -m tests.rig.sound SEED > raw-float32-at-16-kHz
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from itertools import count

import numpy as np
from numpy.typing import NDArray

from deploy.demo.soundscape import RATE_HZ, make_soundscape
from tests.rig.pulse import PulseMicrophone

_EVENTFUL_S = 24.0
"""So long a stretch holds one event."""


class EndlessSound:
    """Plays a machine hall into a microphone; another stretch of it after each stop, the same in every run."""

    def __init__(self, microphone: PulseMicrophone, *, seed: int) -> None:
        self._microphone = microphone
        self._seed = seed
        self._starts = 0
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Play; the microphone must be plugged in."""
        assert not self._processes, "it plays already"
        self._starts += 1
        maker = subprocess.Popen(
            [sys.executable, "-m", "tests.rig.sound", f"{1000 * self._seed + self._starts}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        server = f"--server=unix:{self._microphone.socket}"
        player = subprocess.Popen(
            [
                *("pacat", "--playback", server, f"--device={self._microphone.name}"),
                *(f"--rate={RATE_HZ}", "--format=float32le", "--channels=1", "--latency-msec=50"),
            ],
            stdin=maker.stdout,
            stderr=subprocess.DEVNULL,
        )
        assert maker.stdout is not None
        maker.stdout.close()  # the player holds the other end: the maker ends with it
        self._processes = [player, maker]

    def stop(self) -> None:
        """Fall silent."""
        for process in self._processes:
            process.kill()
            process.wait()
        self._processes.clear()


def chunks(
    seed: int, *, chunk_s: float = 60.0, join_s: float = 0.25, event_every: int = 2
) -> Iterator[NDArray[np.float32]]:
    """Yield stretches of sound that fade into each other, shape (n,), for ever; 0: none of them holds an event."""
    n_join = round(join_s * RATE_HZ)
    rise = np.sin(np.linspace(0.0, np.pi / 2.0, n_join))
    tail = np.zeros(n_join)
    for number in count(1):
        eventful_s = _EVENTFUL_S if event_every and number % event_every == 0 else 0.0
        seed_here = seed + 1_000_000 * number
        sound, _ = make_soundscape(seed=seed_here, normal_s=chunk_s - eventful_s, eventful_s=eventful_s)
        sound[:n_join] = sound[:n_join] * rise + tail * rise[::-1]
        tail = sound[-n_join:].copy()
        yield sound[:-n_join].astype(np.float32)


def main() -> None:
    """Write sound to stdout until nobody reads it."""
    try:
        for chunk in chunks(int(sys.argv[1])):
            sys.stdout.buffer.write(chunk.tobytes())
            sys.stdout.buffer.flush()
    except BrokenPipeError:
        sys.stdout = None  # nothing to flush at the exit


if __name__ == "__main__":
    main()
