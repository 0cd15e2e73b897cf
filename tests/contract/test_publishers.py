"""What every publisher owes, asked of each: JSON lines into a real file, MQTT into a real mosquitto."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edgeasd.publish import Message, Publisher, Wire
from edgeasd.publish.jsonl import JsonLinesPublisher
from edgeasd.publish.mqtt import MqttPublisher
from edgeasd.publish.outbox import Outbox
from edgeasd.publish.target import MqttOptions
from edgeasd.records import Event, EventType, Level, Opinion, Score
from tests.rig.broker import MOSQUITTO, NO_MOSQUITTO, Broker, Subscriber, wait_for

WIRE = Wire("w097", model="m@1", backend="onnx")


@dataclass(frozen=True)
class Rig:
    publisher: Publisher
    arrived: Callable[[int], list[tuple[str, Any]]]
    """Waits for so many messages and returns (topic, payload) of all."""


def score(number: int, source: str = "mic0") -> Message:
    record = Score(
        source=source,
        first_frame=8000 * number,
        n_frames=16_000,
        captured_ns=0,
        score=0.5 + number,
        p_value=0.1,
        threshold=9.0,
        model=None,
        prompt=Opinion(0.5 + number, 0.1),
        confirmed=None,
        level=Level(-30.0, -10.0, 0.0, 0.0),
        fault=None,
        warmup=False,
    )
    return WIRE.score(record, utc_ns=lambda frame: frame * 62_500, rate_hz=16_000, infer_ms=0.5)


def event(number: int) -> Message:
    record = Event(EventType.START, f"event-{number}", "mic0", 0, 16_000, 3.0, 0, 0.01, (), None)
    return WIRE.event(record, utc_ns=lambda frame: frame * 62_500, rate_hz=16_000, threshold=9.0)


def read_lines(path: Path) -> list[tuple[str, Any]]:
    return [(line["topic"], line["payload"]) for line in map(json.loads, path.read_text().splitlines())]


def payload_of(body: bytes) -> Any:
    return json.loads(body) if body.startswith(b"{") else body.decode()


@pytest.fixture(params=["jsonl", "mqtt"])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    with ExitStack() as stack:
        if request.param == "jsonl":
            path = tmp_path / "messages"
            stream = stack.enter_context(path.open("w"))
            yield Rig(JsonLinesPublisher(stream), lambda n: read_lines(path))
            return
        if MOSQUITTO is None:
            pytest.skip(NO_MOSQUITTO)
        broker = stack.enter_context(Broker(tmp_path / "broker"))
        subscriber = stack.enter_context(Subscriber(broker.port, "edgeasd/w097/+/#"))
        outbox = stack.enter_context(Outbox(tmp_path / "state"))
        publisher = MqttPublisher(broker.target, wire=WIRE, outbox=outbox, options=MqttOptions())
        stack.callback(publisher.close, 5.0)
        wait_for(lambda: publisher.stats().connected, what="a connection", timeout_s=10.0)

        def arrived(n: int) -> list[tuple[str, Any]]:
            received = subscriber.wait(lambda all_: len(of_sources(all_)) >= n)
            return [(each.topic, payload_of(each.body)) for each in of_sources(received)]

        yield Rig(publisher, arrived)


def of_sources(received: list[Any]) -> list[Any]:
    return [each for each in received if each.topic != "edgeasd/w097/status"]


def test_everything_arrives_once_numbered_and_in_order(rig: Rig) -> None:
    for number in range(30):
        rig.publisher.publish(score(number))
        rig.publisher.publish(score(number, "mic1"))
    arrived = rig.arrived(60)
    assert len(arrived) == 60
    for source in ("mic0", "mic1"):
        mine = [payload for topic, payload in arrived if topic == f"edgeasd/w097/{source}/score"]
        assert [payload["seq"] for payload in mine] == list(range(1, 31))
        assert [payload["score"] for payload in mine] == [0.5 + number for number in range(30)]
    assert len({payload["id"] for _, payload in arrived}) == 60
    assert not any(payload["late"] for _, payload in arrived)


def test_ids_of_one_node_share_uuid_and_boot(rig: Rig) -> None:
    rig.publisher.publish(score(1))
    rig.publisher.publish(event(1))
    heads = {payload["id"].rsplit(":", 1)[0] for _, payload in rig.arrived(2)}
    assert len(heads) == 1
    assert len(heads.pop().rsplit(":", 1)[0]) == 36


def test_words_stay_words(rig: Rig) -> None:
    rig.publisher.publish(WIRE.alarm("mic0", active=True))
    assert rig.arrived(1) == [("edgeasd/w097/mic0/state", "ON")]


def test_number_that_is_not_finite_is_the_callers_error(rig: Rig) -> None:
    bad = score(1)
    assert not isinstance(bad.payload, str)
    with pytest.raises(AssertionError, match="not finite"):
        rig.publisher.publish(Message(bad.topic, {**bad.payload, "score": float("inf")}, bad.kind, 1, retain=False))
    rig.publisher.publish(score(2))
    assert rig.arrived(1)[0][1]["seq"] == 1


def test_close_is_final_and_may_be_repeated(rig: Rig) -> None:
    rig.publisher.publish(score(1))
    assert rig.publisher.close(5.0)
    assert rig.publisher.close(5.0)
    assert len(rig.arrived(1)) == 1
    with pytest.raises(AssertionError, match="publish after close"):
        rig.publisher.publish(score(2))


def test_stats_count_what_was_published(rig: Rig) -> None:
    before = rig.publisher.stats().published
    for number in range(5):
        rig.publisher.publish(event(number))
    rig.arrived(5)
    wait_for(lambda: rig.publisher.stats().published >= before + 5, what="the count", timeout_s=5.0)
    assert rig.publisher.stats().connected
    assert rig.publisher.stats().dropped == 0


READER_GONE = """
import sys
from tests.contract.test_publishers import score
from edgeasd.publish.jsonl import JsonLinesPublisher

publisher = JsonLinesPublisher(sys.stdout)
for number in range(2000):
    publisher.publish(score(number))
stats = publisher.stats()
publisher.close(1.0)
sys.stderr.write(f"{stats.connected} {stats.published + stats.dropped} {stats.dropped > 0}")
"""


def test_json_lines_survive_a_reader_that_goes_away() -> None:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen(
        [sys.executable, "-c", READER_GONE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as writer:
        assert writer.stdout is not None
        assert writer.stderr is not None
        assert json.loads(writer.stdout.readline())["payload"]["seq"] == 1
        writer.stdout.close()
        told = writer.stderr.read()
        assert writer.wait(20.0) == 0
    assert told == "False 2000 True"
