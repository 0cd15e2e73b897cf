"""The MQTT publisher against brokers that do what no mosquitto does: scripted, byte by byte."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from edgeasd.publish.mqtt import MqttPublisher
from edgeasd.publish.outbox import Outbox
from edgeasd.publish.target import MqttTarget
from edgeasd.records import Level
from tests.rig.broker import wait_for
from tests.rig.scripted import ACCEPT_3, ACCEPT_5, REFUSE_VERSION, ScriptedBroker, puback
from tests.system.mqtt_rig import QUICK, ROOT, WIRE, event, publishing, score, utc_ns, wait_connected


@pytest.mark.parametrize("refusal", [REFUSE_VERSION, None], ids=["says so", "closes without a word"])
def test_broker_without_mqtt_5_is_spoken_to_in_3_1_1_with_a_warning(
    tmp_path: Path, refusal: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        ScriptedBroker(
            connack=lambda level: ACCEPT_3 if level == 4 else refusal, puback=lambda mid, _: puback(mid, level=4)
        ) as broker,
        publishing(broker.target, tmp_path / "state") as publisher,
    ):
        publisher.publish(event("one"))
        wait_for(lambda: any(b'"one"' in each.body for each in broker.published), what="the delivery", timeout_s=10.0)
        wait_for(lambda: publisher.stats().spool_rows == 0, what="an empty outbox", timeout_s=10.0)
        assert publisher.stats().protocol == "3.1.1"
    assert "refusals will be silent" in caplog.text


def test_broker_that_never_acknowledges_is_given_up_again_and_again_and_nothing_is_lost(tmp_path: Path) -> None:
    with (
        ScriptedBroker(connack=lambda _: ACCEPT_5, puback=lambda mid, _: b"") as broker,
        publishing(broker.target, tmp_path / "state", options=replace(QUICK, ack_timeout_s=0.2)) as publisher,
    ):
        publisher.publish(event("one"))
        wait_for(lambda: publisher.stats().stalls >= 3, what="three stalls", timeout_s=10.0)
        assert publisher.stats().spool_rows == 1
        assert publisher.stats().quarantined == 0


def test_end_beside_a_broker_that_never_acknowledges_keeps_everything(tmp_path: Path) -> None:
    with (
        ScriptedBroker(connack=lambda _: ACCEPT_5, puback=lambda *_: b"") as broker,
        Outbox(tmp_path / "state") as outbox,
    ):
        publisher = MqttPublisher(broker.target, wire=WIRE, outbox=outbox, options=replace(QUICK, ack_timeout_s=60.0))
        wait_connected(publisher)
        for number in range(5):
            publisher.publish(score(number))
        publisher.publish(event("one"))
        wait_for(lambda: len(broker.published) == 7, what="all to be said", timeout_s=10.0)
        assert publisher.close(1.0)
        assert (outbox.depth("score"), outbox.depth("event")) == (5, 1)


def test_refusals_that_do_not_pass_end_in_quarantine(tmp_path: Path) -> None:
    def answer(mid: int, body: bytes) -> bytes:
        return puback(mid, code=0x83 if b"event_id" in body else 0)

    with ScriptedBroker(connack=lambda _: ACCEPT_5, puback=answer) as broker:
        with publishing(broker.target, tmp_path / "state") as publisher:
            publisher.publish(event("one"))
            wait_for(lambda: publisher.stats().quarantined == 1, what="the quarantine", timeout_s=10.0)
        assert broker.topics().count("edgeasd/w097/mic0/event") == 3


@pytest.mark.parametrize("garbage", [b"\x20\x03\x00\x77\x00", b"\x20\xff\xff\xff\xff\x7f", b"HTTP/1.1 400\r\n\r\n"])
def test_garbled_answer_is_survived(tmp_path: Path, garbage: bytes) -> None:
    answers = iter([garbage, garbage])
    with (
        ScriptedBroker(connack=lambda _: next(answers, ACCEPT_5), puback=lambda mid, _: puback(mid)) as broker,
        publishing(broker.target, tmp_path / "state") as publisher,
    ):
        publisher.publish(event("one"))
        wait_for(lambda: publisher.stats().spool_rows == 0, what="the delivery", timeout_s=15.0)


def accept_with(*properties: bytes) -> bytes:
    """Return a CONNACK that announces limits."""
    announced = b"".join(properties)
    return struct.pack("!BBBBB", 0x20, 3 + len(announced), 0, 0, len(announced)) + announced


RECEIVE_MAXIMUM, MAXIMUM_PACKET_SIZE = b"\x21", b"\x27"


def test_no_more_is_in_flight_than_the_broker_takes(tmp_path: Path) -> None:
    early = []

    def answer(mid: int, body: bytes) -> bytes:
        early.append(broker.more_is_there())
        return puback(mid)

    accept = accept_with(RECEIVE_MAXIMUM + struct.pack("!H", 1))
    with (
        ScriptedBroker(connack=lambda _: accept, puback=answer) as broker,
        publishing(broker.target, tmp_path / "state") as publisher,
    ):
        for number in range(5):
            publisher.publish(event(f"{number}"))
        wait_for(lambda: publisher.stats().spool_rows == 0, what="the delivery", timeout_s=10.0)
    assert len(early) >= 6
    assert not any(early)


def test_broker_that_takes_a_hundred_bytes_gets_nothing_larger_and_keeps_the_connection(tmp_path: Path) -> None:
    accept = accept_with(MAXIMUM_PACKET_SIZE + struct.pack("!I", 100))
    with (
        ScriptedBroker(connack=lambda _: accept, puback=lambda mid, _: puback(mid)) as broker,
        publishing(broker.target, tmp_path / "state") as publisher,
    ):
        wait_connected(publisher)
        publisher.publish(WIRE.level("mic0", Level(-120.0, -120.0, 0.0, 0.0), ts_ns=utc_ns(0)))
        publisher.publish(event("large"))
        publisher.publish(WIRE.alarm("mic0", active=True))
        wait_for(lambda: "edgeasd/w097/mic0/state" in broker.topics(), what="the small message", timeout_s=10.0)
        stats = publisher.stats()
        assert (stats.quarantined, stats.discarded, stats.spool_rows, stats.reconnects) == (1, 1, 0, 0)


UNASKED = b"\x30\x0a\x00\x03a/b\x00hello"[:-1]
UNKNOWN_ALIAS = b"\x30\x07\x00\x00\x03\x23\x00\x01x"
TEN_MEGABYTES = b"\x30\x80\xad\xe2\x04\x00\x03a/b\x00" + bytes(70_000)


@pytest.mark.parametrize(
    "beside",
    [
        lambda mid: puback(mid + 1000),
        puback,
        lambda _: UNASKED,
        lambda _: UNKNOWN_ALIAS,
        lambda _: TEN_MEGABYTES,
        lambda _: b"\xe0\x02\x8e\x00",
        lambda _: b"\xf0\x00",
    ],
    ids=["wrong id", "twice", "unasked message", "unknown alias", "ten megabytes", "taken over", "reserved packet"],
)
def test_strange_packets_beside_an_acknowledgement_cost_at_most_the_connection(
    tmp_path: Path, beside: Callable[[int], bytes]
) -> None:
    spoilt: list[int] = []

    def answer(mid: int, body: bytes) -> bytes:
        if b"event_id" in body and len(spoilt) < 2:
            spoilt.append(mid)
            return beside(mid) + puback(mid)
        return puback(mid)

    with (
        ScriptedBroker(connack=lambda _: ACCEPT_5, puback=answer) as broker,
        publishing(broker.target, tmp_path / "state") as publisher,
    ):
        for number in range(3):
            publisher.publish(event(f"{number}"))
        wait_for(lambda: publisher.stats().spool_rows == 0, what="the delivery", timeout_s=15.0)
        stats = publisher.stats()
        assert (stats.quarantined, stats.dropped) == (0, 0)
    said = [each.json["event_id"] for each in broker.published if each.topic.endswith("/event")]
    assert set(said) == {"0", "1", "2"}
    assert len(said) <= 3 + 2 * 3


def test_acknowledgements_of_other_messages_only_are_no_acknowledgements(tmp_path: Path) -> None:
    with (
        ScriptedBroker(connack=lambda _: ACCEPT_5, puback=lambda mid, _: puback(mid + 1000)) as broker,
        publishing(broker.target, tmp_path / "state", options=replace(QUICK, ack_timeout_s=0.2)) as publisher,
    ):
        publisher.publish(event("one"))
        wait_for(lambda: publisher.stats().stalls >= 1, what="a stall", timeout_s=10.0)
        assert publisher.stats().spool_rows == 1


def test_silence_is_noticed_by_a_publisher_with_nothing_to_say(tmp_path: Path) -> None:
    options = replace(QUICK, keepalive_s=1, ack_timeout_s=60.0)
    with ScriptedBroker(connack=lambda _: ACCEPT_5, puback=lambda mid, _: puback(mid)) as broker:
        broker.pongs = False
        with publishing(broker.target, tmp_path / "state", options=options):
            wait_for(lambda: len(broker.levels) > 1, what="another connection", timeout_s=15.0)


def test_another_client_of_the_same_name_is_complained_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (
        ScriptedBroker(connack=lambda _: ACCEPT_5, puback=lambda *_: b"\xe0\x02\x8e\x00") as broker,
        publishing(broker.target, tmp_path / "state"),
    ):
        wait_for(lambda: "another client uses the id" in caplog.text, what="the complaint", timeout_s=10.0)


def test_tls_handshake_of_a_byte_now_and_then_is_given_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def dribble() -> None:
            with suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    connection.sendall(b"\x16\x03\x03\x40\x00")  # a record of 16 kB, to come
                    while True:
                        connection.sendall(b"\x02")
                        time.sleep(0.05)

        thread = threading.Thread(target=dribble)
        thread.start()
        target = MqttTarget("127.0.0.1", listener.getsockname()[1], tls=True)
        options = replace(QUICK, connect_timeout_s=0.5, retry_min_s=60.0, retry_max_s=60.0)
        with publishing(target, tmp_path / "state", options=options):
            wait_for(lambda: "handshake takes too long" in caplog.text, what="the complaint", timeout_s=10.0)
        thread.join(10.0)


ENDLESS_LOOKUP = """
import socket, sys, time
from pathlib import Path
from edgeasd.publish.mqtt import MqttPublisher
from edgeasd.publish.outbox import Outbox
from edgeasd.publish.target import MqttTarget
from tests.system.mqtt_rig import WIRE, event, score

socket.getaddrinfo = lambda *_, **__: time.sleep(600.0)
with Outbox(Path(sys.argv[1])) as outbox:
    publisher = MqttPublisher(MqttTarget("nowhere.test"), wire=WIRE, outbox=outbox)
    publisher.publish(event("kept"))
    for number in range(100):
        publisher.publish(score(number))
    print(outbox.depth("score"), publisher.close(0.2))
"""


def test_name_server_that_never_answers_neither_costs_a_message_nor_holds_up_the_end(tmp_path: Path) -> None:
    """Resolving cannot be interrupted, so that the publishing thread is stuck in it, and left behind."""
    command = [sys.executable, "-c", ENDLESS_LOOKUP, str(tmp_path / "state")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60.0)
    assert done.stdout.split() == ["64", "False"]
    with Outbox(tmp_path / "state") as outbox:
        assert (outbox.depth("event"), outbox.depth("score")) == (1, 100)
