"""What the supervisor is told of progress, and of the lack of it; P12 tries the same in a real systemd."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgeasd.health.notify import Notifier
from edgeasd.watchdog import Watchdog


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Any]:
    """A node whose loops stand still at a word, and `said()`, what systemd has heard since it was last asked."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.setblocking(False)

        def said() -> list[str]:
            found = []
            while True:
                try:
                    found.append(receiver.recv(4096).decode())
                except BlockingIOError:
                    return found

        thread = SimpleNamespace(alive=True, last_progress_ns=time.monotonic_ns())
        track = SimpleNamespace(thread=thread, source=SimpleNamespace(name="mic0"))
        stats = SimpleNamespace(stalls=0)
        publisher = SimpleNamespace(stats=lambda: stats, still_s=0.0)
        publisher.stalled_s = lambda: publisher.still_s
        yield SimpleNamespace(
            line=SimpleNamespace(tracks=[track]),
            reporter=SimpleNamespace(publisher=publisher),
            notifier=Notifier(str(tmp_path / "notify")),
            capture=thread,
            stats=stats,
            said=said,
        )


def test_progress_of_every_loop_is_told(node: Any) -> None:
    Watchdog(30.0).attend(node, time.monotonic())
    assert node.said() == ["WATCHDOG=1"]


def test_a_capture_loop_that_stands_still_is_named_once_and_may_come_back(
    node: Any, caplog: pytest.LogCaptureFixture
) -> None:
    watchdog = Watchdog(30.0)
    later_s = time.monotonic() + 31.0
    watchdog.attend(node, later_s)
    watchdog.attend(node, later_s + 5.0)
    assert node.said() == ["WATCHDOG=trigger\nSTATUS=capture of mic0 stands still"]
    assert caplog.messages == ["capture of mic0 has stood still for 30 s"]
    node.capture.last_progress_ns = round(later_s * 1e9)
    watchdog.attend(node, later_s + 10.0)
    assert node.said() == ["WATCHDOG=1"]


def test_a_capture_that_has_ended_is_no_loop_that_stands_still(node: Any) -> None:
    node.capture.alive = False
    Watchdog(30.0).attend(node, time.monotonic() + 3600.0)
    assert node.said() == ["WATCHDOG=1"]


def test_publishing_that_stands_still_is_told(node: Any) -> None:
    node.reporter.publisher.still_s = 30.1
    Watchdog(None).attend(node, time.monotonic())
    assert node.said() == ["WATCHDOG=trigger\nSTATUS=publishing stands still"]


def test_a_publisher_that_no_new_connection_helps_starves_the_watchdog(node: Any) -> None:
    node.stats.stalls = 3
    Watchdog(30.0).attend(node, time.monotonic())
    assert node.said() == []
