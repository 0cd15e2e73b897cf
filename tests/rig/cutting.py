"""Power cuts at every moment of a publisher's life, and what the outbox makes of what is left."""

from __future__ import annotations

import json
import random
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from edgeasd.publish.message import Kind, Parcel
from edgeasd.publish.outbox import Outbox
from tests.rig.disks import in_memory
from tests.rig.powercut import Call, Medium, record

_PUBLISHER = """
import os, sys
from pathlib import Path
from edgeasd.publish.mqtt import MqttPublisher
from edgeasd.publish.outbox import Outbox, OutboxLimits
from edgeasd.publish.target import MqttTarget
from tests.system.mqtt_rig import QUICK, WIRE, event, score

def say(*words):
    os.write(1, " ".join(words).encode() + b"\\n")

state, boots, events = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
for boot in range(1, boots + 1):
    outbox = Outbox(state, limits=OutboxLimits(max_bytes=1 << 20))
    publisher = MqttPublisher(MqttTarget("127.0.0.1", 1), wire=WIRE, outbox=outbox, options=QUICK)
    for number in range(events):
        publisher.publish(event(f"{boot}/{number}"))
        say("kept", f"{boot}/{number}")
        for other in range(8):
            publisher.publish(score(8 * number + other))
        if number % 10 == 9:
            delivered = outbox.rows("event", after_row=0, limit=4)
            for parcel in delivered:
                say("gone", str(parcel.row))
            outbox.remove(delivered)
    if boot < boots:
        publisher.close(5.0)
        outbox.close()
os._exit(0)
"""


@dataclass(slots=True)
class Cuts:
    """What many power cuts came to."""

    n_states: int = 0
    n_events: int = 0
    """That were acknowledged in the recorded run."""
    unopened: list[str] = field(default_factory=list)
    """Cuts after which the outbox did not open on the file it found, whole."""
    lost: list[str] = field(default_factory=list)
    """Cuts that cost an event that `put` had acknowledged."""
    confused: list[str] = field(default_factory=list)
    """Cuts after which the node takes itself for another, or uses an old boot number again."""


def cut_everywhere(scratch: Path, *, boots: int, events: int, variants: int) -> Cuts:
    """Record a publisher, and cut the power before each fsync of its life, `variants` times with torn writes."""
    state = scratch / "state"
    state.mkdir()
    arguments = [str(state), str(boots), str(events)]
    calls = record(_PUBLISHER, arguments, trace=scratch / "trace")
    medium, judge = Medium(state), _Judge(Cuts(), random.Random(20), variants)
    for call in calls:
        if medium.holds(call):
            if call.what == "sync":
                judge.cut(medium)
            medium.apply(call)
        elif call.data.startswith((b"kept ", b"gone ")):
            judge.hear(call)
    judge.cut(medium)
    return judge.cuts


class _Judge:
    """Knows what was acknowledged, and whether it is there after a cut."""

    def __init__(self, cuts: Cuts, chance: random.Random, variants: int) -> None:
        self.cuts = cuts
        self._chance = chance
        self._variants = variants
        self._kept: dict[int, str] = {}
        self._node_uuid: str | None = None

    def hear(self, call: Call) -> None:
        """Take note of what the publisher said."""
        word, name = call.data.decode().split()
        if word == "kept":
            self.cuts.n_events += 1
            self._kept[self.cuts.n_events] = name  # rows of the lane are counted from 1, without holes
        else:
            del self._kept[int(name)]

    def cut(self, medium: Medium) -> None:
        """Cut here: nothing that is not synchronised arrived, all of it did, and parts of it did."""
        self._try(medium, None, share=0.0)
        self._try(medium, None, share=1.0)
        for _ in range(self._variants):
            self._try(medium, self._chance, share=self._chance.choice((0.1, 0.5, 0.9)))

    def _try(self, medium: Medium, chance: random.Random | None, *, share: float) -> None:
        cuts = self.cuts
        cuts.n_states += 1
        with in_memory() as folder:
            medium.cut(folder, chance, share=share)
            whole = sorted(path.name for path in folder.iterdir())
            name = f"state {cuts.n_states} (share {share}, {', '.join(whole)})"
            with Outbox(folder) as outbox:
                self._judge(outbox, name)
            if list(folder.glob("*.corrupt-*")) or not _is_whole(folder / "outbox.db"):
                cuts.unopened.append(name)

    def _judge(self, outbox: Outbox, name: str) -> None:
        rows = outbox.rows("event", after_row=0, limit=100_000) or []
        held = {json.loads(parcel.body)["event_id"] for parcel in rows}
        if set(self._kept.values()) - held:
            self.cuts.lost.append(name)
        if not outbox.durable or not outbox.put([_fresh(outbox)], durable=True):
            self.cuts.unopened.append(name)
        boots = {int(parcel.id.split(":")[1]) for parcel in rows} | {int(n.split("/")[0]) for n in self._kept.values()}
        uuids = {parcel.id.split(":")[0] for parcel in rows}
        if boots and (uuids != {outbox.identity.node_uuid} or outbox.identity.boot_epoch <= max(boots)):
            self.cuts.confused.append(name)


def _fresh(outbox: Outbox) -> Parcel:
    return Parcel("t", Kind.EVENT, b"{}", id=outbox.identity.message_id(1), number=1)


def _is_whole(path: Path) -> bool:
    with closing(sqlite3.connect(path)) as db:
        return bool(db.execute("PRAGMA integrity_check").fetchone() == ("ok",))
