"""P7, P8, P9: microphones that vanish and hang, and what becomes of the sound."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from deploy.demo.soundscape import RATE_HZ
from tests.rig.broker import Received
from tests.rig.promise import Measured, Promise
from tests.rig.stage import PATIENCE_S, Stage, busy, hall, needs, seconds_since, staged, wait_exit

_WINDOW_S = 1.0
_SETTLED = 5
"""After so many cycles a process has what it needs."""


def _account(health: Received) -> dict[str, Any]:
    found: dict[str, Any] = health.json["sources"]["mic0"]
    return found


def _accounted_s(health: Received) -> float:
    account = _account(health)
    parts = [*account["dropped_s"].values(), *account["absent_s"].values()]
    return float(account["scored_s"] + account["unexplained_s"] + sum(parts))


def _killed(stage: Stage) -> None:
    stage.microphone.unplug()
    time.sleep(1.0)
    stage.microphone.plug()
    stage.microphone.play(hall(60.0), RATE_HZ)


def _frozen(stage: Stage) -> None:
    stage.microphone.freeze()
    time.sleep(2.5)
    stage.microphone.thaw()


def _taken_away(stage: Stage) -> None:
    stage.microphone.take_away()
    time.sleep(1.0)
    stage.microphone.put_back()
    stage.microphone.play(hall(60.0), RATE_HZ)


def _held(stage: Stage) -> None:
    """Stop the node itself, as a thread that holds the interpreter would."""
    stage.node.send(signal.SIGSTOP)
    time.sleep(2.0)
    stage.node.send(signal.SIGCONT)


def _loaded(_stage: Stage) -> None:
    with busy(2):
        time.sleep(3.0)


_MISHAPS: tuple[Callable[[Stage], None], ...] = (_killed, _held, _frozen, _taken_away, _loaded)


def keep_the_ledger(scratch: Path, *, minutes: float, pause_s: float, mishaps: int) -> Measured:
    """Compare what the ledger accounts for with what the clock says, over mishaps of all kinds."""
    with staged(scratch) as stage:
        stage.microphone.play(hall(60.0), RATE_HZ)
        stage.wait("mic0/score")
        first = stage.wait("n1/health", since_ns=time.monotonic_ns())
        until_s = time.monotonic() + 60.0 * minutes
        n_mishaps = 0
        while time.monotonic() < until_s or n_mishaps < mishaps:
            _MISHAPS[n_mishaps % len(_MISHAPS)](stage)
            n_mishaps += 1
            time.sleep(pause_s)
        stage.wait("mic0/score", since_ns=time.monotonic_ns())
        last = stage.wait("n1/health", since_ns=time.monotonic_ns())
        restarts = 0 if stage.node.running else 1
    passed_s = (last.json["ts_ns"] - first.json["ts_ns"]) / 1e9
    booked_s = _accounted_s(last) - _accounted_s(first)
    error_s, unexplained_s = abs(booked_s - passed_s), _account(last)["unexplained_s"]
    allowed_s = max(n_mishaps * _WINDOW_S if minutes < 1 else 0.001 * passed_s, _WINDOW_S)
    account = _account(last)
    lost = ", ".join(f"{why} {s:.1f}" for why, s in {**account["dropped_s"], **account["absent_s"]}.items())
    return Measured(
        f"{booked_s:.1f} s booked in {passed_s:.1f} s with {n_mishaps} mishaps: off by {error_s:.2f} s "
        f"({100 * error_s / passed_s:.3f} %), unexplained {unexplained_s:.1f} s; not scored, s: {lost}; "
        f"{restarts} restarts",
        kept=error_s <= allowed_s and unexplained_s == 0.0 and not restarts,
    )


@dataclass(slots=True)
class _Cycles:
    """What many unpluggings came to."""

    detected_s: list[float]
    returned_s: list[float]
    rss_bytes: list[int]
    descriptors: list[int]

    def growth(self) -> tuple[float, int]:
        """Return by how many MB and descriptors the process has grown since it settled."""
        start = min(_SETTLED, len(self.rss_bytes) // 2)
        return (self.rss_bytes[-1] - self.rss_bytes[start]) / 1e6, self.descriptors[-1] - self.descriptors[start]


def survive_unplugging(scratch: Path, *, cycles: int) -> Measured:
    """Unplug and plug again, by killing the sound server and by taking the microphone from it in turn."""
    seen = _Cycles([], [], [], [])
    with staged(scratch) as stage:
        stage.microphone.play(hall(60.0), RATE_HZ)
        stage.wait("mic0/score")
        process = psutil.Process(stage.node.pid)
        for number in range(cycles):
            _cycle(stage, seen, gone_s=(0.5, 2.0, 6.0)[number % 3], kills=number % 2 == 0)
            seen.rss_bytes.append(process.memory_info().rss)
            seen.descriptors.append(process.num_fds())
        restarts = 0 if stage.node.running and stage.node.pid == process.pid else 1
        code, _ = stage.node.stop()
    grown_mb, grown_fds = seen.growth()
    flat = cycles < 2 * _SETTLED or (grown_mb <= 1.0 and grown_fds <= 0)
    return Measured(
        f"{cycles} cycles: seen after {max(seen.detected_s):.1f} s at most, sound {max(seen.returned_s):.1f} s after "
        f"the return at most (median {np.median(seen.returned_s):.1f} s), {restarts} restarts, since cycle "
        f"{min(_SETTLED, cycles // 2)} memory {grown_mb:+.2f} MB, descriptors {grown_fds:+d}",
        kept=max(seen.detected_s) <= 2.5 and max(seen.returned_s) <= 5.0 and not restarts and flat and code == 0,
    )


def _cycle(stage: Stage, seen: _Cycles, *, gone_s: float, kills: bool) -> None:
    microphone = stage.microphone
    began_ns = time.monotonic_ns()
    if kills:
        microphone.unplug()
    else:
        microphone.take_away()
    offline = stage.wait("mic0/status", lambda each: each.text == "offline", since_ns=began_ns)
    seen.detected_s.append(seconds_since(began_ns, offline))
    time.sleep(gone_s)
    if kills:
        microphone.plug()
    else:
        microphone.put_back()
    back_ns, back_utc_ns = time.monotonic_ns(), time.time_ns()
    microphone.play(hall(60.0), RATE_HZ)
    score = stage.wait("mic0/score", since_ns=back_ns)
    seen.returned_s.append((score.json["ts_ns"] - back_utc_ns) / 1e9)


def outlive_a_hang(scratch: Path, *, frozen_s: float) -> Measured:
    """Freeze the sound server; be the supervisor that starts the node again; thaw it."""
    with staged(scratch) as stage:
        stage.microphone.play(hall(60.0), RATE_HZ)
        stage.wait("mic0/score")
        began_ns = time.monotonic_ns()
        stage.microphone.freeze()
        code, died_s = wait_exit(stage.node, timeout_s=PATIENCE_S)
        told = len(stage.heard("n1/health", since_ns=began_ns))
        fault_s = seconds_since(began_ns, stage.wait("mic0/fault", lambda each: each.text == "ON", since_ns=began_ns))
        attributes = stage.wait("fault/attributes", lambda each: each.json["fault"] is not None, since_ns=began_ns)
        if frozen_s:  # the broker waits before it says the will
            stage.wait("n1/status", lambda each: each.text == "offline", since_ns=began_ns)
        codes = list(_supervise(stage, until_s=began_ns / 1e9 + frozen_s))
        stopped_s = _stopped_in_a_hang(stage) if frozen_s else 0.0
        stage.microphone.thaw()
        thawed_ns = time.monotonic_ns()
        stage.microphone.play(hall(60.0), RATE_HZ)
        stage.node.start()
        again_s = seconds_since(thawed_ns, stage.wait("mic0/score", since_ns=thawed_ns))
        stage.node.stop()
    kept = code == 69 and died_s <= 10.0 and told >= 3 and stopped_s <= 5.0 and set(codes) <= {69}
    return Measured(
        f"frozen for {frozen_s:.0f} s: {told} health messages and the fault {attributes.json['fault']} (after "
        f"{fault_s:.1f} s) came during the hang, exit {code} after {died_s:.1f} s, {len(codes)} restarts into the hang "
        f"ended likewise, {_said_of_stops(stopped_s)}judged again {again_s:.1f} s after the thaw",
        kept=kept,
    )


def _said_of_stops(stopped_s: float) -> str:
    return f"SIGTERM during it, also with a frozen broker, took {stopped_s:.1f} s at most, " if stopped_s else ""


def _stopped_in_a_hang(stage: Stage) -> float:
    """Stop a node that hangs again, also while its broker does not answer; return how long it took at most, s."""
    took_s = []
    for broker_hangs in (False, True):
        began_ns = time.monotonic_ns()
        stage.node.start()
        stage.wait("n1/status", lambda each: each.text == "online", since_ns=began_ns)
        time.sleep(1.0)
        if broker_hangs:
            stage.broker.freeze()
        took_s.append(stage.node.stop()[1])
    stage.broker.thaw()
    return max(took_s)


def _supervise(stage: Stage, *, until_s: float) -> Iterator[int]:
    """Start the node again each time it ends, until then; yield its exit codes.

    Once enough connections wait at the frozen server the next is refused: the microphone is absent then, and the node
    stays up. It is killed in the end.
    """
    while time.monotonic() < until_s and not stage.node.running:
        stage.node.start()
        with contextlib.suppress(subprocess.TimeoutExpired):
            yield stage.node.wait(max(1.0, until_s - time.monotonic()))
        time.sleep(1.0)
    if stage.node.running:
        stage.node.kill()


PROMISES = (
    Promise(
        "P7",
        "the ledger accounts for every second",
        "off by <= 1 window a mishap, <= 0.1 % over an hour; nothing unexplained",
        keep_the_ledger,
        short={"minutes": 0, "pause_s": 0.5, "mishaps": 2},
        long={"minutes": 60, "pause_s": 20, "mishaps": 5},
        needs=needs,
    ),
    Promise(
        "P8",
        "a lost microphone is seen and comes back without a restart",
        "seen <= 2.5 s; sound <= 5 s after its return; 0 restarts; memory and descriptors flat (<= 1 MB)",
        survive_unplugging,
        short={"cycles": 1},
        long={"cycles": 50},
        needs=needs,
    ),
    Promise(
        "P9",
        "a hung sound system cannot hang the node",
        "the rest goes on and the fault is told; exit 69 <= 10 s; SIGTERM during the hang <= 5 s; judged again after",
        outlive_a_hang,
        short={"frozen_s": 0},
        long={"frozen_s": 60},
        needs=needs,
    ),
)
