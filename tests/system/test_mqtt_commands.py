"""Commands over a real mosquitto: obeyed by a node that runs, and of no harm when they are hostile."""

from __future__ import annotations

import itertools
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
import paho.mqtt.client as paho
import psutil
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from deploy.demo.soundscape import RATE_HZ
from edgeasd.publish.commands import CommandBox
from edgeasd.publish.message import Command, SetEnabled, SetThreshold
from edgeasd.publish.mqtt import MqttPublisher
from edgeasd.publish.outbox import Outbox
from edgeasd.publish.target import MqttVersion
from tests.rig.broker import MOSQUITTO, NO_MOSQUITTO, Broker, BrokerSetup, Received, Subscriber, wait_for
from tests.rig.node import NAME, RunningNode
from tests.rig.pulse import PulseRig, available
from tests.system.mqtt_rig import QUICK, ROOT, WIRE, score, wait_connected

pytestmark = pytest.mark.skipif(MOSQUITTO is None, reason=NO_MOSQUITTO)


class Sender:
    """Publishes at QoS 1, as a person or a stranger would."""

    def __init__(self, port: int, *, user: str | None = None) -> None:
        self._client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        self._client.username_pw_set(user, user)
        self._client.max_queued_messages_set(0)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()

    def send(self, topic: str, body: str | bytes, *, retain: bool = False) -> paho.MQTTMessageInfo:
        return self._client.publish(topic, body, qos=1, retain=retain)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@contextmanager
def listening(
    broker: Broker, state: Path, *, protocol: MqttVersion = "5", users: tuple[str, str] | None = None
) -> Iterator[tuple[MqttPublisher, CommandBox]]:
    """Run a publisher that takes commands for mic0, connected and subscribed; `users` are its own and a sender's."""
    node, person = users or (None, None)
    box = CommandBox(WIRE, sources=["mic0"])
    with Outbox(state) as outbox:
        options = replace(QUICK, protocol=protocol)
        target = replace(broker.target, user=node, password=node)
        publisher = MqttPublisher(target, wire=WIRE, outbox=outbox, options=options, commands=box)
        try:
            wait_connected(publisher)
            with Sender(broker.port, user=person) as sender:
                reach(box, sender)
            yield publisher, box
        finally:
            assert publisher.close(5.0)


_marks = itertools.count(2_000)


def reach(box: CommandBox, sender: Sender) -> None:
    """Send commands, each another, until the last one arrives: all sent before is through then, and taken out."""
    for _ in range(60):
        mark = next(_marks) / 1000
        sender.send("edgeasd/w097/mic0/threshold/set", f"{mark}")
        if arrives(box, SetThreshold("mic0", mark), timeout_s=0.25):
            return
    raise AssertionError("no command arrives")


def arrives(box: CommandBox, command: Command, *, timeout_s: float) -> bool:
    """Empty the box until a command comes out of it; return whether it did in time."""
    until_s = time.monotonic() + timeout_s
    pause = threading.Event()
    while command not in box.take():
        if time.monotonic() >= until_s:
            return False
        pause.wait(0.01)
    return True


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_commands_come_in_again_after_each_reconnect(tmp_path: Path, protocol: MqttVersion) -> None:
    with Broker(tmp_path / "broker") as broker, listening(broker, tmp_path / "state", protocol=protocol) as (_, box):
        broker.kill()
        broker.start()
        with Sender(broker.port) as sender:
            reach(box, sender)
            sender.send("edgeasd/w097/mic0/enabled/set", "OFF")
            assert arrives(box, SetEnabled("mic0", enabled=False), timeout_s=10.0)
        assert box.refused == 0


def test_our_access_list_lets_the_operator_steer_and_nobody_else(tmp_path: Path) -> None:
    acl = (ROOT / "deploy/mosquitto/edgeasd.acl").read_text()
    users = {name: name for name in ("w097", "operator", "reader", "w098")}
    with (
        Broker(tmp_path / "broker", BrokerSetup(users=users, acl=acl)) as broker,
        listening(broker, tmp_path / "state", users=("w097", "operator")) as (_, box),
        Sender(broker.port, user="reader") as reader,
        Sender(broker.port, user="w098") as neighbour,
        Sender(broker.port, user="operator") as operator,
    ):
        for sender in (reader, neighbour):
            sender.send("edgeasd/w097/mic0/enabled/set", "OFF").wait_for_publish(5.0)
        operator.send("edgeasd/w097/mic0/enabled/set", "ON")
        wait_for(lambda: box.waiting, what="the operator's command", timeout_s=10.0)
        assert box.take() == [SetEnabled("mic0", enabled=True)]
        assert box.refused == 0


