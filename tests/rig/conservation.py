"""The oracle of the outbox: what was committed comes out at the subscriber, whole, and copies are alike.

It takes nobody's word: committed is what stands in the outbox file of a killed node, read from a copy, and what the
numbers of the messages that did come say must have been there before them.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.rig.broker import Received

_NUMBERED = ("/event", "/notice", "/gap", "/score")


@dataclass(frozen=True, slots=True)
class Shelf:
    """What one outbox file held: of each message its id and what `_essence` makes of it."""

    committed: Mapping[str, tuple[str, str]]
    quarantined: int
    gaps: int


def read_outbox(state_dir: Path, scratch: Path) -> Shelf:
    """Return what the outbox of a dead node holds; the file itself stays as the kill left it."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    for name in ("outbox.db", "outbox.db-wal"):
        if (state_dir / name).exists():
            shutil.copy2(state_dir / name, scratch / name)
    if not (scratch / "outbox.db").exists():  # killed before it had one
        return Shelf({}, 0, 0)
    database = sqlite3.connect(scratch / "outbox.db")
    try:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",), f"{state_dir}: the outbox is damaged"
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if "gap" not in tables:
            return Shelf({}, 0, 0)
        rows = database.execute("SELECT id, topic, body FROM event UNION ALL SELECT id, topic, body FROM score")
        committed = {message_id: (topic, _essence(body)) for message_id, topic, body in rows}
        (quarantined,) = database.execute("SELECT COUNT(*) FROM quarantine").fetchone()
        (gaps,) = database.execute("SELECT COUNT(*) FROM gap").fetchone()
    finally:
        database.close()
    return Shelf(committed, quarantined, gaps)


@dataclass(slots=True)
class Ledger:
    """What was committed, gathered over many kills, and what became of it."""

    committed: dict[str, tuple[str, str]] = field(default_factory=dict)

    def enter(self, shelf: Shelf) -> None:
        """Add what a killed node leaves behind."""
        assert not shelf.quarantined, "messages were quarantined"
        assert not shelf.gaps, "the outbox gave messages up"
        self.committed.update(shelf.committed)

    def balance(self, received: Iterable[Received]) -> Balance:
        """Compare with what the subscriber has."""
        messages = [each for each in received if each.topic.endswith(_NUMBERED)]
        forms: defaultdict[str, set[tuple[str, str]]] = defaultdict(set)
        copies: Counter[str] = Counter()
        numbers: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
        for each in messages:
            payload = each.json
            forms[payload["id"]].add((each.topic, _essence(each.body)))
            copies[payload["id"]] += 1
            numbers[payload["id"].rsplit(":", 1)[0], each.topic].add(payload["seq"])
        for message_id, form in self.committed.items():
            if message_id in forms:
                forms[message_id].add(form)
        return Balance(
            received=len(copies),
            lost=len(self.committed.keys() - copies.keys()) + _holes(numbers, scores=False),
            score_holes=_holes(numbers, scores=True),
            doubled=copies.total() - len(copies),
            most_copies=max(copies.values(), default=0),
            altered=sum(len(found) > 1 for found in forms.values()),
        )


@dataclass(frozen=True, slots=True)
class Balance:
    """How the books stand."""

    received: int
    """Different messages that came."""
    lost: int
    """Committed and never seen: by id, and events by the holes in their `seq`."""
    score_holes: int
    """Scores missing before one that came: not promised, but scores go out in order, so that there should be none."""
    doubled: int
    most_copies: int
    altered: int
    """Messages whose copies differ in more than `late`."""


def last_score_end_s(received: Sequence[Received]) -> dict[tuple[int, str], float]:
    """Return by (boot, topic) until which UTC second the scores reach."""
    ends: dict[tuple[int, str], float] = {}
    for each in received:
        if each.topic.endswith("/score"):
            payload = each.json
            key = int(payload["id"].split(":")[1]), each.topic
            end_s = payload["ts_ns"] / 1e9 + payload["n"] / payload["rate"]
            ends[key] = max(end_s, ends.get(key, 0.0))
    return ends


def _holes(numbers: Mapping[tuple[str, str], set[int]], *, scores: bool) -> int:
    return sum(max(seqs) - len(seqs) for (_, topic), seqs in numbers.items() if topic.endswith("/score") is scores)


def _essence(body: bytes) -> str:
    """Return a payload without `late`, which the second sending of a message alters."""
    payload: dict[str, Any] = json.loads(body)
    return json.dumps({key: value for key, value in payload.items() if key != "late"}, sort_keys=True)
