"""What the tests of the MQTT publisher share: messages to send, a publisher to send them, and the oracle.

The oracle is conservation: each event whose `publish` returned reaches the subscriber at least once, and all copies of
it carry one id.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from edgeasd.publish.message import Message
from edgeasd.publish.mqtt import MqttPublisher
from edgeasd.publish.outbox import Outbox, OutboxLimits
from edgeasd.publish.target import MqttOptions, MqttTarget
from edgeasd.publish.wire import Wire
from edgeasd.records import Event, EventType, Level, Opinion, Score
from tests.rig.broker import Received, wait_for

ROOT = Path(__file__).parents[2]
WIRE = Wire("w097", model="m@1", backend="onnx")
QUICK = MqttOptions(
    will_delay_s=0, retry_min_s=0.05, retry_max_s=0.3, ack_timeout_s=1.0, connect_timeout_s=1.0, keepalive_s=10
)


def utc_ns(frame: int) -> int:
    return 1_795_165_590_000_000_000 + frame * 62_500


def score(number: int) -> Message:
    record = Score(
        source="mic0",
        first_frame=8000 * number,
        n_frames=16_000,
        captured_ns=0,
        score=0.5,
        p_value=0.1,
        threshold=9.0,
        model=None,
        prompt=Opinion(0.5, 0.1),
        confirmed=None,
        level=Level(-30.0, -10.0, 0.0, 0.0),
        fault=None,
        warmup=False,
    )
    return WIRE.score(record, utc_ns=utc_ns, rate_hz=16_000, infer_ms=0.5)


def event(name: str, *, source: str = "mic0") -> Message:
    record = Event(EventType.START, name, source, 0, 16_000, 3.0, 0, 0.01, (), None)
    return WIRE.event(record, utc_ns=utc_ns, rate_hz=16_000, threshold=9.0)


def names(received: list[Received]) -> set[str]:
    return {each.json["event_id"] for each in received}


def has_names(n_names: int, received: list[Received]) -> bool:
    return len(names(received)) >= n_names


def has_seqs(n_seqs: int, received: list[Received]) -> bool:
    return len({each.json["seq"] for each in received}) >= n_seqs


def has_length(n_messages: int, received: list[Received]) -> bool:
    return len(received) >= n_messages


def assert_copies_share_their_id(received: list[Received]) -> None:
    ids = defaultdict(set)
    for each in received:
        ids[each.json["event_id"]].add(each.json["id"])
    assert all(len(found) == 1 for found in ids.values())


@contextmanager
def publishing(
    target: MqttTarget, state: Path, *, options: MqttOptions = QUICK, limits: OutboxLimits | None = None
) -> Iterator[MqttPublisher]:
    with Outbox(state, limits=limits) as outbox:
        publisher = MqttPublisher(target, wire=WIRE, outbox=outbox, options=options)
        try:
            yield publisher
        finally:
            assert publisher.close(5.0)


def wait_connected(publisher: MqttPublisher) -> None:
    wait_for(lambda: publisher.stats().connected, what="a connection", timeout_s=10.0)


def padded(name: str, n_bytes: int) -> Message:
    message = event(name)
    assert not isinstance(message.payload, str)
    return replace(message, payload={**message.payload, "pad": "x" * n_bytes})
