"""P1: what a node has committed reaches the broker, however often node and broker die."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.rig.broker import Broker, BrokerSetup, Received, Subscriber, wait_for
from tests.rig.bursts import BurstyRig, bursty_node, needs
from tests.rig.conservation import Balance, Ledger, last_score_end_s, read_outbox
from tests.rig.node import RunningNode
from tests.rig.promise import Measured, Promise

_DURABLE = BrokerSetup(persistence=True, lines=("max_queued_messages 0",))
_UP_S = _DOWN_S = 1.5
_WINDOW = 20
_UNSAVED_S = 5.0
"""What a killed node may lose of its scores, which live in memory so long."""
_HEARD_LATE_S = 1.5
"""From the end of a window to its score, on a busy machine."""
_MAX_CRASHES = 3
_FIRST_SOUND_S = 2.0
"""From opening a microphone of this rig to its first sound."""


@dataclass(frozen=True, slots=True)
class _Kill:
    boot: int
    at_utc_s: float
    life_s: float
    """Since its microphones were open."""
    crashes: list[int]
    """Exit codes of starts before it that ended by themselves."""


def survive_kills(scratch: Path, *, kills: int, life_s: float) -> Measured:
    """Kill a node again and again while its broker comes and goes; then compare disk and subscriber."""
    rng = random.Random(kills)
    ledger = Ledger()
    with (
        Broker(scratch / "broker", _DURABLE) as broker,
        Subscriber(broker.port) as subscriber,
        bursty_node(scratch, port=broker.port, n_microphones=2, started=False) as (node, rig),
    ):
        with _flapping(broker):
            deaths = [_one_life(node, rig, ledger, life_s=rng.uniform(0.5, life_s)) for _ in range(kills)]
        began_s = time.monotonic()
        _bring_home(node, subscriber)
        drained_s = time.monotonic() - began_s
        received = subscriber.messages()
    balance = ledger.balance(received)
    unsaved_s = _longest_unsaved_s(deaths, received)
    text = (
        f"{balance.lost} lost of {len(ledger.committed)} found committed after {kills} kills and of "
        f"{balance.received} received; {balance.doubled} doubled ({_percent(balance):.1f} %), at most "
        f"{balance.most_copies} copies, {balance.altered} altered; scores: {balance.score_holes} holes, the last "
        f"{unsaved_s:.1f} s before a kill unsaved at most; drained {drained_s:.1f} s after the last start"
    )
    crashes = [code for death in deaths for code in death.crashes]
    if crashes:
        text += f"; {len(crashes)} starts ended by themselves, exit {sorted(set(crashes))}"
    kept = (
        not (balance.lost or balance.altered or balance.score_holes)
        and balance.doubled <= _WINDOW * kills
        and _percent(balance) <= 5.0
        and unsaved_s <= _UNSAVED_S + _HEARD_LATE_S
    )
    return Measured(text, kept=kept)


def _one_life(node: RunningNode, rig: BurstyRig, ledger: Ledger, *, life_s: float) -> _Kill:
    rig.keep_sounding()
    crashes = _start(node)
    threading.Event().wait(life_s)
    node.kill()
    at_utc_s = time.time()
    boot = json.loads((node.state_dir / "identity.json").read_text())["boot_epoch"]
    ledger.enter(read_outbox(node.state_dir, node.folder / "copy"))
    return _Kill(boot, at_utc_s, life_s, crashes)


def _start(node: RunningNode) -> list[int]:
    """Start the node until it listens, as a supervisor would; return the exit codes of starts that came to nothing."""

    def listens() -> bool:
        return node.log.count("capture open") > n_before

    codes: list[int] = []
    while len(codes) < _MAX_CRASHES:
        n_before = node.log.count("capture open")
        node.start()
        wait_for(lambda: listens() or not node.running, what="the node to listen", timeout_s=120.0)
        if node.running:
            return codes
        codes.append(node.wait(1.0))
    raise AssertionError(f"the node does not start, exit {codes}; it says: {node.log[-500:]}")


def _bring_home(node: RunningNode, subscriber: Subscriber) -> None:
    """Start the node once more beside a broker that stays, and wait until all is said."""
    n_before = len(subscriber.messages("/n1/health"))
    node.start()
    subscriber.wait(
        lambda all_: len(all_) > n_before and all_[-1].json["spool_depth"] == 0, suffix="/n1/health", timeout_s=120.0
    )
    code, _ = node.stop()
    assert code == 0, f"the last stop: exit {code}"
    subscriber.wait(lambda all_: all_[-1].text == "stopped", suffix="/n1/status", timeout_s=30.0)


def _longest_unsaved_s(deaths: list[_Kill], received: list[Received]) -> float:
    """Return how much sound before a kill has no score at the subscriber, at most."""
    ends = last_score_end_s(received)
    longest_s = 0.0
    for death in deaths:
        unsaved_s = [death.at_utc_s - end_s for (boot, _), end_s in ends.items() if boot == death.boot]
        longest_s = max(longest_s, *(unsaved_s or [death.life_s - _FIRST_SOUND_S]))
    return longest_s


def _percent(balance: Balance) -> float:
    return 100.0 * balance.doubled / max(balance.received, 1)


@contextmanager
def _flapping(broker: Broker) -> Iterator[None]:
    """Stop the broker with SIGTERM and start it again, over and over; it runs when this is left."""
    over = threading.Event()

    def flap() -> None:
        while not over.wait(_UP_S):
            broker.stop()
            over.wait(_DOWN_S)
            broker.start()

    thread = threading.Thread(target=flap, name="flapping")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(30.0)


PROMISES = (
    Promise(
        number="P1",
        title="What is committed reaches the broker",
        target="0 lost; at most 20 copies a kill, 5 % in all, with the same id and body",
        run=survive_kills,
        short={"kills": 2, "life_s": 3.0},
        long={"kills": 100, "life_s": 8.0},
        needs=needs,
    ),
)
