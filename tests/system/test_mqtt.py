"""The MQTT publisher against a mosquitto that comes late, dies, freezes, and a disk that is full."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from edgeasd.publish.mqtt import MqttPublisher
from edgeasd.publish.outbox import Outbox, OutboxLimits
from edgeasd.records import Fault, Level
from tests.rig.broker import MOSQUITTO, NO_MOSQUITTO, Broker, BrokerSetup, Subscriber, wait_for
from tests.system.mqtt_rig import (
    WIRE,
    assert_copies_share_their_id,
    event,
    has_names,
    has_seqs,
    names,
    publishing,
    score,
    utc_ns,
    wait_connected,
)

pytestmark = pytest.mark.skipif(MOSQUITTO is None, reason=NO_MOSQUITTO)


def test_broker_that_is_away_at_the_start_gets_everything_once_it_appears(tmp_path: Path) -> None:
    with Broker(tmp_path / "broker", BrokerSetup(persistence=True)) as broker, Subscriber(broker.port) as subscriber:
        broker.stop()
        with publishing(broker.target, tmp_path / "state") as publisher:
            for number in range(100):
                publisher.publish(score(number))
            publisher.publish(event("early"))
            publisher.publish(WIRE.alarm("mic0", active=True))
            assert not publisher.stats().connected
            broker.start()
            scores = subscriber.wait(lambda all_: len(all_) >= 100, suffix="/score")
            assert [each.json["seq"] for each in scores] == list(range(1, 101))
            assert all(each.json["late"] for each in scores)
            assert subscriber.wait(len, suffix="/event")[0].json["late"]
            publisher.publish(score(100))
            assert not subscriber.wait(lambda all_: len(all_) >= 101, suffix="/score")[-1].json["late"]
            assert subscriber.messages("/w097/status")[0].text == "online"
            assert [each.text for each in subscriber.messages("/mic0/state")] == ["ON"]


def test_broker_killed_and_back_costs_nothing_and_is_told_all_states_again(tmp_path: Path) -> None:
    setup = BrokerSetup(persistence=True, lines=("autosave_on_changes true",))
    with (
        Broker(tmp_path / "broker", setup) as broker,
        Subscriber(broker.port) as subscriber,
        publishing(broker.target, tmp_path / "state") as publisher,
    ):
        publisher.publish(WIRE.alarm("mic0", active=True))
        for turn in range(3):
            wait_connected(publisher)
            for number in range(20):
                publisher.publish(event(f"{turn} up {number}"))
                publisher.publish(score(number))
            # What a broker acknowledged and had not passed on when it died is lost; that is not what is asked here.
            subscriber.wait(partial(has_names, 40 * turn + 20), suffix="/event")
            subscriber.wait(partial(has_seqs, 40 * turn + 20), suffix="/score")
            broker.kill()
            for number in range(20):
                publisher.publish(event(f"{turn} down {number}"))
                publisher.publish(score(number))
            broker.start()
            subscriber.wait(partial(has_names, 40 * (turn + 1)), suffix="/event")
            subscriber.wait(partial(has_seqs, 40 * (turn + 1)), suffix="/score")
        events = subscriber.messages("/event")
        scores = subscriber.messages("/score")
        assert publisher.stats().reconnects >= 3
    assert_copies_share_their_id(events)
    assert {each.json["seq"] for each in scores} == set(range(1, 121))
    assert len(subscriber.messages("/mic0/state")) >= 4


def test_frozen_broker_is_noticed_by_its_missing_acknowledgements(tmp_path: Path) -> None:
    with (
        Broker(tmp_path / "broker") as broker,
        Subscriber(broker.port) as subscriber,
        publishing(broker.target, tmp_path / "state") as publisher,
    ):
        wait_connected(publisher)
        broker.freeze()
        publisher.publish(event("frozen"))
        wait_for(lambda: publisher.stats().stalls > 0, what="the stall to be noticed", timeout_s=5.0)
        publisher.publish(event("still frozen"))
        broker.thaw()
        events = subscriber.wait(lambda all_: len(names(all_)) == 2, suffix="/event")
        wait_for(lambda: publisher.stats().stalls == 0, what="the all-clear", timeout_s=5.0)
    assert_copies_share_their_id(events)


def test_full_outbox_gives_up_scores_says_so_and_keeps_events(tmp_path: Path) -> None:
    limits = OutboxLimits(max_rows=100)
    with Broker(tmp_path / "broker", BrokerSetup(persistence=True)) as broker, Subscriber(broker.port) as subscriber:
        broker.stop()
        with publishing(broker.target, tmp_path / "state", limits=limits) as publisher:
            for number in range(40):
                publisher.publish(event(f"{number}"))
            for number in range(400):
                publisher.publish(score(number))
            wait_for(lambda: publisher.stats().waiting < 64, what="the spill", timeout_s=5.0)
            broker.start()
            subscriber.wait(lambda all_: len(names(all_)) >= 40, suffix="/event")
            scores = subscriber.wait(lambda all_: all_ and all_[-1].json["seq"] == 400, suffix="/score")
            (gap,) = subscriber.wait(len, suffix="/w097/gap")
            assert gap.json["count"] == publisher.stats().dropped == 400 - len(scores)
    lost_ids = {int(gap.json[end].rsplit(":", 1)[1]) for end in ("from_id", "to_id")}
    assert min(lost_ids) == 41  # the first score behind forty events
    assert max(lost_ids) == 40 + gap.json["count"]


@contextmanager
def small_disk(directory: Path, *, n_bytes: int) -> Iterator[Path]:
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={n_bytes}", "tmpfs", str(directory)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("a small tmpfs cannot be mounted here")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


def test_full_disk_stops_neither_events_nor_scores_and_recovers(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", n_bytes=2 << 20) as disk, Broker(tmp_path / "broker") as broker:
        state = disk / "state"
        with (
            Subscriber(broker.port) as subscriber,
            publishing(broker.target, state) as publisher,
        ):
            wait_connected(publisher)
            filler = disk / "filler"
            with suppress(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(b"x" * 4096)
            n_before = 0
            while publisher.stats().durable and n_before < 3000:  # the log still has room of its own
                publisher.publish(event(f"before {n_before}"))
                n_before += 1
            assert not publisher.stats().durable
            for number in range(20):
                publisher.publish(event(f"full {number}"))
                publisher.publish(score(number))
            events = subscriber.wait(lambda all_: len(names(all_)) >= n_before + 20, suffix="/event", timeout_s=20.0)
            subscriber.wait(lambda all_: len(all_) >= 20, suffix="/score")
            filler.unlink()
            publisher.publish(event("room again"))
            assert publisher.stats().durable
            subscriber.wait(lambda all_: "room again" in names(all_), suffix="/event")
            wait_for(lambda: publisher.stats().spool_rows == 0, what="an empty outbox", timeout_s=5.0)
        with Outbox(state) as outbox:
            assert outbox._database._db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert_copies_share_their_id(events)


def test_disk_that_is_full_from_the_start_leaves_a_publisher_in_memory(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", n_bytes=1 << 20) as disk, Broker(tmp_path / "broker") as broker:
        with suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        (disk / "state").mkdir()
        with (
            Subscriber(broker.port) as subscriber,
            publishing(broker.target, disk / "state") as publisher,
        ):
            publisher.publish(event("one"))
            assert names(subscriber.wait(len, suffix="/event")) == {"one"}
            assert not publisher.stats().durable


def test_score_reaches_a_subscriber_within_20_ms(tmp_path: Path, record_property: Callable[[str, Any], None]) -> None:
    n_messages = 300
    with (
        Broker(tmp_path / "broker") as broker,
        Subscriber(broker.port, "edgeasd/w097/mic0/score") as subscriber,
        publishing(broker.target, tmp_path / "state") as publisher,
    ):
        wait_connected(publisher)
        p99_ms = []
        for attempt in range(3):  # the machine may be busy with something else
            lag_ms = sorted(measure_lags_ms(publisher, subscriber, n_messages))
            p99_ms.append(lag_ms[int(0.99 * n_messages)])
            record_property(f"lag_p50_ms_{attempt}", round(lag_ms[n_messages // 2], 3))
            record_property(f"lag_p99_ms_{attempt}", round(p99_ms[-1], 3))
            if p99_ms[-1] <= 20.0:
                break
    assert min(p99_ms) <= 20.0


def measure_lags_ms(publisher: MqttPublisher, subscriber: Subscriber, n_messages: int) -> list[float]:
    n_before = len(subscriber.messages())
    pace = threading.Event()
    sent_ns = []
    for number in range(n_messages):
        sent_ns.append(time.monotonic_ns())
        publisher.publish(score(number))
        pace.wait(0.005)
    received = subscriber.wait(lambda all_: len(all_) >= n_before + n_messages)[n_before:]
    return [(message.at_ns - sent) / 1e6 for message, sent in zip(received, sent_ns, strict=True)]


def test_fault_and_level_travel_too(tmp_path: Path) -> None:
    with (
        Broker(tmp_path / "broker") as broker,
        Subscriber(broker.port) as subscriber,
        publishing(broker.target, tmp_path / "state") as publisher,
    ):
        wait_connected(publisher)
        for message in WIRE.fault("mic0", Fault.DEAD, since_ns=utc_ns(0)):
            publisher.publish(message)
        publisher.publish(WIRE.level("mic0", Level(-120.0, -120.0, 0.0, 0.0), ts_ns=utc_ns(0)))
        assert subscriber.wait(len, suffix="/mic0/fault")[0].text == "ON"
        assert subscriber.wait(len, suffix="/fault/attributes")[0].json["fault"] == "dead"
        assert subscriber.wait(len, suffix="/mic0/level")[0].json["rms_dbfs"] == -120.0
