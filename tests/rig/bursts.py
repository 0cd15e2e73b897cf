"""A node with a lot to say: real microphones that hear a burst a second, and a model that makes events of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from shutil import which
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.rig.broker import NO_MOSQUITTO
from tests.rig.node import RunningNode
from tests.rig.pulse import PulseRig, available
from tests.small_bundle import SPEC, WINDOW_FRAMES, write_small_bundle

RATE_HZ = SPEC.sample_rate_hz
HOP_S = WINDOW_FRAMES / RATE_HZ
"""64 ms: some 16 scores a second from each microphone, and two to three event messages."""
_SOUND_S = 60.0


def needs() -> str | None:
    """Return why such a node cannot be run on this machine, None when it can."""
    return available() or (None if which("mosquitto") else NO_MOSQUITTO)


def bursts(seconds: float, *, seed: int) -> NDArray[np.float32]:
    """Return soft noise with a loud burst of 0.3 s in every second, shape (n,)."""
    random = np.random.default_rng(seed)
    sound = random.normal(0.0, 1e-3, round(seconds * RATE_HZ)).astype(np.float32)
    for start in range(0, len(sound), RATE_HZ):
        at = start + int(random.integers(RATE_HZ // 2))
        sound[at : at + RATE_HZ * 3 // 10] *= 200.0
    return np.clip(sound, -0.9, 0.9)


class BurstyRig(PulseRig):
    """Microphones that hear bursts for as long as somebody asks `keep_sounding` now and then."""

    def __init__(self, folder: Path, *, n_microphones: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(folder, *(f"mic_{number}" for number in range(n_microphones)), rate_hz=RATE_HZ)
        self._sounding: dict[str, Any] = {}

    def keep_sounding(self) -> None:
        """Play on where a player has come to its end."""
        for seed, (name, microphone) in enumerate(self.microphones.items()):
            player = self._sounding.get(name)
            if player is None or player.poll() is not None:
                self._sounding[name] = microphone.play(bursts(_SOUND_S, seed=seed), RATE_HZ)

    def hush(self) -> None:
        """End the sound: what follows is digital silence, in which no event starts."""
        for player in self._sounding.values():
            player.kill()
            player.wait()

    def settings(
        self, folder: Path, *, port: int, mqtt: Mapping[str, Any] | None = None, microphones: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Return the settings of a node that hears these microphones, or all, and publishes on loopback."""
        folder.mkdir(parents=True, exist_ok=True)
        heard = microphones or self.microphones
        return {
            "bundle": str(write_small_bundle(folder / "small.edgeasd")),
            "novelty": {"enabled": False},
            "sources": [{"name": name.replace("_", ""), "device": name} for name in heard],
            "windows": {"hop_s": HOP_S},
            "alarm": {"false_alarms": "3600/hour", "release_s": 0.1, "merge_s": 0.05, "update_s": 1.0},
            "mqtt": {"host": "127.0.0.1", "port": port, **(mqtt or {})},
            "health_interval_s": 1.0,
        }


@contextmanager
def bursty_node(
    scratch: Path, *, port: int, n_microphones: int = 1, mqtt: Mapping[str, Any] | None = None, started: bool = True
) -> Iterator[tuple[RunningNode, BurstyRig]]:
    """Provide such a node with its microphones."""
    with BurstyRig(scratch / "pulse", n_microphones=n_microphones) as rig:
        rig.keep_sounding()
        settings = rig.settings(scratch, port=port, mqtt=mqtt)
        with RunningNode(scratch / "node", settings, environment=rig.environment, started=started) as node:
            yield node, rig
