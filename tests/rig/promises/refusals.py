"""P5: nothing is refused in silence, and nothing that is refused holds up the rest."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from edgeasd.publish.mqtt import MqttPublisher
from edgeasd.publish.outbox import Outbox
from edgeasd.publish.target import MqttOptions
from tests.rig.broker import Broker, BrokerSetup, Received, Subscriber, wait_for
from tests.rig.bursts import BurstyRig, needs
from tests.rig.node import RunningNode
from tests.rig.promise import Measured, Promise
from tests.rig.scripted import ACCEPT_5, ScriptedBroker, puback
from tests.system.mqtt_rig import WIRE, event, names, padded

_MAY = ("status", "info", "health", "gap", "+/score", "+/level", "+/state", "+/status", "+/fault/#", "+/enabled/state")
_ACL = BrokerSetup(
    acl="".join(f"topic readwrite edgeasd/n1/{topic}\n" for topic in (*_MAY, "mic0/#")) + "topic read #\n"
)
"""Of mic1 neither events nor the threshold, which is retained."""
_SMALL = BrokerSetup(lines=("max_packet_size 600",))
"""Scores and health of one source are smaller, events are larger."""
_QUOTA_REFUSALS = 4
_ENOUGH = 3
_SETTLED_S = 2.5
"""From the end of the sound to a health message that has counted all of it."""


@dataclass(frozen=True, slots=True)
class _Refused:
    expected: int
    quarantined: int
    counted: int
    """By the node's own counter."""
    rest_whole: bool
    """Whether all that was not refused came."""

    @property
    def kept(self) -> bool:
        return 0 < self.expected == self.quarantined == self.counted and self.rest_whole

    def __str__(self) -> str:
        rest = "complete" if self.rest_whole else "NOT complete"
        return f"{self.quarantined} of {self.expected} in quarantine, {self.counted} counted, the rest {rest}"


def refuse(scratch: Path, *, seconds: float) -> Measured:
    """Let brokers refuse for every reason they have, and look for what they refused."""
    with BurstyRig(scratch / "pulse", n_microphones=3) as rig, ThreadPoolExecutor() as pool:
        rig.keep_sounding()
        acl = pool.submit(_refuse_events, rig, scratch / "acl", _ACL, ("mic_0", "mic_1"), seconds, reason="code 0x87")
        size = pool.submit(_refuse_events, rig, scratch / "size", _SMALL, ("mic_2",), seconds, reason="packets of 600")
        behind_s = _poison(scratch / "poison")
        quota_set_aside, quota_left = _quota(scratch / "quota")
        denied, oversize = acl.result(), size.result()
    text = (
        f"denied by an ACL: {denied}; larger than the broker's packets: {oversize}; behind a message that breaks the "
        f"connection (MQTT 3.1.1): {behind_s:.1f} s; quota (0x97, {_QUOTA_REFUSALS} times): {quota_set_aside} set "
        f"aside, {quota_left} undelivered"
    )
    kept = denied.kept and oversize.kept and behind_s <= 10.0 and quota_set_aside == quota_left == 0
    return Measured(text, kept=kept)


def _refuse_events(
    rig: BurstyRig, scratch: Path, setup: BrokerSetup, microphones: Sequence[str], seconds: float, *, reason: str
) -> _Refused:
    """Run a node whose last microphone may not publish its events; they are counted from 1 without holes."""
    source = microphones[-1].replace("_", "")
    events, threshold = f"edgeasd/n1/{source}/event", f"edgeasd/n1/{source}/threshold/state"
    with Broker(scratch / "broker", setup) as broker, Subscriber(broker.port) as subscriber:
        settings = rig.settings(scratch, port=broker.port, microphones=microphones)
        with RunningNode(scratch / "node", settings, environment=rig.environment) as node:
            subscriber.wait(lambda all_: all_ and _n_quarantined(all_) >= _ENOUGH, suffix="/health", timeout_s=60.0)
            threading.Event().wait(seconds)
            rig.hush()
            threading.Event().wait(_SETTLED_S)
            counted = _n_quarantined(subscriber.messages("/health"))
            code, _ = node.stop()
            assert code == 0, f"exit {code}: {node.log[-2000:]}"
        subscriber.wait(lambda all_: all_[-1].text == "stopped", suffix="/n1/status")
        received = subscriber.messages()
    rows = _quarantine(scratch / "node/state")
    assert all(reason in why for why, _ in rows), f"not for {reason!r}: {sorted({why for why, _ in rows})}"
    seqs = sorted(row.json["seq"] for _, row in rows if row.topic == events)
    refused_states = int(setup is _ACL)
    assert sum(row.topic == threshold for _, row in rows) == refused_states, "a refused state is forgotten"
    whole = seqs == list(range(1, len(seqs) + 1)) and not any(each.topic == events for each in received)
    return _Refused(
        expected=len(seqs) + refused_states if whole else -1,
        quarantined=len(rows),
        counted=counted,
        rest_whole=_whole(each for each in received if each.topic != events),
    )


