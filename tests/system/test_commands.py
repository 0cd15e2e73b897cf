"""`edgeasd check` and `edgeasd watch` against a real broker that is right, wrong, or away."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.publish
import pytest

from edgeasd.commands.checks import Finding, Verdict, exit_code_of
from edgeasd.commands.checks.broker import check_broker
from edgeasd.settings import Places, Settings, resolve_settings
from tests.rig.broker import MOSQUITTO, NO_MOSQUITTO, Broker, BrokerSetup, Certificates, free_port, make_certificates

needs_mosquitto = pytest.mark.skipif(MOSQUITTO is None, reason=NO_MOSQUITTO)

NOWHERE = Places(credential_dirs=(), config_files=())


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


def _settings(tmp_path: Path, mqtt: dict[str, Any]) -> Settings:
    path = tmp_path / "node.yaml"
    path.write_text(json.dumps({"node": {"name": "w097"}, "mqtt": mqtt}))
    path.chmod(0o600)
    return resolve_settings(path, places=NOWHERE).settings


def _stages(findings: Iterator[Finding]) -> list[tuple[str, str]]:
    return [(finding.what, finding.verdict.value) for finding in findings]


@needs_mosquitto
def test_a_good_broker_passes_every_stage(tmp_path: Path) -> None:
    with Broker(tmp_path) as broker:
        stages = _stages(check_broker(_settings(tmp_path, {"url": broker.url, "commands": True})))
    assert stages == [("dns", "ok"), ("tcp", "ok"), ("connect", "ok"), ("publish", "ok"), ("commands", "ok")]


@needs_mosquitto
def test_mqtt_3_1_1_passes_with_a_warning(tmp_path: Path) -> None:
    with Broker(tmp_path) as broker:
        stages = _stages(check_broker(_settings(tmp_path, {"url": broker.url, "protocol": "3.1.1"})))
    assert stages[-1] == ("publish", "warn")


@needs_mosquitto
def test_mutual_tls_passes(tmp_path: Path, certificates: Certificates) -> None:
    files = {
        "ca_file": str(certificates.ca),
        "cert_file": str(certificates.client),
        "key_file": str(certificates.client_key),
    }
    with Broker(tmp_path, BrokerSetup(certificates=certificates, client_certificates=True)) as broker:
        findings = list(check_broker(_settings(tmp_path, {"url": broker.url, **files})))
    assert _stages(iter(findings))[2:] == [("tls", "ok"), ("connect", "ok"), ("publish", "ok")]
    assert "TLSv1.3" in findings[2].detail


@needs_mosquitto
def test_a_certificate_nobody_vouches_for_fails_at_tls(tmp_path: Path, certificates: Certificates) -> None:
    with Broker(tmp_path, BrokerSetup(certificates=certificates)) as broker:
        *_, last = check_broker(_settings(tmp_path, {"url": broker.url}))
    assert (last.what, last.verdict, last.exit_code) == ("tls", Verdict.FAIL, 69)
    assert "certificate" in last.detail


@needs_mosquitto
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_wrong_password_fails_at_connect_and_stays_secret(tmp_path: Path, protocol: str) -> None:
    mqtt = {"username": "edgeasd", "password": "wr0ng-canary", "protocol": protocol}
    with Broker(tmp_path, BrokerSetup(users={"edgeasd": "right"})) as broker:
        findings = list(check_broker(_settings(tmp_path, {"url": broker.url, **mqtt})))
    assert _stages(iter(findings))[-1] == ("connect", "fail")
    assert "ot authorized" in findings[-1].detail or "Bad user name" in findings[-1].detail
    assert "canary" not in repr(findings)


@needs_mosquitto
def test_a_user_who_may_not_write_fails_at_publish(tmp_path: Path) -> None:
    setup = BrokerSetup(users={"edgeasd": "right"}, acl="user edgeasd\ntopic read edgeasd/#\n")
    with Broker(tmp_path, setup) as broker:
        mqtt = {"url": broker.url, "username": "edgeasd", "password": "right"}
        *_, last = check_broker(_settings(tmp_path, mqtt))
    assert (last.what, last.verdict) == ("publish", Verdict.FAIL)
    assert last.fix == "allow this user to write edgeasd/w097/#"


def test_a_broker_that_is_away_fails_at_tcp(tmp_path: Path, free_port: int) -> None:
    findings = list(check_broker(_settings(tmp_path, {"url": f"mqtt://127.0.0.1:{free_port}"})))
    assert _stages(iter(findings)) == [("dns", "ok"), ("tcp", "fail")]
    assert exit_code_of(findings) == 69


def test_a_name_nobody_knows_fails_at_dns(tmp_path: Path) -> None:
    findings = list(check_broker(_settings(tmp_path, {"url": "mqtt://no-such-host.invalid"})))
    assert _stages(iter(findings)) == [("dns", "fail")]


def test_no_broker_is_a_warning(tmp_path: Path) -> None:
    findings = list(check_broker(_settings(tmp_path, {})))
    assert (_stages(iter(findings)), exit_code_of(findings)) == ([("settings", "warn")], 0)


def _watch(tmp_path: Path, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "edgeasd.cli", "watch", *args],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )


@needs_mosquitto
def test_watch_prints_lines_where_there_is_no_terminal(tmp_path: Path) -> None:
    with Broker(tmp_path) as broker:
        paho.mqtt.publish.single("edgeasd/w097/status", "online", qos=1, retain=True, port=broker.port)
        paho.mqtt.publish.single("edgeasd/other/status", "online", qos=1, retain=True, port=broker.port)
        process = _watch(tmp_path, "--mqtt", broker.url, "--node", "w097", "--duration", "60")
        killer = threading.Timer(30, process.kill)
        killer.start()
        assert process.stdout is not None
        assert process.stdout.readline() == "w097 online\n"
        killer.cancel()
        process.terminate()
        out, err = process.communicate(timeout=30)
    assert out == ""
    assert err == f"connected to {broker.url}\n"


@needs_mosquitto
def test_watch_says_why_it_is_not_let_in(tmp_path: Path) -> None:
    with Broker(tmp_path, BrokerSetup(users={"edgeasd": "right"})) as broker:
        process = _watch(tmp_path, "--mqtt", broker.url)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 69
    assert err.startswith(f"edgeasd: the broker at {broker.url} refuses us: ")
    assert err.count("\n") == 1


def test_watch_waits_for_a_broker_that_is_away(tmp_path: Path) -> None:
    process = _watch(tmp_path, "--mqtt", f"mqtt://127.0.0.1:{free_port()}", "--duration", "1")
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "", "")
