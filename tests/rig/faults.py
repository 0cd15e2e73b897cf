"""What is done to a node in a soak: a rig of all parts, and the faults, each of which leaves it as it was."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Self

from tests.rig.broker import Broker
from tests.rig.node import RunningNode
from tests.rig.pulse import PulseMicrophone
from tests.rig.sound import EndlessSound

_POLL_S = 0.1


@dataclass(slots=True)
class Life:
    """One life of the node's process, times by the monotonic clock."""

    pid: int
    began_s: float
    ended_s: float | None = None
    exit_code: int | None = None


class Keeper:
    """Starts the node again whenever it ends, after a pause, as systemd would with Restart=always."""

    def __init__(self, node: RunningNode, *, pause_s: float) -> None:
        self.node = node
        self.lives: list[Life] = []
        self._pause_s = pause_s
        self._done = threading.Event()
        self._begin()
        self._thread = threading.Thread(target=self._keep, name="keeper")
        self._thread.start()

    @property
    def life(self) -> Life:
        """Return the latest life."""
        return self.lives[-1]

    def close(self) -> None:
        """Let the node end for good."""
        self._done.set()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _begin(self) -> None:
        self.node.start()
        self.lives.append(Life(self.node.pid, time.monotonic()))

    def _keep(self) -> None:
        while not self._done.wait(_POLL_S):
            if not self.node.running:
                assert self.node.process is not None
                self.life.ended_s, self.life.exit_code = time.monotonic(), self.node.process.returncode
                if not self._done.wait(self._pause_s):
                    self._begin()


@dataclass(slots=True)
class Scene:
    """All that can be harmed."""

    broker: Broker
    microphones: Sequence[PulseMicrophone]
    sounds: Sequence[EndlessSound]
    keeper: Keeper
    scale: float = 1.0
    """Times how long the faults last."""
    broker_kills_ns: list[int] = field(default_factory=list)
    """UTC at which the broker was killed: what it had not saved is its loss, not the node's."""

    def wait(self, seconds: float) -> None:
        """Let a fault last."""
        time.sleep(seconds * self.scale)


@dataclass(frozen=True, slots=True)
class Fault:
    """A way to be harmed."""

    name: str
    inflict: Callable[[Scene], None]
    restarts: bool = False
    """Whether it ends the life of the process."""


def _stop_broker(scene: Scene) -> None:
    scene.broker.stop()
    scene.wait(30.0)
    scene.broker.start()


def _kill_broker(scene: Scene) -> None:
    scene.broker_kills_ns.append(time.time_ns())
    scene.broker.kill()
    scene.wait(10.0)
    scene.broker.start()


def _freeze_broker(scene: Scene) -> None:
    scene.broker.freeze()
    scene.wait(50.0)
    scene.broker.thaw()


def _unplug(scene: Scene) -> None:
    scene.microphones[0].unplug()
    scene.sounds[0].stop()
    scene.wait(20.0)
    scene.microphones[0].plug()
    scene.sounds[0].start()


def _freeze_sound_server(scene: Scene) -> None:
    scene.microphones[0].freeze()
    scene.wait(12.0)
    scene.microphones[0].thaw()


def _silence(scene: Scene) -> None:
    scene.sounds[-1].stop()
    scene.wait(20.0)
    scene.sounds[-1].start()


def _kill_node(scene: Scene) -> None:
    scene.keeper.node.send(signal.SIGKILL)


def _load(scene: Scene) -> None:
    with _burning(4):
        scene.wait(30.0)


@contextlib.contextmanager
def _burning(n_processes: int) -> Iterator[None]:
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n_processes)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


STOP_BROKER = Fault("broker stopped, 30 s", _stop_broker)
KILL_BROKER = Fault("broker killed, 10 s", _kill_broker)
FREEZE_BROKER = Fault("broker frozen, 50 s", _freeze_broker)
UNPLUG = Fault("microphone away, 20 s", _unplug)
FREEZE_SOUND = Fault("sound server frozen, 12 s", _freeze_sound_server, restarts=True)
SILENCE = Fault("digital silence, 20 s", _silence)
KILL_NODE = Fault("node killed", _kill_node, restarts=True)
LOAD = Fault("4 busy processes, 30 s", _load)
GENTLE = (STOP_BROKER, UNPLUG, KILL_BROKER, SILENCE, FREEZE_BROKER, LOAD)
"""Those that a process outlives."""
ALL = (STOP_BROKER, KILL_NODE, UNPLUG, KILL_BROKER, FREEZE_SOUND, SILENCE, KILL_NODE, FREEZE_BROKER, FREEZE_SOUND, LOAD)
