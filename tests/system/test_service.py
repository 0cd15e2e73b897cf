"""The service in a real systemd: installed, started, reloaded, killed, stopped, taken off again.

What a hung node and the sandbox do is promised by P12 and P17, which test_promises.py tries in the same machine.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.rig.broker import Received, Subscriber
from tests.rig.service import ServiceRig, needs, shared

UNIT = "/etc/systemd/system/edgeasd.service"


@pytest.fixture(scope="module")
def rig() -> ServiceRig:
    reason = needs()
    if reason is not None:
        pytest.skip(reason)
    return shared()


@pytest.fixture(scope="module", autouse=True)
def tidy(rig: ServiceRig) -> Iterator[None]:
    yield
    rig.configure({})
    rig.machine.run("systemctl", "stop", "edgeasd")


@pytest.fixture
def running(rig: ServiceRig) -> ServiceRig:
    """The rig with the service started, or left running by the test before."""
    rig.configure({})
    rig.machine.run("systemctl", "start", "edgeasd")
    return rig


@pytest.fixture
def subscriber(rig: ServiceRig) -> Iterator[Subscriber]:
    with Subscriber(rig.broker.port, "edgeasd/edgeasd/#", name=f"test-{time.monotonic_ns()}") as subscribed:
        yield subscribed


def _says(*words: str) -> Any:
    return lambda said: all(word in said["StatusText"] for word in words)


def _info_has(part: str) -> Any:
    def found(infos: list[Received]) -> bool:
        return any(part in json.dumps(info.json["warnings"]) for info in infos)

    return found


def test_it_says_in_words_how_it_fares(running: ServiceRig) -> None:
    said = running.machine.wait("edgeasd", _says("mic0: normal, score ", "broker connected"), what="a status in words")
    assert (said["ActiveState"], said["Type"], said["Result"]) == ("active", "notify", "success")
    told = running.machine.run("edgeasd", "service", "status").stdout.splitlines()
    assert told[0].startswith("edgeasd.service is active (running) since ")
    assert told[1].startswith("it says: mic0: ")


def test_a_reload_takes_what_it_can_and_says_what_waits(running: ServiceRig, subscriber: Subscriber) -> None:
    before = running.machine.show("edgeasd")
    digest = subscriber.wait(len, suffix="/info", timeout_s=30.0)[0].json["config_sha256"]
    running.configure({"alarm": {"false_alarms": "1/week"}, "windows": {"hop_s": 0.032}})
    running.machine.run("systemctl", "reload", "edgeasd")
    subscriber.wait(lambda told: float(told[-1].text) > float(told[0].text), suffix="/threshold/state", timeout_s=30.0)
    infos = subscriber.wait(_info_has("windows.hop_s"), suffix="/info", timeout_s=30.0)
    assert infos[-1].json["config_sha256"] != digest
    after = running.machine.wait("edgeasd", lambda said: said["SubState"] == "running", what="the reload to end")
    assert after["MainPID"] == before["MainPID"]
    line = "settings read again: took alarm.false_alarms; changed, but in force only after a restart: windows.hop_s"
    assert line in running.machine.journal("edgeasd")


def test_a_wrong_file_changes_nothing(running: ServiceRig, subscriber: Subscriber) -> None:
    before = running.machine.show("edgeasd")
    running.configure({"alarm": {"release_s": -1}})
    running.machine.run("systemctl", "reload", "edgeasd")
    complaint = "settings were not taken: alarm.release_s: -1 is not above 0 (from /etc/edgeasd/config.yaml line 2)"
    subscriber.wait(_info_has(complaint), suffix="/info", timeout_s=30.0)
    assert running.machine.journal("edgeasd").count(complaint) == 1
    assert running.machine.show("edgeasd")["MainPID"] == before["MainPID"]
    running.configure({})
    running.machine.run("systemctl", "reload", "edgeasd")
    subscriber.wait(lambda infos: complaint not in infos[-1].json["warnings"], suffix="/info", timeout_s=30.0)


def test_a_killed_node_is_started_again_and_a_stopped_one_is_not(running: ServiceRig, subscriber: Subscriber) -> None:
    machine = running.machine
    running.drop_in("RestartSec=100ms")
    n_restarts = int(machine.show("edgeasd")["NRestarts"])
    machine.run("systemctl", "kill", "--signal=KILL", "edgeasd")
    machine.wait(
        "edgeasd",
        lambda said: int(said["NRestarts"]) == n_restarts + 1 and said["ActiveState"] == "active",
        what="another start",
    )
    began_s = time.monotonic()
    machine.run("systemctl", "stop", "edgeasd")
    assert time.monotonic() - began_s < 10.0
    subscriber.wait(lambda told: told[-1].text == "stopped", suffix="edgeasd/status", timeout_s=10.0)
    said = machine.show("edgeasd")
    assert (said["ActiveState"], said["Result"], said["ExecMainStatus"]) == ("inactive", "success", "0")
    assert machine.run("edgeasd", "service", "status", check=False).returncode == 69


def test_a_bundle_that_fails_its_tests_never_gets_ready_and_is_not_tried_again(rig: ServiceRig) -> None:
    whole = bytearray(rig.machine.path("/etc/edgeasd/small.edgeasd").read_bytes())
    whole[len(whole) // 2] ^= 1
    rig.machine.path("/etc/edgeasd/altered.edgeasd").write_bytes(whole)
    rig.configure({"bundle": "/etc/edgeasd/altered.edgeasd"})
    assert rig.machine.run("systemctl", "start", "edgeasd", check=False).returncode != 0
    said = rig.machine.show("edgeasd")
    assert (said["ActiveState"], said["ExecMainStatus"], said["NRestarts"]) == ("failed", "65", "0")
    told = rig.machine.run("edgeasd", "service", "status", check=False).stdout
    assert "it ended: exit-code, status 65; journalctl -u edgeasd.service says more" in told
    rig.machine.run("systemctl", "reset-failed", "edgeasd")


def test_what_an_operator_changed_survives(rig: ServiceRig) -> None:
    machine = rig.machine
    own = machine.path(f"{UNIT}.d/own.conf")
    own.parent.mkdir(exist_ok=True)
    own.write_text("[Service]\nNice=-1\n")
    came = machine.path(UNIT).read_text()
    machine.path(UNIT).write_text(came.replace("RestartSec=5s", "RestartSec=7s"))
    machine.run("chmod", "600", "/etc/edgeasd/config.yaml")
    installed = machine.run("edgeasd", "service", "install", "--gpu", "nvidia").stdout
    machine.run("chmod", "644", "/etc/edgeasd/config.yaml")
    assert "still to do: chmod 644 /etc/edgeasd/config.yaml: the service has a user of its own\n" in installed
    assert f"kept the former unit as {UNIT}.before-1" in installed
    assert "-RestartSec=7s\n  +RestartSec=5s" in installed
    assert machine.path(UNIT).read_text() == came
    assert f"unchanged {UNIT}\n" in machine.run("edgeasd", "service", "install").stdout
    assert machine.show("edgeasd")["MemoryMax"] == str(6 * 2**30)  # of the drop-in
    machine.path(f"{UNIT}.d/nvidia.conf").write_text("[Service]\nMemoryMax=3G\n")
    assert f"kept {UNIT}.d/nvidia.conf" in machine.run("edgeasd", "service", "install", "--gpu", "nvidia").stdout

    nobody = machine.run("setpriv", "--reuid=65534", "--clear-groups", "edgeasd", "service", "uninstall", check=False)
    assert nobody.returncode == 77
    assert nobody.stderr == (
        "edgeasd: only root may change services: use sudo, or --dry-run to see what would be done\n"
    )
    removed = machine.run("edgeasd", "service", "uninstall").stdout
    assert f"removed {UNIT}\nkept {UNIT}.d/nvidia.conf\nkept {UNIT}.d/own.conf\n" in removed
    assert machine.run("edgeasd", "service", "status", check=False).stdout == (
        "edgeasd.service is not installed: edgeasd service install\n"
    )
    for path in own.parent.iterdir():
        path.unlink()
    machine.run("edgeasd", "service", "install")
