"""P3 and P20: small and full disks, and power cuts, under a publisher whose broker is away."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from edgeasd.publish.mqtt import MqttPublisher
from edgeasd.publish.outbox import Outbox, OutboxLimits
from tests.rig.broker import MOSQUITTO, NO_MOSQUITTO, Broker, Received, Subscriber, wait_for
from tests.rig.cutting import cut_everywhere
from tests.rig.disks import fill, no_mount, relieve, small_disk, used_bytes
from tests.rig.powercut import no_strace
from tests.rig.promise import Measured, Promise
from tests.system.mqtt_rig import QUICK, WIRE, event, has_names, names, score

_CAP_BYTES = 1 << 20
_PATIENCE_S = 60.0


class _Flood:
    """Publishes scores and events, and keeps in mind what was published and how large the files became."""

    def __init__(self, publisher: MqttPublisher, outbox: Outbox, state: Path) -> None:
        self._publisher = publisher
        self._outbox = outbox
        self._state = state
        self.n_scores = 0
        self.events: list[str] = []
        self.peak_bytes = 0
        self.slowest_s = 0.0
        self.scores_when_events_went: int | None = None
        """Scores that were still held when the first event was given up."""

    def scores(self, n_scores: int) -> None:
        """Publish scores, at a pace that the thread that writes them can follow."""
        for number in range(n_scores):
            self.n_scores += 1
            self._say(lambda: self._publisher.publish(score(self.n_scores)))
            if number % 500 == 499:
                wait_for(lambda: self._publisher.stats().waiting < 500, what="room in memory", timeout_s=_PATIENCE_S)

    def say_events(self, n_events: int) -> None:
        """Publish events; each is committed before the next."""
        for _ in range(n_events):
            name = f"e{len(self.events)}"
            held = self._outbox.depth("event")
            self._say(lambda: self._publisher.publish(event(name)))  # noqa: B023  # called at once
            self.events.append(name)
            if self._outbox.depth("event") <= held and self.scores_when_events_went is None:
                self.scores_when_events_went = self._outbox.depth("score")

    def _say(self, publish: object) -> None:
        assert callable(publish)
        began_s = time.monotonic()
        publish()
        self.slowest_s = max(self.slowest_s, time.monotonic() - began_s)
        self.peak_bytes = max(self.peak_bytes, used_bytes(self._state))


def bound_the_disk(scratch: Path, *, scores: int, events: int) -> Measured:
    """Flood an outbox at its cap on a small disk, then one whose disk is full, and let the broker come afterwards."""
    capped, capped_kept = _at_its_cap(scratch / "capped", n_scores=scores, n_events=events)
    filled, filled_kept = _on_a_full_disk(scratch / "filled")
    return Measured(f"{capped}; full disk: {filled}", kept=capped_kept and filled_kept)


def _at_its_cap(scratch: Path, *, n_scores: int, n_events: int) -> tuple[str, bool]:
    limits = OutboxLimits(max_bytes=_CAP_BYTES)
    with small_disk(scratch / "disk") as state, Broker(scratch / "broker", started=False) as broker:
        with Outbox(state, limits=limits) as outbox:
            publisher = MqttPublisher(broker.target, wire=WIRE, outbox=outbox, options=QUICK)
            flood = _Flood(publisher, outbox, state)
            flood.say_events(20)
            flood.scores(n_scores)
            events_kept = outbox.depth("event") == 20  # whatever the scores did
            flood.say_events(n_events)
            dropped = publisher.stats().dropped
            broker.start()
            with Subscriber(broker.port) as subscriber:
                wait_for(lambda: not publisher.stats().spool_rows, what="an empty outbox", timeout_s=_PATIENCE_S)
                assert publisher.close(10.0)
                told = _told(subscriber.messages("/gap"))
                got = len(names(subscriber.messages("/event")))
            dropped = publisher.stats().dropped
        whole = _integrity(state / "outbox.db")
    share = flood.peak_bytes / _CAP_BYTES
    went = flood.scores_when_events_went
    order = "no event dropped" if went is None else f"{went} scores left when the first event went"
    text = (
        f"{flood.n_scores} scores and {len(flood.events)} events into {_CAP_BYTES >> 20} MiB on a 2 MiB disk: "
        f"files {share:.2f} x cap, {dropped} dropped, {told} told in gap records, {order}, {got} events arrived, "
        f"slowest publish {1000 * flood.slowest_s:.0f} ms, integrity {whole}"
    )
    return text, bool(
        share <= 1.15 and dropped == told > 0 and events_kept and went in (None, 0) and got and whole == "ok"
    )


def _on_a_full_disk(scratch: Path) -> tuple[str, bool]:
    with small_disk(scratch / "disk") as state, Broker(scratch / "broker", started=False) as broker:
        with Outbox(state) as outbox:
            publisher = MqttPublisher(broker.target, wire=WIRE, outbox=outbox, options=QUICK)
            flood = _Flood(publisher, outbox, state)
            flood.say_events(5)
            flood.scores(200)
            fill(state)
            flood.say_events(50)
            flood.scores(1000)
            refused = not publisher.stats().durable
            broker.start()
            with Subscriber(broker.port) as subscriber:
                subscriber.wait(lambda all_: has_names(55, all_), suffix="/event", timeout_s=_PATIENCE_S)
                relieve(state)
                flood.say_events(1)
                wait_for(lambda: not publisher.stats().spool_rows, what="an empty outbox", timeout_s=_PATIENCE_S)
                durable = publisher.stats().durable
                assert publisher.close(10.0)
                missing = len(set(flood.events) - names(subscriber.messages("/event")))
                dropped, told = publisher.stats().dropped, _told(subscriber.messages("/gap"))
        whole = _integrity(state / "outbox.db")
    text = (
        f"{'refused' if refused else 'taken'} while full, {missing} of {len(flood.events)} events lost, "
        f"{dropped} dropped ({told} told), durable again: {'yes' if durable else 'no'}, slowest publish "
        f"{1000 * flood.slowest_s:.0f} ms, integrity {whole}"
    )
    return text, not missing and durable and dropped == told and whole == "ok"


def _told(gaps: Sequence[Received]) -> int:
    """Return how many messages the gap records account for, each counted once."""
    return sum({each.json["id"]: each.json["count"] for each in gaps}.values())


def _integrity(path: Path) -> str:
    with closing(sqlite3.connect(path)) as db:
        return str(db.execute("PRAGMA integrity_check").fetchone()[0])


def cut_the_power(scratch: Path, *, boots: int, events: int, variants: int) -> Measured:
    """Cut the power before each fsync in the life of a publisher, and see what the outbox makes of what is left."""
    cuts = cut_everywhere(scratch, boots=boots, events=events, variants=variants)
    return Measured(
        f"{cuts.n_states} states of the disk, over {boots} boots with {cuts.n_events} acknowledged events: "
        f"{len(cuts.unopened)} did not open whole, {len(cuts.lost)} lost an acknowledged event, "
        f"{len(cuts.confused)} lost the node's identity or boot number",
        kept=cuts.n_states > 0 and not cuts.unopened and not cuts.lost and not cuts.confused,
    )


def _needs() -> str | None:
    return NO_MOSQUITTO if MOSQUITTO is None else no_mount()


PROMISES = (
    Promise(
        number="P3",
        title="Bounded disk; a full disk does not stop scoring",
        target="files <= 1.15 x cap; alive; drops counted and told in gap records; events dropped only after all "
        "scores; integrity ok",
        run=bound_the_disk,
        short={"scores": 3000, "events": 2200},
        long={"scores": 50_000, "events": 5000},
        needs=_needs,
    ),
    Promise(
        number="P20",
        title="Power-cut safe outbox",
        target="always opens, loses only what was not committed durably: events never",
        run=cut_the_power,
        short={"boots": 2, "events": 20, "variants": 1},
        long={"boots": 6, "events": 200, "variants": 8},
        needs=no_strace,
    ),
)
