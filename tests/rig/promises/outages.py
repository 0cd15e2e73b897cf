"""P2 and P4: what a long outage costs, and how fast it is made good."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from shutil import which
from typing import Any

from edgeasd.publish.intake import Intake
from edgeasd.publish.outbox import Outbox
from tests.rig.broker import NO_MOSQUITTO, Broker, BrokerSetup, Received, Subscriber, wait_for
from tests.rig.bursts import bursty_node, needs
from tests.rig.promise import Measured, Promise
from tests.system.mqtt_rig import ROOT, score

_DURABLE = BrokerSetup(persistence=True, lines=("max_queued_messages 0",))
_MB = 1_000_000


def drain_backlog(scratch: Path, *, rows: int, outage_s: float, fresh_s: float) -> Measured:
    """Start a node with a backlog and no broker; let the broker come back; watch the backlog go and news come."""
    wanted = _prepare(scratch / "node" / "state", rows)
    with Broker(scratch / "broker", _DURABLE) as broker, Subscriber(broker.port) as subscriber:
        broker.stop()
        with bursty_node(scratch, port=broker.port) as (node, rig):
            threading.Event().wait(outage_s)
            back_s = time.monotonic()
            broker.start()
            connected_s = subscriber.wait(len, suffix="/n1/status", timeout_s=90.0)[0].at_ns / 1e9
            backlog = subscriber.wait(lambda all_: len(all_) >= rows, suffix="/backlog/score", timeout_s=300.0)
            drained_s = backlog[-1].at_ns / 1e9
            rig.keep_sounding()
            threading.Event().wait(fresh_s)
            node.stop()
        ages_s = _ages_s(subscriber.messages("/event"))
        first_s = min(at_s for at_s in ages_s if at_s > drained_s) - drained_s
    rate = rows / (drained_s - connected_s)
    slowest_s = max(ages_s.values())
    text = (
        f"after {outage_s:.0f} s away: reconnected after {connected_s - back_s:.1f} s, {rows} rows in "
        f"{drained_s - connected_s:.1f} s ({rate:.0f}/s), first alert {first_s:.1f} s later; the slowest of "
        f"{len(ages_s)} fresh alerts, during the drain too, {slowest_s:.2f} s after its onset"
    )
    in_order = [each.json["id"] for each in backlog] == wanted
    kept = in_order and connected_s - back_s <= 65.0 and rate >= 200.0 and max(first_s, slowest_s) <= 2.0
    return Measured(text if in_order else f"{text}; NOT in order", kept=kept)


def _prepare(state_dir: Path, rows: int) -> list[str]:
    """Fill the outbox of a node that has not run yet, as an earlier run would have; return the ids in order."""
    with Outbox(state_dir) as outbox:
        intake = Intake(outbox.identity)
        parcels = []
        for number in range(rows):
            message = score(number)
            parcels += intake.accept(replace(message, topic="edgeasd/n1/backlog/score"))
        for start in range(0, rows, 64):
            assert outbox.put(parcels[start : start + 64], durable=False)
    return [parcel.id for parcel in parcels]


def _ages_s(events: list[Received]) -> dict[float, float]:
    """Return by the monotonic time of arrival how old each fresh alert was: from its onset to the subscriber."""
    offset_ns = time.time_ns() - time.monotonic_ns()
    started = [each for each in events if each.json["event_type"] == "start" and not each.json["late"]]
    return {each.at_ns / 1e9: (each.at_ns + offset_ns - each.json["ts_ns"]) / 1e9 for each in started}


def stay_small(scratch: Path, *, hours: float, speedup: int) -> Measured:
    """Keep the broker away from a publisher that is fed many times faster than life, and look at its memory."""
    with Broker(scratch / "broker") as broker, _fed(broker.port, scratch, speedup) as told:
        wait_for(lambda: told and told[-1]["connected"], what="a connection", timeout_s=30.0)
        broker.stop()
        began = len(told)
        until_second = told[-1]["second"] + hours * 3600.0
        wait_for(
            lambda: told[-1]["second"] >= until_second, what="the outage", timeout_s=60.0 + hours * 36_000 / speedup
        )
        outage = told[began:]
        broker.start()
        wait_for(lambda: told[-1]["spool_rows"] == 0, what="an empty outbox", timeout_s=300.0)
        spooled, dropped = outage[-1]["spool_rows"], told[-1]["dropped"]
        drain = told[began + len(outage) :]
    warm = len(outage) // 5
    base = max(each["rss_bytes"] for each in outage[: warm + 1])
    growth_mb = (max(each["rss_bytes"] for each in outage[warm:]) - base) / _MB
    waiting = max(each["waiting"] for each in outage)
    in_flight = max(each["in_flight"] for each in told)
    text = (
        f"{hours:g} h away at {speedup} x: {growth_mb:+.1f} MB on {base / _MB:.0f} MB, {waiting} messages in memory at "
        f"most, {spooled} in the outbox, {dropped} dropped; then drained with {in_flight} in flight at most "
        f"({len(drain)} looks)"
    )
    return Measured(text, kept=growth_mb <= 5.0 and in_flight <= 20 and dropped == 0)


@contextmanager
def _fed(port: int, scratch: Path, speedup: int) -> Iterator[list[dict[str, Any]]]:
    """Run the feeder; the list grows by what it tells."""
    told: list[dict[str, Any]] = []
    command = [sys.executable, "-m", "tests.rig.feeder", str(port), str(scratch / "state"), str(speedup)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (
        (scratch / "feeder.log").open("w") as log,
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        assert process.stdout is not None
        lines = process.stdout
        reader = threading.Thread(target=lambda: told.extend(json.loads(line) for line in lines), name="feeder")
        reader.start()
        try:
            yield told
        finally:
            process.terminate()
            process.wait(20.0)
            reader.join(10.0)


PROMISES = (
    Promise(
        number="P2",
        title="A backlog drains, and news do not wait for it",
        target="reconnected <= 65 s, >= 200 messages/s of 10 000 rows, fresh alert <= 2 s",
        run=drain_backlog,
        short={"rows": 2000, "outage_s": 0.5, "fresh_s": 2.0},
        long={"rows": 10_000, "outage_s": 180.0, "fresh_s": 30.0},
        needs=needs,
    ),
    Promise(
        number="P4",
        title="A long outage costs no memory",
        target="growth <= 5 MB in 1 h at 100 x; <= 20 in flight",
        run=stay_small,
        short={"hours": 0.06, "speedup": 100},
        long={"hours": 1, "speedup": 100},
        needs=lambda: None if which("mosquitto") else NO_MOSQUITTO,
    ),
)
