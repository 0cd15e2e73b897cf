"""Publishers that are killed or stopped, and what the broker and the outbox make of it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Self

import pytest

from edgeasd.errors import TemporaryError
from edgeasd.publish.outbox import Outbox
from edgeasd.publish.target import MqttTarget
from tests.rig.broker import MOSQUITTO, NO_MOSQUITTO, Broker, BrokerSetup, Received, Subscriber, free_port, wait_for
from tests.system.mqtt_rig import (
    QUICK,
    ROOT,
    assert_copies_share_their_id,
    event,
    has_length,
    names,
    publishing,
    score,
    wait_connected,
)

pytestmark = pytest.mark.skipif(MOSQUITTO is None, reason=NO_MOSQUITTO)

N_KILLS = 8


PUBLISHER = """
import itertools, sys, time
from pathlib import Path
from edgeasd.publish.mqtt import MqttPublisher
from edgeasd.publish.outbox import Outbox
from edgeasd.publish.target import MqttTarget
from tests.system.mqtt_rig import QUICK, WIRE, event, score

outbox = Outbox(Path(sys.argv[2]))
publisher = MqttPublisher(MqttTarget("127.0.0.1", int(sys.argv[1])), wire=WIRE, outbox=outbox, options=QUICK)
for number in itertools.count(1):
    name = f"{outbox.identity.boot_epoch}/{number}"
    publisher.publish(event(name))
    print("event", name, flush=True)
    publisher.publish(score(number))
    print("score", name, flush=True)
    time.sleep(0.005)
"""


class Victim:
    """A publishing process that says what it was told is accepted."""

    def __init__(self, port: int, state: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", PUBLISHER, str(port), str(state)], stdout=subprocess.PIPE, text=True, env=environment
        )
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read, name="victim")
        self._reader.start()

    def wait_lines(self, n_lines: int) -> None:
        wait_for(lambda: len(self._lines) >= n_lines, what=f"{n_lines} lines of the victim", timeout_s=20.0)

    def kill(self) -> list[str]:
        """Kill it, and return the whole lines it wrote."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(10.0)
        self._reader.join(10.0)
        assert self._process.stdout is not None
        self._process.stdout.close()
        return [line.rstrip() for line in self._lines if line.endswith("\n")]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._process.poll() is None:
            self.kill()

    def _read(self) -> None:
        assert self._process.stdout is not None
        self._lines.extend(iter(self._process.stdout.readline, ""))


def test_kill_9_loses_no_event_whatever_the_broker_does_meanwhile(tmp_path: Path) -> None:
    rng = random.Random(4)
    accepted: list[str] = []
    with Broker(tmp_path / "broker", BrokerSetup(persistence=True)) as broker, Subscriber(broker.port) as subscriber:
        for turn in range(N_KILLS):
            with Victim(broker.port, tmp_path / "state") as victim:
                victim.wait_lines(rng.randrange(20, 120))
                if turn % 2:
                    broker.stop()
                    victim.wait_lines(rng.randrange(140, 240))
                    if turn % 4 == 1:
                        broker.start()
                        victim.wait_lines(rng.randrange(260, 360))
                accepted += victim.kill()
            if turn % 4 == 3:
                broker.start()
        events = {line.removeprefix("event ") for line in accepted if line.startswith("event ")}
        with publishing(broker.target, tmp_path / "state") as publisher:
            wait_for(lambda: publisher.stats().spool_rows == 0, what="an empty outbox", timeout_s=20.0)
            assert publisher.stats().dropped == publisher.stats().quarantined == 0
        received = subscriber.wait(lambda all_: events <= names(all_), suffix="/event", timeout_s=20.0)
        scores = subscriber.messages("/score")
    assert len(events) > 300
    assert_copies_share_their_id(received)
    copies = Counter(each.json["event_id"] for each in received)
    assert sum(copies.values()) - len(copies) <= 20 * N_KILLS
    assert len(names(received) - events) <= N_KILLS  # committed, and killed before it could say so
    assert_seq_tells_what_was_lost(scores, accepted)


def assert_seq_tells_what_was_lost(scores: list[Received], accepted: list[str]) -> None:
    """Compare the holes a subscriber sees in `seq`, boot by boot, with what the publisher said it accepted."""
    said = Counter(line.removeprefix("score ").split("/")[0] for line in accepted if line.startswith("score "))
    seen: defaultdict[str, set[int]] = defaultdict(set)
    for each in scores:
        payload = each.json
        assert payload["sample0"] == 8000 * payload["seq"]
        seen[payload["id"].split(":")[1]].add(payload["seq"])
    assert seen.keys() <= said.keys()
    for boot, seqs in seen.items():
        assert max(seqs) <= said[boot] + 1
    assert sum(map(len, seen.values())) > 0.3 * said.total()


def test_kill_9_makes_the_broker_say_offline(tmp_path: Path) -> None:
    with Broker(tmp_path / "broker") as broker, Subscriber(broker.port, "edgeasd/w097/status") as subscriber:
        with Victim(broker.port, tmp_path / "state"):
            subscriber.wait(lambda all_: all_ and all_[-1].text == "online")
        subscriber.wait(lambda all_: all_[-1].text == "offline", timeout_s=3.0)
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
