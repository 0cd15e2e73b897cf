"""What the live view makes of messages, good and hostile."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeasd.commands.board import Board, clean
from edgeasd.commands.watch import Mailbox, picture


def _golden(project_root: Path, name: str) -> tuple[str, bytes]:
    path = project_root / "tests" / "golden" / "wire" / f"{name}.json"
    document = json.loads(path.read_text())
    payload = document["payload"]
    return document["topic"], (payload if isinstance(payload, str) else json.dumps(payload)).encode()


def test_the_wire_format_is_understood(project_root: Path) -> None:
    board = Board("edgeasd")
    names = sorted(path.stem for path in (project_root / "tests" / "golden" / "wire").glob("*.json"))
    lines = {name: board.take(*_golden(project_root, name)) for name in names}
    assert board.n_strange == 0
    assert board.n_messages == len(names)
    assert " score " in (lines["score"] or "")
    assert " event start" in (lines["event_start"] or "")
    assert " Hz " in (lines["event_start"] or "")
    assert "invalid" in (lines["score_invalid"] or "")
    assert "lost" in (lines["gap"] or "")
    (node,) = board.nodes.values()
    assert node.info
    assert node.health
    assert len(board.events) == 5


def test_other_nodes_are_passed_over_on_request() -> None:
    board = Board("site/edgeasd", node="b")
    assert board.take("site/edgeasd/a/status", b"online") is None
    assert board.take("site/edgeasd/b/status", b"online") == "b online"
    assert list(board.nodes) == ["b"]


@pytest.mark.parametrize(
    ("topic", "payload"),
    [
        ("edgeasd/n/mic0/score", b"{}"),
        ("edgeasd/n/mic0/score", b"[1]"),
        ("edgeasd/n/mic0/score", b'{"score": "x", "threshold": 1, "p_value": 1, "ts": ""}'),
        ("edgeasd/n/mic0/event", b'{"bands": 7}'),
        ("edgeasd/n/mic0/level", b"\xff"),
        ("edgeasd/n/health", b"[" * 60_000),
        ("edgeasd/n/status", b"x" * 70_000),
        ("edgeasd/n/gap", b'{"count": null}'),
        ("edgeasd/n/mic0/threshold/state", b"much"),
    ],
)
def test_strange_messages_are_counted_and_harm_nothing(topic: str, payload: bytes) -> None:
    board = Board("edgeasd")
    assert board.take(topic, payload) is None
    assert board.n_strange == 1


def test_a_broker_full_of_strangers_stays_bounded() -> None:
    board = Board("edgeasd")
    for number in range(1000):
        board.take(f"edgeasd/n{number}/status", b"online")
        board.take(f"edgeasd/n0/s{number}/status", b"online")
    assert len(board.nodes) == 256
    assert len(board.nodes["n0"].sources) == 256


def test_no_escape_sequence_reaches_the_terminal() -> None:
    board = Board("edgeasd")
    line = board.take("edgeasd/n\x1b[31m/status", b"on\x1b]0;x\x07")
    assert line == clean(line or "")
    assert "\x1b" not in (line or "\x1b")


@given(topic=st.text(max_size=40), payload=st.binary(max_size=60))
def test_anything_is_taken(topic: str, payload: bytes) -> None:
    Board("edgeasd").take(f"edgeasd/{topic}", payload)


def test_the_picture_shows_node_source_score_and_alarm(project_root: Path) -> None:
    from rich.console import Console

    board = Board("edgeasd")
    for name in ("node_status", "score", "event_start"):
        board.take(*_golden(project_root, name))
    name = next(iter(board.nodes))
    source = next(iter(board.nodes[name].sources))
    board.take(f"edgeasd/{name}/{source}/state", b"ON")
    console = Console(file=io.StringIO(), width=120)
    console.print(picture(board, "mqtt://h:1883"))
    text = console.file.getvalue()  # type: ignore[attr-defined]  # it is the StringIO above
    for word in ("mqtt://h:1883", name, source, "ALARM", "event start"):
        assert word in text


def test_an_empty_board_says_that_it_waits() -> None:
    from rich.console import Console

    console = Console(file=io.StringIO(), width=80)
    console.print(picture(Board("edgeasd"), "mqtt://h:1883"))
    assert "waiting for messages" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_slow_terminal_drops_the_oldest_mail_and_counts_it() -> None:
    mailbox = Mailbox()
    for number in range(2010):
        mailbox.put("t", str(number).encode())
    assert mailbox.n_dropped == 10
    first: Any = next(mailbox.mail(None))
    assert first == ("t", b"10")