def _n_quarantined(health: Sequence[Received]) -> int:
    count = health[-1].json["mqtt"]["quarantined"]
    assert isinstance(count, int)
    return count


def _quarantine(state_dir: Path) -> list[tuple[str, Received]]:
    """Return what a stopped node has set aside, with the reasons; it has nothing left to send."""
    database = sqlite3.connect(f"file:{state_dir / 'outbox.db'}?mode=ro", uri=True)
    try:
        rows = database.execute("SELECT reason, topic, body FROM quarantine ORDER BY row").fetchall()
        assert database.execute("SELECT (SELECT COUNT(*) FROM event) + (SELECT COUNT(*) FROM score)").fetchone() == (0,)
    finally:
        database.close()
    return [(reason, Received(topic, body, retain=False, at_ns=0)) for reason, topic, body in rows]


def _whole(received: Iterable[Received]) -> bool:
    """Return whether scores and events came, and their numbers have no hole."""
    seqs: defaultdict[str, set[int]] = defaultdict(set)
    for each in received:
        if each.topic.endswith(("/score", "/event")):
            seqs[each.topic].add(each.json["seq"])
    return bool(seqs) and all(found == set(range(1, max(found) + 1)) for found in seqs.values())


def _poison(scratch: Path) -> float:
    """Send a message that breaks the connection each time; return the seconds until what stands behind it has come.

    MQTT 3.1.1 announces no packet size, and its broker closes the connection without a word.
    """
    with (
        Broker(scratch / "broker", BrokerSetup(lines=("max_packet_size 1500",))) as broker,
        Subscriber(broker.port) as subscriber,
        Outbox(scratch / "state") as outbox,
    ):
        publisher = MqttPublisher(broker.target, wire=WIRE, outbox=outbox, options=MqttOptions(protocol="3.1.1"))
        wait_for(lambda: publisher.stats().connected, what="a connection", timeout_s=10.0)
        publisher.publish(event("before"))
        publisher.publish(padded("poison", 3000))
        began_s = time.monotonic()
        for number in range(20):
            publisher.publish(event(f"behind {number}"))
        wanted = {"before", *(f"behind {number}" for number in range(20))}
        last = subscriber.wait(lambda all_: names(all_) >= wanted, suffix="/event", timeout_s=60.0)[-1]
        wait_for(lambda: publisher.stats().spool_rows == 0, what="an empty outbox", timeout_s=20.0)
        assert publisher.stats().quarantined == 1, f"{publisher.stats().quarantined} quarantined, not the poison alone"
        publisher.close(4.0)
    return last.at_ns / 1e9 - began_s


def _quota(scratch: Path) -> tuple[int, int]:
    """Refuse events for lack of quota some times; return how many were set aside, and how many stay undelivered."""
    codes = [0x97] * _QUOTA_REFUSALS

    def answer(mid: int, body: bytes) -> bytes:
        return puback(mid, code=codes.pop() if codes and b"event_id" in body else 0)

    options = MqttOptions(retry_min_s=0.1)
    with ScriptedBroker(connack=lambda _: ACCEPT_5, puback=answer) as broker, Outbox(scratch / "state") as outbox:
        publisher = MqttPublisher(broker.target, wire=WIRE, outbox=outbox, options=options)
        for number in range(5):
            publisher.publish(event(f"{number}"))
        wait_for(lambda: not codes and publisher.stats().spool_rows == 0, what="the delivery", timeout_s=60.0)
        publisher.close(4.0)
        return publisher.stats().quarantined, outbox.depth()


PROMISES = (
    Promise(
        number="P5",
        title="No refusal is silent",
        target="100 % of the refused in quarantine and counted; what stands behind a poison message comes in <= 10 s",
        run=refuse,
        short={"seconds": 0},
        long={"seconds": 60.0},
        needs=needs,
    ),
)