HOSTILE: list[tuple[str, str | bytes]] = [
    ("mic0/threshold/set", "NaN"),
    ("mic0/threshold/set", "1e1000"),
    ("mic0/threshold/set", ""),
    ("mic0/threshold/set", b"\xff\xfe\x00"),
    ("mic0/threshold/set", "0"),
    ("mic0/enabled/set", "on; rm -rf /"),
    ("mic0/enabled/set", "x" * 1025),
    ("mic0/feedback/set", "[" * 1000),
    ("mic0/feedback/set", '{"a":' * 200),
    ("mic0/feedback/set", '{"verdict":"real","event_id":"../../../etc/passwd"}'),
    ("mic0/feedback/set", '{"verdict":"real","note":NaN}'),
    ("mic9/threshold/set", "4"),
    ("../threshold/set", "4"),
    ("mic0\u2028/enabled/set", "OFF"),
]


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_hostile_commands_are_refused_counted_and_end_nothing(
    tmp_path: Path, protocol: MqttVersion, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        Broker(tmp_path / "broker") as broker,
        listening(broker, tmp_path / "state", protocol=protocol) as (publisher, box),
        Sender(broker.port) as sender,
    ):
        for topic, body in HOSTILE:
            sender.send(f"edgeasd/w097/{topic}", body)
        sender.send("edgeasd/w097/mic0/model/set", "http://evil.example/model")  # no such verb: not even subscribed
        reach(box, sender)
        assert publisher.stats().commands_refused == len(HOSTILE)
        assert publisher.stats().reconnects == 0
    assert "rm -rf" not in caplog.text
    assert "etc/passwd" not in caplog.text


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_retained_command_is_not_obeyed_again_on_connect(
    tmp_path: Path, protocol: MqttVersion, caplog: pytest.LogCaptureFixture
) -> None:
    with Broker(tmp_path / "broker") as broker, Sender(broker.port) as sender:
        sender.send("edgeasd/w097/mic0/enabled/set", "OFF", retain=True).wait_for_publish(5.0)
        with listening(broker, tmp_path / "state", protocol=protocol) as (publisher, box):
            wait_for(lambda: box.refused == 1, what="the retained command", timeout_s=10.0)
            assert box.taken == publisher.stats().commands >= 1
    assert sum("retained" in record.message for record in caplog.records) == 1


def test_a_command_of_ten_megabytes_is_never_read(tmp_path: Path) -> None:
    huge = b"x" * 10_000_000
    with (
        Broker(tmp_path / "broker") as broker,
        listening(broker, tmp_path / "state") as (publisher, box),
        Sender(broker.port) as sender,
    ):
        sender.send("edgeasd/w097/mic0/enabled/set", huge).wait_for_publish(20.0)
        reach(box, sender)
        stats = publisher.stats()
        assert (stats.reconnects, stats.commands_refused) == (0, 0)  # MQTT 5: the broker keeps it to itself


def test_with_mqtt_3_a_huge_command_costs_one_connection_and_the_subscription_for_a_while(tmp_path: Path) -> None:
    with (
        Broker(tmp_path / "broker") as broker,
        listening(broker, tmp_path / "state", protocol="3.1.1") as (publisher, box),
        Sender(broker.port) as sender,
        Subscriber(broker.port, "edgeasd/w097/mic0/score") as subscriber,
    ):
        huge = sender.send("edgeasd/w097/mic0/enabled/set", b"x" * 10_000_000, retain=True)
        huge.wait_for_publish(20.0)
        wait_for(lambda: publisher.stats().reconnects == 1, what="the new connection", timeout_s=20.0)
        assert not box.open
        for number in range(20):
            publisher.publish(score(number))
        subscriber.wait(lambda all_: len(all_) == 20)
        assert publisher.stats().reconnects == 1
        assert publisher.stats().commands_refused == 1


