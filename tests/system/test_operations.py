"""What docs/operations.md hands to an operator: the broker of deploy/mosquitto, really run, and the alert rules."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from edgeasd.health.metrics import Metrics, NodeFigures
from edgeasd.publish import PublisherStats
from edgeasd.publish.mqtt import MqttPublisher
from edgeasd.publish.outbox import Outbox
from edgeasd.publish.target import MqttOptions, MqttTarget, TlsFiles
from edgeasd.publish.wire import Wire
from tests.rig.broker import MOSQUITTO, NO_MOSQUITTO, Certificates, Subscriber, free_port, make_certificates, wait_for
from tests.system.mqtt_rig import QUICK, ROOT, event

DEPLOYED = ROOT / "deploy/mosquitto"
PASSWORDS = {"w097": "node-secret", "w098": "other-secret", "reader": "reader-secret"}


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return make_certificates(tmp_path / "certs")


@pytest.fixture
def port(tmp_path: Path, certificates: Certificates) -> Iterator[int]:
    """Run mosquitto as Debian starts it, with the files of deploy/mosquitto where their first lines put them."""
    etc = tmp_path / "etc"
    (etc / "conf.d").mkdir(parents=True)
    free = free_port()
    text = (DEPLOYED / "edgeasd.conf").read_text().replace("/etc/mosquitto", str(etc))
    text = re.sub(r"^listener 8883$", f"listener {free} 127.0.0.1\nuser root", text, flags=re.MULTILINE)
    (etc / "conf.d/edgeasd.conf").write_text(text)
    (etc / "certs").symlink_to(certificates.ca.parent)
    (etc / "edgeasd.acl").write_bytes((DEPLOYED / "edgeasd.acl").read_bytes())
    (etc / "edgeasd.acl").chmod(0o600)
    passwords = etc / "passwords"
    passwords.write_text("".join(f"{user}:{password}\n" for user, password in PASSWORDS.items()))
    passwords.chmod(0o600)
    subprocess.run(["mosquitto_passwd", "-U", str(passwords)], check=True, capture_output=True)
    main = etc / "mosquitto.conf"
    main.write_text(f"persistence true\npersistence_location {tmp_path}/\ninclude_dir {etc}/conf.d\n")
    log = tmp_path / "log"
    with log.open("wb") as out, subprocess.Popen([str(MOSQUITTO), "-c", str(main)], stderr=out) as broker:
        wait_for(lambda: "running" in log.read_text() or broker.poll() is not None, what="mosquitto", timeout_s=20.0)
        assert broker.poll() is None, log.read_text()
        yield free
        broker.terminate()


@pytest.mark.skipif(MOSQUITTO is None, reason=NO_MOSQUITTO)
def test_a_node_writes_below_its_own_name_only(port: int, certificates: Certificates, tmp_path: Path) -> None:
    node, other = (MqttTarget("127.0.0.1", port, tls=True, user=u, password=PASSWORDS[u]) for u in ("w097", "w098"))
    reader = Subscriber(port, "edgeasd/#", user=("reader", PASSWORDS["reader"]), certificates=certificates)
    with reader, Outbox(tmp_path / "own") as own, Outbox(tmp_path / "foreign") as foreign:
        publisher = MqttPublisher(node, wire=Wire("w097"), outbox=own, options=_options("a", certificates))
        impostor = MqttPublisher(other, wire=Wire("w097"), outbox=foreign, options=_options("b", certificates))
        publisher.publish(event("OWN"))
        impostor.publish(event("FOREIGN"))
        reader.wait(lambda found: found, suffix="/event", timeout_s=20.0)
        wait_for(lambda: impostor.stats().quarantined, what="the refusal", timeout_s=20.0)
        assert publisher.stats().quarantined == 0
        assert publisher.close(5.0)
        assert impostor.close(5.0)
        assert [each.json["event_id"] for each in reader.messages("/event")] == ["OWN"]


def _options(client_id: str, certificates: Certificates) -> MqttOptions:
    return replace(QUICK, client_id=client_id, tls_files=TlsFiles(ca_file=certificates.ca))


def test_alert_rules_ask_for_figures_that_a_node_has() -> None:
    metrics = Metrics(version="0.1.0", bundle=None, backend=None)
    metrics.publisher(PublisherStats(connected=True, protocol="5"))
    metrics.node(NodeFigures(1.0, disk_free_bytes=1))
    had = {f"{each.name}_total" if each.type == "counter" else each.name for each in metrics.collect()}
    asked = set(re.findall(r"\bedgeasd_\w+", (ROOT / "deploy/prometheus/edgeasd.rules.yml").read_text()))
    assert asked
    assert asked <= had
