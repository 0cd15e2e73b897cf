"""P13, P14, P19: starting with nothing, stopping in order, and clocks that jump."""

from __future__ import annotations

import random
import socket
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from deploy.demo.soundscape import RATE_HZ
from tests.rig.broker import Received
from tests.rig.conservation import Ledger, last_score_end_s, read_outbox
from tests.rig.network import WayOut, can_isolate, without_network
from tests.rig.node import RunningNode
from tests.rig.promise import Measured, Promise
from tests.rig.stage import PATIENCE_S, Stage, busy, hall, needs, seconds_since, staged

_NS = 1_000_000_000


class _Supervisor:
    """The socket that a node tells how it is."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self.told: list[str] = []

    def wait(self, word: str, *, timeout_s: float) -> float:
        """Wait until a datagram holds `word`; return how long that took, s."""
        began_s = time.monotonic()
        while not any(word in told for told in self.told):
            left_s = began_s + timeout_s - time.monotonic()
            assert left_s > 0.0, f"not told {word} in {timeout_s} s: {self.told}"
            self.read(left_s)
        return time.monotonic() - began_s

    def read(self, timeout_s: float) -> None:
        """Take what comes next, if it comes in time."""
        self._socket.settimeout(max(timeout_s, 0.001))
        try:
            self.told.append(self._socket.recv(4096).decode())
        except TimeoutError:
            return

    def close(self) -> None:
        """Listen no more."""
        self._socket.close()


@contextmanager
def _supervisor(path: Path) -> Iterator[_Supervisor]:
    supervisor = _Supervisor(path)
    try:
        yield supervisor
    finally:
        supervisor.close()


def start_with_nothing(scratch: Path, *, alone_s: float) -> Measured:
    """Start without microphone, broker and network; add network and broker, then the microphone."""
    path = scratch / "notify"
    with (
        _supervisor(path) as supervisor,
        staged(
            scratch, environment={"NOTIFY_SOCKET": str(path)}, plugged=False, brokered=False, started=False
        ) as stage,
        ExitStack() as ways,
    ):
        start = stage.node.start
        without_network(start) if can_isolate() else start()
        ready_s = supervisor.wait("READY=1", timeout_s=PATIENCE_S)
        supervisor.wait("STATUS=mic0", timeout_s=PATIENCE_S)
        time.sleep(alone_s)
        alive = stage.node.running
        broker_ns = time.monotonic_ns()
        stage.broker.start()
        if can_isolate():
            ways.enter_context(WayOut(stage.node.pid, stage.broker.port))
        connected_s = seconds_since(
            broker_ns, stage.wait("n1/status", lambda each: each.text == "online", timeout_s=90)
        )
        fault = stage.wait("mic0/fault/attributes", lambda each: each.json["fault"] is not None).json["fault"]
        microphone_ns = time.monotonic_ns()
        stage.microphone.plug()
        stage.microphone.play(hall(60.0), RATE_HZ)
        score = stage.wait("mic0/score", lambda each: each.json["valid"], since_ns=microphone_ns)
        code, _ = stage.node.stop()
    status = next(told for told in supervisor.told if "STATUS=mic0" in told).partition("STATUS=")[2]
    return Measured(
        f"READY after {ready_s:.1f} s without microphone, broker{' and network' if can_isolate() else ''}, status "
        f"'{status}'; after {alone_s:g} s alone the broker was used {connected_s:.1f} s after it came (fault {fault} "
        f"told), sound judged {seconds_since(microphone_ns, score):.1f} s after the microphone came",
        kept=ready_s <= 15.0 and alive and connected_s <= 65.0 and fault == "device_absent" and code == 0,
    )


@dataclass(slots=True)
class _Stops:
    """What many stops came to."""

    codes: Counter[int] = field(default_factory=Counter)
    took_s: list[float] = field(default_factory=list)
    n_wal: int = 0
    untold: int = 0
    """Stops with a broker after which it did not hold `stopped`."""
    asked_utc_s: list[float] = field(default_factory=list)


def stop_in_order(scratch: Path, *, stops: int, burners: int) -> Measured:
    """Stop a node that has much to say: without a broker, with one, and with one that hangs; others are busy too."""
    settings = {"windows": {"hop_s": 0.1}}
    seen, books, chance = _Stops(), Ledger(), random.Random(14)
    with staged(scratch, settings=settings, started=False) as stage, busy(burners):
        for number in range(stops):
            stage.microphone.silence()
            stage.microphone.play(hall(60.0), RATE_HZ)
            _one_stop(stage, seen, broker=("away", "up", "frozen")[number % 3], after_s=chance.uniform(0.2, 1.5))
            books.enter(read_outbox(stage.node.state_dir, scratch / "copy"))
            if number % 3 != 1:
                _restore(stage, frozen=number % 3 == 2)
        stage.node.start()
        stage.wait("n1/health", _drained, since_ns=time.monotonic_ns())
        code, _ = stage.node.stop()
        time.sleep(1.0)
        seen.untold += stage.heard("n1/status")[-1].text != "stopped"
        received = stage.subscriber.messages()
    balance = books.balance(received)
    ends_s = last_score_end_s(received)
    unsaid_s = max(
        asked_s - ends_s.get((boot, "edgeasd/n1/mic0/score"), 0.0) for boot, asked_s in enumerate(seen.asked_utc_s, 1)
    )
    return Measured(
        f"{stops} stops: exit codes {dict(seen.codes)}, {max(seen.took_s):.1f} s at most; write-ahead log left "
        f"{seen.n_wal} times; stopped not retained {seen.untold} times; {balance.received} messages, {balance.lost} "
        f"committed ones lost, {balance.score_holes} scores missing, the last score {unsaid_s:.2f} s before the stop "
        "at most",
        kept=set(seen.codes) == {0}
        and code == 0
        and max(seen.took_s) <= 5.0
        and not (seen.n_wal or seen.untold or balance.lost or balance.score_holes)
        and unsaid_s <= 1.5,
    )


def _one_stop(stage: Stage, seen: _Stops, *, broker: str, after_s: float) -> None:
    began_ns = time.monotonic_ns()
    stage.node.start()
    stage.wait("mic0/score", lambda each: not each.json["late"], since_ns=began_ns)
    if broker == "away":
        stage.broker.stop()
    elif broker == "frozen":
        stage.broker.freeze()
    time.sleep(after_s)
    seen.asked_utc_s.append(time.time())
    code, took_s = stage.node.stop()
    seen.codes[code] += 1
    seen.took_s.append(took_s)
    seen.n_wal += stage.node.state_dir.joinpath("outbox.db-wal").exists()
    _check_integrity(stage.node)
    if broker == "up":
        time.sleep(0.3)
        seen.untold += stage.heard("n1/status")[-1].text != "stopped"


def _check_integrity(node: RunningNode) -> None:
    database = sqlite3.connect(f"file:{node.state_dir}/outbox.db?mode=ro", uri=True)
    try:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    finally:
        database.close()


def _restore(stage: Stage, *, frozen: bool) -> None:
    if frozen:
        stage.broker.thaw()
    else:
        stage.broker.start()
    time.sleep(1.5)  # until the subscriber is back


def _drained(health: Received) -> bool:
    return (
        bool(health.json["mqtt"]["connected"])
        and health.json["spool_depth"] == 0
        and not health.json["mqtt"]["waiting"]
    )


PROMISES = (
    Promise(
        "P13",
        "a start needs no microphone, no broker, no network",
        "READY <= 15 s; the state is told; broker and microphone are used when they come",
        start_with_nothing,
        short={"alone_s": 0},
        long={"alone_s": 120},
        needs=needs,
    ),
    Promise(
        "P14",
        "a stop is a clean one",
        "<= 5 s; exit 0; outbox closed; stopped retained where there is a broker; 0 lost",
        stop_in_order,
        short={"stops": 1, "burners": 0},
        long={"stops": 50, "burners": 1},
        needs=needs,
    ),
)