def test_of_a_flood_of_commands_the_last_ones_count(tmp_path: Path) -> None:
    n_commands = 1000
    with (
        Broker(tmp_path / "broker") as broker,
        listening(broker, tmp_path / "state") as (publisher, box),
        Sender(broker.port) as sender,
    ):
        before = box.refused
        for number in range(n_commands):
            sender.send("edgeasd/w097/mic0/threshold/set", f"{1 + number / 100}")
        wait_for(lambda: box.refused - before == n_commands - 32, what="the whole flood", timeout_s=30.0)
        assert box.take() == [SetThreshold("mic0", 1 + number / 100) for number in range(n_commands - 32, n_commands)]
        assert publisher.stats().reconnects == 0


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[PulseRig]:
    """A microphone that hears noise."""
    if (why_not := available()) is not None:
        pytest.skip(why_not)
    sound = (0.05 * np.random.default_rng(3).standard_normal(60 * RATE_HZ)).astype(np.float32)
    (tmp_path / "pulse").mkdir()
    with PulseRig(tmp_path / "pulse", "mic_a", rate_hz=RATE_HZ) as built:
        built["mic_a"].play(sound, RATE_HZ)
        yield built


def test_a_node_judges_on_under_a_flood_and_keeps_what_it_was_told(
    rig: PulseRig, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    mine, rng = f"edgeasd/{NAME}/mic0", random.Random(5)
    with (
        Broker(tmp_path / "broker", BrokerSetup(lines=("max_queued_messages 0",))) as broker,
        Subscriber(broker.port, f"edgeasd/{NAME}/#") as heard,
        Sender(broker.port) as sender,
    ):
        settings = {
            "sources": [{"device": "mic_a"}],
            "mqtt": {"url": broker.url, "commands": True, "protocol": "3.1.1"},
            "health_interval_s": 1,
        }
        with RunningNode(tmp_path / "node", settings) as node:
            heard.wait(lambda all_: len(all_) >= 2, suffix="/score", timeout_s=30.0)
            rss_before = psutil.Process(node.pid).memory_info().rss
            for _ in range(10_000):
                sender.send(f"{mine}/threshold/set", f"{rng.uniform(1.0, 20.0):.3f}")
            sender.send(f"{mine}/threshold/set", "4.25").wait_for_publish(60.0)
            heard.wait(lambda all_: all_[-1].json["threshold"] == 4.25, suffix="/score", timeout_s=30.0)
            sender.send(f"{mine}/feedback/set", "false_alarm")
            sender.send(f"{mine}/enabled/set", "OFF")
            heard.wait(lambda all_: all_[-1].text == "OFF", suffix="/enabled/state", timeout_s=10.0)
            sender.send(f"{mine}/threshold/set", b"x" * 10_000_000).wait_for_publish(30.0)
            health = heard.wait(has_reconnected, suffix="/health", timeout_s=30.0)[-1].json
            grown_mb = (psutil.Process(node.pid).memory_info().rss - rss_before) / 1e6
            node.kill()
            judged = [each.json for each in heard.messages("/score")]

            node.start()
            heard.wait(disabled_for_a_second, suffix="/health", timeout_s=30.0)
            assert len(heard.messages("/score")) == len(judged)
            assert heard.messages("mic0/status")[-1].text == "disabled"
            sender.send(f"{mine}/enabled/set", "ON")
            later = heard.wait(lambda all_: len(all_) > len(judged), suffix="/score", timeout_s=10.0)[-1].json
            assert node.stop()[0] == 0
        heard.wait(lambda all_: all_[-1].text == "stopped", suffix=f"{NAME}/status", timeout_s=10.0)
        assert heard.messages("/threshold/state")[-1].text == "4.25"
        assert heard.messages("/info")[-1].json["overrides"] == {"mic0": {"threshold": 4.25, "enabled": True}}
        account = heard.messages("/health")[-1].json["sources"]["mic0"]
    record_property("grown_mb", round(grown_mb, 2))
    record_property("refused", health["mqtt"]["commands_refused"])
    assert [one["seq"] for one in judged] == list(range(1, len(judged) + 1))
    assert health["sources"]["mic0"]["dropped_s"].keys().isdisjoint({"late", "overwritten"})
    assert health["mqtt"]["commands"] + health["mqtt"]["commands_refused"] >= 10_000
    assert grown_mb < 5.0
    assert (later["threshold"], later["valid"]) == (4.25, True)
    assert account["unexplained_s"] == 0.0
    assert account["dropped_s"]["disabled"] >= 1.0
    (line,) = (tmp_path / "node/state/feedback.jsonl").read_text().splitlines()
    assert json.loads(line).items() >= {"src": "mic0", "verdict": "false_alarm", "known": False}.items()


def has_reconnected(told: list[Received]) -> bool:
    return bool(told) and told[-1].json["mqtt"]["reconnects"] == 1


def disabled_for_a_second(told: list[Received]) -> bool:
    if not told or told[-1].json["mqtt"]["reconnects"]:
        return False
    return bool(told[-1].json["sources"]["mic0"]["dropped_s"].get("disabled", 0.0) >= 1.0)
