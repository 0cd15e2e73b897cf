"""A durable subscriber that keeps the books of a node: what came, what is missing, and how late it was."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import paho.mqtt.client as paho

from tests.rig.broker import Subscriber

_NUMBERED = ("score", "event", "notice", "gap")


@dataclass(frozen=True, slots=True)
class Hole:
    """A number that is missing between two that came."""

    boot: int
    topic: str
    seq: int
    utc_ns: int
    """When the message before it happened."""


@dataclass(frozen=True, slots=True)
class Report:
    """A health message: what one source had come to."""

    at_s: float
    """Monotonic clock, on arrival."""
    uptime_s: float
    accounts: dict[str, dict[str, Any]]

    def accounted_s(self, source: str) -> float:
        """Return the seconds that the ledger of a source accounts for."""
        account = self.accounts[source]
        parts = (*account["dropped_s"].values(), *account["absent_s"].values())
        return float(account["scored_s"] + account["unexplained_s"] + sum(parts))


@dataclass(slots=True)
class Books:
    """What was heard, by the rules of docs/messages.md."""

    ids: Counter[str] = field(default_factory=Counter)
    """Copies by id."""
    ends_ns: dict[tuple[int, str], dict[int, int]] = field(default_factory=lambda: defaultdict(dict))
    """UTC at the end of what a message speaks of, by boot and topic, then by seq."""
    fresh: list[tuple[float, float]] = field(default_factory=list)
    """Arrival (monotonic clock, s) and delay since the end of the window (ms) of scores that are not late."""
    n_late: int = 0
    n_invalid: int = 0
    reports: list[list[Report]] = field(default_factory=list)
    """Health messages, one list for each life of the process."""
    given_up: int = 0
    """Messages that the node said a full outbox gave up."""

    @property
    def doubled(self) -> int:
        """Return how many copies came beyond the first."""
        return sum(self.ids.values()) - len(self.ids)

    def holes(self) -> list[Hole]:
        """Return every number missing below the highest that came, by boot and topic."""
        found = []
        for (boot, topic), ends_ns in self.ends_ns.items():
            last_ns = 0
            for seq in range(1, max(ends_ns) + 1):
                last_ns = ends_ns.get(seq, last_ns)
                if seq not in ends_ns:
                    found.append(Hole(boot, topic, seq, last_ns))
        return found

    def last_end_ns(self, boot: int) -> dict[str, int]:
        """Return when the last score that came of a boot ended, by topic."""
        return {
            topic: max(ends_ns.values())
            for (one, topic), ends_ns in self.ends_ns.items()
            if one == boot and topic.endswith("/score")
        }

    def n_events_committed(self) -> int:
        """Return how many messages came that a node commits before it counts them as said."""
        return sum(len(seqs) for (_, topic), seqs in self.ends_ns.items() if not topic.endswith("/score"))


class Witness(Subscriber):
    """Keeps books instead of messages, so that it can listen for days."""

    def __init__(self, port: int, topics: str = "edgeasd/#", *, name: str = "witness") -> None:
        self.books = Books()
        self.statuses: list[tuple[float, str]] = []
        self.lock = threading.Lock()
        super().__init__(port, topics, name=name)

    def _note(self, message: paho.MQTTMessage) -> None:
        at_s, utc_ns = time.monotonic(), time.time_ns()
        leaf = message.topic.rpartition("/")[2]
        with self.lock:
            if leaf in _NUMBERED:
                self._book(message.topic, leaf, json.loads(message.payload), at_s, utc_ns)
            elif leaf == "health":
                self._report(at_s, json.loads(message.payload))
            elif message.topic.count("/") == 2 and leaf == "status":
                self.statuses.append((at_s, message.payload.decode()))

    def _book(self, topic: str, leaf: str, payload: dict[str, Any], at_s: float, utc_ns: int) -> None:
        books = self.books
        message_id = payload["id"]
        books.ids[message_id] += 1
        boot = int(message_id.split(":")[1])
        rate, n = payload.get("rate", 1), payload.get("n", 0)
        end_ns = payload["ts_ns"] + n * 1_000_000_000 // rate
        books.ends_ns[boot, topic][payload["seq"]] = end_ns
        if leaf == "gap":
            books.given_up += payload["count"]
        if leaf == "score":
            books.n_late += payload["late"]
            books.n_invalid += not payload["valid"]
            if not payload["late"] and books.ids[message_id] == 1:
                books.fresh.append((at_s, (utc_ns - end_ns) / 1e6))

    def _report(self, at_s: float, payload: dict[str, Any]) -> None:
        reports: list[list[Report]] = self.books.reports
        if not reports or payload["uptime_s"] < reports[-1][-1].uptime_s:
            reports.append([])
        reports[-1].append(Report(at_s, payload["uptime_s"], payload["sources"]))


def ledger_errors_s(lives: Sequence[Sequence[Report]]) -> list[tuple[float, float]]:
    """Return, for each source and life told of twice, by how much ledger and clock differ, and over which time, s."""
    errors = []
    for reports in filter(None, lives):
        first, last = reports[0], reports[-1]
        passed_s = last.uptime_s - first.uptime_s
        if passed_s > 0.0:
            errors += [
                (last.accounted_s(source) - first.accounted_s(source) - passed_s, passed_s) for source in last.accounts
            ]
    return errors
