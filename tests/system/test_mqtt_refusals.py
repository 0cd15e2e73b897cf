"""Brokers that ask who we are, refuse messages, or break the connection over them."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path

import pytest

from edgeasd.publish.mqtt import MqttPublisher
from edgeasd.publish.outbox import Outbox
from edgeasd.publish.target import MqttTarget, TlsFiles
from tests.rig.broker import (
    MOSQUITTO,
    NO_MOSQUITTO,
    Broker,
    BrokerSetup,
    Certificates,
    Subscriber,
    make_certificates,
    wait_for,
)
from tests.system.mqtt_rig import (
    QUICK,
    WIRE,
    assert_copies_share_their_id,
    event,
    names,
    padded,
    publishing,
    quarantined,
    score,
    wait_connected,
)

pytestmark = pytest.mark.skipif(MOSQUITTO is None, reason=NO_MOSQUITTO)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


def test_tls_with_our_own_authority(tmp_path: Path, certificates: Certificates) -> None:
    options = replace(QUICK, tls_files=TlsFiles(ca_file=certificates.ca))
    with (
        Broker(tmp_path / "broker", BrokerSetup(certificates=certificates)) as broker,
        Subscriber(broker.port, certificates=certificates) as subscriber,
        publishing(broker.target, tmp_path / "state", options=options) as publisher,
    ):
        for number in range(50):
            publisher.publish(score(number))
        subscriber.wait(lambda all_: len(all_) >= 50, suffix="/score")


# paho leaves the socket of a failed handshake to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_server_of_an_unknown_authority_is_not_trusted(
    tmp_path: Path, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    other = make_certificates(tmp_path / "other")
    options = replace(QUICK, tls_files=TlsFiles(ca_file=other.ca))
    with (
        Broker(tmp_path / "broker", BrokerSetup(certificates=certificates)) as broker,
        publishing(broker.target, tmp_path / "state", options=options) as publisher,
    ):
        publisher.publish(event("secret"))
        wait_for(lambda: "certificate verify failed" in caplog.text, what="the refusal", timeout_s=5.0)
        assert not publisher.stats().connected
        assert publisher.stats().spool_rows == 1


def test_mutual_tls_needs_our_certificate(
    tmp_path: Path, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    files = TlsFiles(certificates.ca, certificates.client, certificates.client_key)
    setup = BrokerSetup(certificates=certificates, client_certificates=True)
    with Broker(tmp_path / "broker", setup) as broker, Subscriber(broker.port, certificates=certificates) as subscriber:
        target = broker.target
        bare = replace(QUICK, tls_files=TlsFiles(ca_file=certificates.ca))
        with publishing(target, tmp_path / "state", options=bare) as publisher:
            publisher.publish(event("through"))
            wait_for(lambda: "no connection" in caplog.text, what="the refusal", timeout_s=5.0)
        with publishing(target, tmp_path / "state", options=replace(QUICK, tls_files=files)):
            assert names(subscriber.wait(len, suffix="/event")) == {"through"}


def test_password_opens_and_a_wrong_one_is_tried_slowly_and_never_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    setup = BrokerSetup(users={"node": "canary-right"})
    with (
        Broker(tmp_path / "broker", setup) as broker,
        Subscriber(broker.port, user=("node", "canary-right")) as subscriber,
    ):
        wrong = MqttTarget("127.0.0.1", broker.port, user="node", password="canary-wrong")
        slow = replace(QUICK, retry_max_s=30.0)
        with publishing(wrong, tmp_path / "state", options=slow) as publisher:
            publisher.publish(event("waits"))
            wait_for(lambda: "not authorized" in caplog.text, what="the refusal", timeout_s=5.0)
            assert publisher._backoff.next_s() >= 15.0
        right = replace(wrong, password="canary-right")
        with publishing(right, tmp_path / "state"):
            assert names(subscriber.wait(len, suffix="/event")) == {"waits"}
    assert "canary" not in caplog.text


def test_what_the_broker_forbids_is_set_aside_and_the_rest_flows(tmp_path: Path) -> None:
    acl = "topic readwrite edgeasd/w097/status\ntopic readwrite edgeasd/w097/mic0/#\ntopic read #\n"
    with Broker(tmp_path / "broker", BrokerSetup(acl=acl)) as broker, Subscriber(broker.port) as subscriber:
        with publishing(broker.target, tmp_path / "state") as publisher:
            for number in range(5):
                publisher.publish(event(f"good {number}"))
                publisher.publish(event(f"forbidden {number}", source="mic1"))
            publisher.publish(WIRE.alarm("mic1", active=True))
            subscriber.wait(lambda all_: len(names(all_)) >= 5, suffix="/event")
            wait_for(lambda: publisher.stats().quarantined == 6, what="the quarantine", timeout_s=5.0)
            assert publisher.stats().spool_rows == 0
            assert publisher.stats().reconnects == 0
        assert names(subscriber.messages("/event")) == {f"good {number}" for number in range(5)}
    assert {reason for _, reason in quarantined(tmp_path / "state")} == {"refused by the broker, code 0x87"}


def test_message_over_our_own_cap_is_set_aside_at_once(tmp_path: Path) -> None:
    with (
        Broker(tmp_path / "broker") as broker,
        Subscriber(broker.port) as subscriber,
        publishing(broker.target, tmp_path / "state") as publisher,
    ):
        publisher.publish(padded("big", 9000))
        publisher.publish(event("small"))
        assert names(subscriber.wait(len, suffix="/event")) == {"small"}
        assert publisher.stats().quarantined == 1


def test_message_over_the_announced_packet_size_is_set_aside_without_a_disconnect(tmp_path: Path) -> None:
    with (
        Broker(tmp_path / "broker", BrokerSetup(lines=("max_packet_size 1500",))) as broker,
        Subscriber(broker.port) as subscriber,
        publishing(broker.target, tmp_path / "state") as publisher,
    ):
        publisher.publish(padded("big", 3000))
        publisher.publish(event("small"))
        assert names(subscriber.wait(len, suffix="/event")) == {"small"}
        wait_for(lambda: publisher.stats().quarantined == 1, what="the quarantine", timeout_s=5.0)
        assert publisher.stats().reconnects == 0


def test_poison_message_is_found_among_others_and_does_not_block_them(tmp_path: Path) -> None:
    """MQTT 3.1.1 announces no packet size, so that an oversize message breaks the connection each time it is sent."""
    options = replace(QUICK, protocol="3.1.1")
    with (
        Broker(tmp_path / "broker", BrokerSetup(lines=("max_packet_size 1500",))) as broker,
        Subscriber(broker.port) as subscriber,
        Outbox(tmp_path / "state") as outbox,
    ):
        publisher = MqttPublisher(broker.target, wire=WIRE, outbox=outbox, options=options)
        wait_connected(publisher)
        began_s = time.monotonic()
        for number in range(10):
            publisher.publish(event(f"before {number}"))
        publisher.publish(padded("poison", 3000))
        for number in range(10):
            publisher.publish(event(f"behind {number}"))
        received = subscriber.wait(lambda all_: len(names(all_)) >= 20, suffix="/event", timeout_s=10.0)
        took_s = time.monotonic() - began_s
        wait_for(lambda: publisher.stats().spool_rows == 0, what="an empty outbox", timeout_s=5.0)
        assert publisher.stats().quarantined == 1
        assert publisher.close(5.0)
    assert took_s < 10.0
    assert_copies_share_their_id(received)
    ((_, reason),) = quarantined(tmp_path / "state")
    assert "broke the connection 3 times" in reason


def test_version_3_1_1_delivers_too(tmp_path: Path) -> None:
    with Broker(tmp_path / "broker") as broker, Subscriber(broker.port) as subscriber:
        options = replace(QUICK, protocol="3.1.1")
        with publishing(broker.target, tmp_path / "state", options=options) as publisher:
            publisher.publish(event("old"))
            publisher.publish(score(1))
            assert names(subscriber.wait(len, suffix="/event")) == {"old"}
            assert publisher.stats().protocol == "3.1.1"
        subscriber.wait(lambda all_: all_[-1].text == "stopped", suffix="/w097/status")
