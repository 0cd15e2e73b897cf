"""Publishers that are killed or stopped, and what the broker and the outbox make of it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from edgeasd.errors import TemporaryError
from edgeasd.publish.outbox import Outbox
from edgeasd.publish.target import MqttTarget
from tests.rig.broker import MOSQUITTO, NO_MOSQUITTO, Broker, Subscriber, free_port
from tests.system.mqtt_rig import (
    QUICK,
    ROOT,
    event,
    has_length,
    names,
    publishing,
    score,
    wait_connected,
)

pytestmark = pytest.mark.skipif(MOSQUITTO is None, reason=NO_MOSQUITTO)

PUBLISHER = """
import sys, time
from pathlib import Path
from edgeasd.publish.mqtt import MqttPublisher
from edgeasd.publish.outbox import Outbox
from edgeasd.publish.target import MqttTarget
from tests.system.mqtt_rig import QUICK, WIRE

with Outbox(Path(sys.argv[2])) as outbox:
    MqttPublisher(MqttTarget("127.0.0.1", int(sys.argv[1])), wire=WIRE, outbox=outbox, options=QUICK)
    time.sleep(600.0)
"""


def test_kill_9_makes_the_broker_say_offline(tmp_path: Path) -> None:
    with Broker(tmp_path / "broker") as broker, Subscriber(broker.port, "edgeasd/w097/status") as subscriber:
        command = [sys.executable, "-c", PUBLISHER, str(broker.port), str(tmp_path / "state")]
        with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}) as publisher:
            try:
                subscriber.wait(lambda all_: all_ and all_[-1].text == "online", timeout_s=30.0)
            finally:
                publisher.kill()
        subscriber.wait(lambda all_: all_[-1].text == "offline", timeout_s=15.0)
        with Subscriber(broker.port, "edgeasd/w097/status", name="latecomer") as latecomer:
            (status,) = latecomer.wait(len)
            assert (status.text, status.retain) == ("offline", True)


def test_short_loss_says_nothing_within_the_will_delay(tmp_path: Path) -> None:
    options = replace(QUICK, will_delay_s=5)
    with Broker(tmp_path / "broker") as broker, Subscriber(broker.port, "edgeasd/w097/status") as subscriber:
        with publishing(broker.target, tmp_path / "state", options=options) as publisher:
            wait_connected(publisher)
            for turn in range(3):
                session = publisher._session
                assert session is not None
                session._connection.give_up("pulled by the test")
                subscriber.wait(partial(has_length, turn + 2))
        subscriber.wait(lambda all_: all_[-1].text == "stopped")
    assert [each.text for each in subscriber.messages()] == ["online"] * 4 + ["stopped"]


def test_clean_stop_sends_what_is_at_hand_and_says_stopped(tmp_path: Path) -> None:
    with Broker(tmp_path / "broker") as broker, Subscriber(broker.port) as subscriber:
        with publishing(broker.target, tmp_path / "state") as publisher:
            wait_connected(publisher)
            for number in range(300):
                publisher.publish(score(number))
            publisher.publish(event("last"))
            began_s = time.monotonic()
            assert publisher.close(5.0)
            assert time.monotonic() - began_s < 5.0
            assert publisher.stats().spool_rows == 0
        subscriber.wait(lambda all_: all_ and all_[-1].text == "stopped", suffix="/w097/status")
        assert len(subscriber.messages("/score")) == 300
        assert names(subscriber.messages("/event")) == {"last"}
        with Subscriber(broker.port, "edgeasd/w097/status", name="latecomer") as latecomer:
            assert latecomer.wait(len)[0].text == "stopped"


def test_clean_stop_without_a_broker_keeps_everything_for_the_next_start(tmp_path: Path) -> None:
    target = MqttTarget("127.0.0.1", free_port())
    with publishing(target, tmp_path / "state") as publisher:
        for number in range(30):
            publisher.publish(score(number))
        publisher.publish(event("kept"))
        began_s = time.monotonic()
        assert publisher.close(5.0)
        assert time.monotonic() - began_s < 1.0
    with Outbox(tmp_path / "state") as outbox:
        assert (outbox.depth("score"), outbox.depth("event")) == (30, 1)


def test_second_publisher_on_the_same_state_directory_is_refused(tmp_path: Path) -> None:
    with publishing(MqttTarget("127.0.0.1", free_port()), tmp_path / "state"), pytest.raises(TemporaryError):
        Outbox(tmp_path / "state")
