"""Datagrams to a real socket, as systemd would read them."""

from __future__ import annotations

import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeasd.health.notify import Notifier, watchdog_s


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    name = str(tmp_path / "notify") if request.param == "path" else f"@edgeasd-test-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(name.replace("@", "\0", 1) if request.param == "abstract" else name)
        receiver.settimeout(5.0)
        yield name, receiver


def test_states_arrive_as_systemd_reads_them(systemd: tuple[str, socket.socket]) -> None:
    name, receiver = systemd
    notifier = Notifier(name)
    notifier.ready()
    notifier.ready("listening to mic0")
    notifier.status("mic0: 0.4\nREADY=1")
    notifier.watchdog()
    notifier.stopping()
    notifier.extend_timeout(12.5)
    notifier.stuck("publishing stands still")
    assert [receiver.recv(4096).decode() for _ in range(7)] == [
        "READY=1",
        "READY=1\nSTATUS=listening to mic0",
        "STATUS=mic0: 0.4 READY=1",
        "WATCHDOG=1",
        "STOPPING=1",
        "EXTEND_TIMEOUT_USEC=12500000",
        "WATCHDOG=trigger\nSTATUS=publishing stands still",
    ]


def test_reloading_carries_the_monotonic_clock(systemd: tuple[str, socket.socket]) -> None:
    name, receiver = systemd
    before_us = time.monotonic_ns() // 1000
    Notifier(name).reloading()
    reloading, stamp = receiver.recv(4096).decode().split("\n")
    assert reloading == "RELOADING=1"
    assert before_us <= int(stamp.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000


@pytest.mark.parametrize("socket_path", [None, "", "/nowhere/notify", "@edgeasd-test-nobody-listens"])
def test_nobody_to_tell_is_no_trouble(socket_path: str | None) -> None:
    notifier = Notifier(socket_path)
    notifier.ready()
    notifier.watchdog()


def test_supervisor_that_does_not_read_holds_nobody_up(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        notifier = Notifier(str(tmp_path / "notify"))
        began_s = time.monotonic()
        for _ in range(2000):
            notifier.watchdog()
        assert time.monotonic() - began_s < 5.0


def test_systemd_says_how_long_it_waits_for_progress() -> None:
    assert watchdog_s("30000000") == 30.0
    assert [watchdog_s(usec) for usec in (None, "", "0", "soon", "-5")] == [None] * 5


def test_more_time_is_asked_for_while_something_long_is_done(
    systemd: tuple[str, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, receiver = systemd
    monkeypatch.setattr("edgeasd.health.notify._ASK_EVERY_S", 0.01)
    with Notifier(name).patience("building an engine"):
        said = [receiver.recv(4096).decode() for _ in range(3)]
    assert said == ["STATUS=building an engine", *["EXTEND_TIMEOUT_USEC=30000000"] * 2]
    n_threads = threading.active_count()
    with pytest.raises(ValueError, match="no engine"), Notifier(name).patience("fails", limit_s=0.0):
        raise ValueError("no engine")
    assert threading.active_count() == n_threads
