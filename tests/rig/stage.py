"""One microphone, one node, one broker, and somebody who takes note of all that is said: what most promises need."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.demo.soundscape import RATE_HZ, make_soundscape
from tests.rig.broker import MOSQUITTO, NO_MOSQUITTO, Broker, BrokerSetup, Received, Subscriber
from tests.rig.node import RunningNode
from tests.rig.pulse import PulseMicrophone, PulseRig, available

MICROPHONE = "mic_a"
PATIENCE_S = 40.0
"""For what comes soon, on a machine that has much else to do."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What takes part."""

    broker: Broker
    microphone: PulseMicrophone
    node: RunningNode
    subscriber: Subscriber

    def heard(self, suffix: str, *, since_ns: int = 0) -> list[Received]:
        """Return the messages of topics that end so, received since then by the monotonic clock."""
        return [each for each in self.subscriber.messages(suffix) if each.at_ns >= since_ns]

    def wait(
        self,
        suffix: str,
        fits: Callable[[Received], object] = lambda _: True,
        *,
        since_ns: int = 0,
        timeout_s: float = PATIENCE_S,
    ) -> Received:
        """Wait for a message of a topic that ends so, that was received since then and fits; return the first."""

        def fitting(messages: list[Received]) -> list[Received]:
            return [each for each in messages if each.at_ns >= since_ns and fits(each)]

        return fitting(self.subscriber.wait(fitting, suffix=suffix, timeout_s=timeout_s))[0]


def needs() -> str | None:
    """Return why there is no stage on this machine, None when there is."""
    return available() or (None if MOSQUITTO else NO_MOSQUITTO)


def hall(duration_s: float, *, seed: int = 3) -> NDArray[np.float32]:
    """Return normal sound, shape (n,), at 16 kHz."""
    sound, _ = make_soundscape(seed=seed, normal_s=duration_s, eventful_s=0.0)
    return sound.astype(np.float32)


@contextmanager
def staged(
    scratch: Path,
    *,
    settings: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    arguments: Sequence[str] = (),
    plugged: bool = True,
    brokered: bool = True,
    started: bool = True,
) -> Iterator[Stage]:
    """Set everything up in `scratch`; without a broker for now the subscriber joins when there is one."""
    (scratch / "pulse").mkdir()
    setup = BrokerSetup(persistence=True, lines=("max_queued_messages 0",))
    with ExitStack() as stack:
        broker = stack.enter_context(Broker(scratch / "broker", setup, started=brokered))
        rig = stack.enter_context(PulseRig(scratch / "pulse", MICROPHONE, rate_hz=RATE_HZ, plugged=plugged))
        subscriber = Subscriber(broker.port)
        stack.callback(subscriber.__exit__)
        if brokered:
            subscriber.wait_subscribed()
        whole = {
            "sources": [{"name": "mic0", "device": MICROPHONE}],
            "mqtt": {"url": broker.url},
            "health_interval_s": 1.0,
            **(settings or {}),
        }
        node = stack.enter_context(
            RunningNode(
                scratch / "node",
                whole,
                environment={**rig.environment, **(environment or {})},
                arguments=arguments,
                started=started,
            )
        )
        yield Stage(broker, rig[MICROPHONE], node, subscriber)


def seconds_since(began_ns: int, received: Received) -> float:
    """Return how long after `began_ns`, by the monotonic clock, a message was received."""
    return (received.at_ns - began_ns) / 1e9


def wait_exit(node: RunningNode, *, timeout_s: float) -> tuple[int, float]:
    """Wait until a node ends by itself; return its exit code and how long that took, in s."""
    began_s = time.monotonic()
    return node.wait(timeout_s), time.monotonic() - began_s


@contextmanager
def busy(n_processes: int) -> Iterator[None]:
    """Keep so many cores from the node, as far as the scheduler lets one."""
    processes = [subprocess.Popen(["sh", "-c", "while :; do :; done"]) for _ in range(n_processes)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
