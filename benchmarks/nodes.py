"""A running node seen from outside: what it says at the broker, and what each kind of its threads costs."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

EDGEASD = str(Path(sys.executable).with_name("edgeasd"))
RATE_HZ = 16000
HOP_S = 0.5
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PULSE = "threaded-ml"


@dataclass
class Heard:
    """Scores as they came."""

    arrivals: list[tuple[int, bytes]] = field(default_factory=list)
    """UTC of arrival, and the payload."""
    health: dict[str, Any] = field(default_factory=dict)
    first: threading.Event = field(default_factory=threading.Event)
    _stopped: bool = False

    def take(self, topic: str, payload: bytes) -> None:
        """Keep a score with its time of arrival; of the health reports the last."""
        now_ns = time.time_ns()
        if topic.endswith("/health"):
            self.health = json.loads(payload)
        elif not self._stopped:
            self.arrivals.append((now_ns, payload))
            self.first.set()

    def clear(self) -> None:
        """Forget the scores so far."""
        self.arrivals = []

    def stop(self) -> None:
        """Take no more scores."""
        self._stopped = True

    @property
    def payloads(self) -> list[dict[str, Any]]:
        """Return what the scores say."""
        return [json.loads(payload) for _, payload in self.arrivals]

    def late_ms(self) -> NDArray[np.float64]:
        """Return for each score how long after the end of its window it came."""
        ends_ns = [score["ts_ns"] + score["n"] * 1_000_000_000 // score["rate"] for score in self.payloads]
        arrived_ns = np.array([arrived_ns for arrived_ns, _ in self.arrivals], np.int64)
        late: NDArray[np.float64] = (arrived_ns - np.array(ends_ns, np.int64)) / 1e6
        return late


@contextmanager
def listening(url: str) -> Iterator[Heard]:
    """Subscribe to what all nodes of a broker on this machine say."""
    from paho.mqtt.client import Client
    from paho.mqtt.enums import CallbackAPIVersion

    heard = Heard()
    client = Client(CallbackAPIVersion.VERSION2)
    client.on_connect = lambda c, *_: c.subscribe([("edgeasd/+/+/score", 1), ("edgeasd/+/health", 0)])
    client.on_message = lambda _c, _u, message: heard.take(message.topic, bytes(message.payload))
    client.connect("127.0.0.1", int(url.rpartition(":")[2]))
    client.loop_start()
    try:
        yield heard
    finally:
        client.disconnect()
        client.loop_stop()


@dataclass(frozen=True)
class Usage:
    """What a process cost while it ran, start-up apart."""

    seconds: float
    shares_pct: dict[str, float]
    """Of one core, by kind of thread."""
    rss_mb: float
    peak_mb: float
    private_mb: float
    """Of the resident memory, what it shares with no other process: its own data, not the files of libraries."""

    @property
    def cpu_pct(self) -> float:
        """Return what all threads took, in percent of a core."""
        return sum(self.shares_pct.values())

    def words(self) -> str:
        """Return what each kind of thread took."""
        return ", ".join(f"{kind} {share:.2f}" for kind, share in self.shares_pct.items() if share > 0)


def measure_usage(pid: int, *, seconds: float, n_sources: int) -> Usage:
    """Watch a running node for `seconds`."""
    before, began_s = _ticks(pid, n_sources), time.monotonic()
    time.sleep(seconds)
    after, passed_s = _ticks(pid, n_sources), time.monotonic() - began_s
    percent = 100.0 / _TICKS_PER_S / passed_s
    return Usage(
        seconds=passed_s,
        shares_pct={kind: (after[kind] - before[kind]) * percent for kind in after},
        rss_mb=_memory_mb(pid, "status", "VmRSS:"),
        peak_mb=_memory_mb(pid, "status", "VmHWM:"),
        private_mb=_memory_mb(pid, "smaps_rollup", "Private_Dirty:"),
    )


def _ticks(pid: int, n_sources: int) -> dict[str, int]:
    """Return processor ticks by kind of thread: the first judges, one a source captures, what comes later publishes."""
    ticks = dict.fromkeys(("judging", "capture", "publishing", "PulseAudio's client"), 0)
    n_seen = 0
    for task in sorted(Path(f"/proc/{pid}/task").iterdir(), key=lambda task: int(task.name)):
        name, _, rest = (task / "stat").read_text().partition("(")[2].rpartition(")")
        if name.startswith(_PULSE):
            kind = "PulseAudio's client"
        else:
            kind = "judging" if n_seen == 0 else "capture" if n_seen <= n_sources else "publishing"
            n_seen += 1
        ticks[kind] += sum(map(int, rest.split()[11:13]))
    return ticks


def _memory_mb(pid: int, file: str, key: str) -> float:
    lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(key)) / 1024
