"""Brokers that ask who we are, refuse messages, or break the connection over them."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

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
    event,
    names,
    padded,
    publishing,
    score,
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


@pytest.mark.parametrize("fault", ["unknown authority", "expired", "another host"])
def test_server_that_cannot_prove_who_it_is_is_told_nothing(
    tmp_path: Path, certificates: Certificates, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    host = "elsewhere.test" if fault == "another host" else "localhost"
    theirs = make_certificates(tmp_path / "theirs", host=host, expired=fault == "expired")
    trusted = certificates if fault == "unknown authority" else theirs
    options = replace(QUICK, tls_files=TlsFiles(ca_file=trusted.ca))
    with (
        Broker(tmp_path / "broker", BrokerSetup(certificates=theirs)) as broker,
        publishing(broker.target, tmp_path / "state", options=options) as publisher,
    ):
        publisher.publish(event("secret"))
        wait_for(lambda: "certificate verify failed" in caplog.text, what="the refusal", timeout_s=15.0)
        assert not publisher.stats().connected
        assert publisher.stats().spool_rows == 1


def test_server_that_speaks_only_an_old_tls_is_told_nothing(
    tmp_path: Path, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    old.load_cert_chain(certificates.server, certificates.server_key)
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1

    def serve() -> None:
        with suppress(OSError):
            connection, _ = listener.accept()
            with connection, old.wrap_socket(connection, server_side=True):
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=serve)
        server.start()
        options = replace(QUICK, tls_files=TlsFiles(ca_file=certificates.ca))
        target = MqttTarget("127.0.0.1", listener.getsockname()[1], tls=True)
        with publishing(target, tmp_path / "state", options=options):
            wait_for(lambda: "PROTOCOL_VERSION" in caplog.text, what="the refusal", timeout_s=15.0)
        server.join(10.0)


@pytest.mark.parametrize("tls", [True, False], ids=["TLS to an open port", "open to a TLS port"])
def test_port_of_the_other_kind_is_tried_again_and_costs_nothing(
    tmp_path: Path, certificates: Certificates, caplog: pytest.LogCaptureFixture, *, tls: bool
) -> None:
    setup = BrokerSetup() if tls else BrokerSetup(certificates=certificates)
    files = TlsFiles(ca_file=certificates.ca) if tls else None
    with Broker(tmp_path / "broker", setup) as broker:
        target = replace(broker.target, tls=tls)
        with publishing(target, tmp_path / "state", options=replace(QUICK, tls_files=files)) as publisher:
            publisher.publish(event("waits"))
            wait_for(lambda: "no connection" in caplog.text, what="the complaint", timeout_s=10.0)
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


def test_version_3_1_1_delivers_too(tmp_path: Path) -> None:
    with Broker(tmp_path / "broker") as broker, Subscriber(broker.port) as subscriber:
        options = replace(QUICK, protocol="3.1.1")
        with publishing(broker.target, tmp_path / "state", options=options) as publisher:
            publisher.publish(event("old"))
            publisher.publish(score(1))
            assert names(subscriber.wait(len, suffix="/event")) == {"old"}
            assert publisher.stats().protocol == "3.1.1"
        subscriber.wait(lambda all_: all_[-1].text == "stopped", suffix="/w097/status")
