"""The outbox: messages on disk until the broker has them.

A crash of the process loses nothing that was put; a power cut loses nothing that was put durably.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from edgeasd.clock import NS_PER_S
from edgeasd.publish.database import Database, FullError, RefusedError, RestartedError
from edgeasd.publish.identity import Identity, StateLock, next_boot
from edgeasd.publish.lanes import LANES, SCHEMA, SCHEMA_VERSION, Lane, any_event, lane_of, of_lane, widen_gap
from edgeasd.publish.message import GapRecord, Kind, Parcel

log = logging.getLogger(__name__)

T = TypeVar("T")

_CLOCK_WAS_SET_NS = 1_577_836_800 * NS_PER_S
"""2020-01-01: an earlier stamp is from a machine that did not know the time, and says nothing about age."""
_EXPIRE_EVERY_S = 60.0
_EXPIRE_ROWS = 4096
_ATTEMPTS = 8


@dataclass(frozen=True, slots=True)
class OutboxLimits:
    """What the outbox may hold; whichever bound is met first counts."""

    max_rows: int = 100_000
    max_bytes: int = 64 << 20
    """Of all files together, write-ahead log included."""
    max_age_s: float = 7 * 86400.0
    max_quarantined: int = 1000


@dataclass(slots=True)
class _Change:
    """What a transaction alters, counted only once it is committed."""

    depth: Counter[str] = field(default_factory=Counter)
    last_row: dict[str, int] = field(default_factory=dict)
    dropped: int = 0


class Outbox:
    """Holds a state directory, and in it the messages that the broker does not have yet, in two lanes.

    Bound: `OutboxLimits`. Policy when full: the oldest scores go first, then quarantined messages, then the oldest
    events. Counters: `dropped`, `quarantined`; what was dropped is also written down as one growing gap record until
    somebody settles it. A corrupt file is set aside and a new one begun. May be used by several threads.
    """

    def __init__(
        self, directory: Path, *, limits: OutboxLimits | None = None, utc_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self._limits = limits or OutboxLimits()
        self._utc_ns = utc_ns
        self._lock = threading.Lock()
        self._change = _Change()
        self._owed: list[Parcel] = []
        self._expired_s = -_EXPIRE_EVERY_S
        self._refused = False
        self._depth_when_full = self._limits.max_rows
        self.dropped = 0
        self.quarantined = 0
        self._state_lock = StateLock(directory)
        try:
            self.identity: Identity = next_boot(directory)
            self._database = Database(
                directory / "outbox.db",
                schema=SCHEMA,
                schema_version=SCHEMA_VERSION,
                max_bytes=self._limits.max_bytes,
            )
            self._count()
        except BaseException:
            self._state_lock.close()
            raise

    @property
    def durable(self) -> bool:
        """Return whether the messages lie on a disk, and the disk took the last of them."""
        return self._database.on_disk and not self._refused

    def depth(self, lane: Lane | None = None) -> int:
        """Return the number of messages held, in one lane or in both."""
        return self._depth[lane] if lane else self._depth["event"] + self._depth["score"]

    @property
    def roomy(self) -> bool:
        """Return whether a tenth of what was there when the outbox was last full has gone since."""
        return self.depth() <= 0.9 * self._depth_when_full

    def last_row(self, lane: Lane) -> int:
        """Return the highest row ever used in a lane; rows only grow, across restarts too."""
        return self._last_row[lane]

    def put(self, parcels: Sequence[Parcel], *, durable: bool) -> bool:
        """Commit parcels, all or none, making room if need be; return False when the disk takes nothing.

        With `durable` they survive a power cut too, which costs a wait for the disk.
        """
        try:
            self._expire_sometimes()
            self._write(lambda db: self._insert(db, parcels), durable=durable, events_may_go=any_event(parcels))
        except (FullError, RefusedError) as exc:
            if not self._refused:
                log.warning("the outbox takes no messages, they are kept in memory: %s", exc)
            self._refused = True
            return False
        self._refused = False
        return True

    def rows(self, lane: Lane, *, after_row: int, limit: int) -> list[Parcel] | None:
        """Return up to `limit` parcels of a lane behind `after_row`, oldest first; None when the disk fails."""
        query = of_lane("SELECT topic, kind, body, id, row FROM LANE WHERE row > ? ORDER BY row LIMIT ?", lane)
        try:
            found = self._write(lambda db: db.execute(query, (after_row, limit)).fetchall())
        except (FullError, RefusedError) as exc:
            log.debug("the outbox cannot be read: %s", exc)
            return None
        return [Parcel(topic, Kind(kind), body, id=message_id, row=row) for topic, kind, body, message_id, row in found]

    def remove(self, parcels: Sequence[Parcel]) -> None:
        """Forget parcels that the broker has; on a disk that refuses, try again with the next ones."""
        self._owed.extend(parcels)
        try:
            self._write(lambda db: self._delete(db, self._owed))
        except (FullError, RefusedError) as exc:
            log.debug("delivered messages are still in the outbox: %s", exc)
            return
        self._owed.clear()
        if not self.depth():
            with self._lock:
                self._database.compact()

    def quarantine(self, parcel: Parcel, *, reason: str) -> None:
        """Set a parcel aside for good, with the reason; the oldest of too many are forgotten."""
        self.quarantined += 1
        try:
            self._write(lambda db: self._set_aside(db, parcel, reason))
        except (FullError, RefusedError) as exc:
            log.warning("a quarantined message is lost: %s id=%s", exc, parcel.id)

    def gap(self) -> GapRecord | None:
        """Return what was dropped since the last settled gap."""
        try:
            found = self._write(lambda db: db.execute("SELECT from_id, to_id, count FROM gap").fetchone())
        except (FullError, RefusedError):
            return None
        return GapRecord(*found) if found else None

    def settle_gap(self, parcel: Parcel) -> bool:
        """Exchange the gap record for the message that tells of it, in one transaction; return whether that worked."""

        def exchange(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM gap")  # first: making room for the message may begin the next gap
            self._insert(db, [parcel])

        try:
            self._write(exchange, events_may_go=True)
        except (FullError, RefusedError):
            return False
        return True

    def note_dropped(self, ids: Sequence[str]) -> None:
        """Count messages that were given up before they reached the disk, and add them to the gap record."""
        self.dropped += len(ids)
        try:
            self._write(lambda db: widen_gap(db, ids))
        except (FullError, RefusedError) as exc:
            log.debug("gap not recorded: %s", exc)

    def close(self) -> None:
        """Close the file and let the state directory go."""
        with self._lock:
            self._database.close()
        self._state_lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _write(
        self, work: Callable[[sqlite3.Connection], T], *, durable: bool = False, events_may_go: bool = False
    ) -> T:
        """Commit `work`; when the file is full make room and try again, for an event even at the cost of older ones."""
        with self._lock:
            for _ in range(_ATTEMPTS):
                try:
                    return self._commit(work, durable=durable)
                except RestartedError:
                    self._go_on_counting()
                except FullError:
                    n_rows = max(64, self.depth() // 20)
                    if not self._commit(partial(self._evict, n_rows=n_rows, events_may_go=events_may_go)):
                        raise
            raise RefusedError(f"no success in {_ATTEMPTS} attempts")

    def _commit(self, work: Callable[[sqlite3.Connection], T], *, durable: bool = False) -> T:
        self._change = change = _Change()
        result = self._database.transaction(work, durable=durable)
        self._depth.update(change.depth)
        self._last_row.update(change.last_row)
        self.dropped += change.dropped
        return result

    def _go_on_counting(self) -> None:
        """Let the rows of a new file follow those of the corrupt one: parcels in flight still name these."""
        used = [(lane, row) for lane, row in self._last_row.items() if row]
        statement = "INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)"
        self._database.transaction(lambda db: db.executemany(statement, used))
        self._count()

    def _count(self) -> None:
        """Read depth and highest row of both lanes from a file just opened."""

        def read(db: sqlite3.Connection) -> tuple[Counter[str], dict[str, int]]:
            used = dict(db.execute("SELECT name, seq FROM sqlite_sequence"))
            depth = {lane: db.execute(of_lane("SELECT COUNT(*) FROM LANE", lane)).fetchone()[0] for lane in LANES}
            return Counter(depth), {lane: used.get(lane, 0) for lane in LANES}

        self._depth, self._last_row = self._database.transaction(read)

    def _insert(self, db: sqlite3.Connection, parcels: Sequence[Parcel]) -> None:
        parcels = self._fitting(db, parcels)
        now_ns = self._utc_ns()
        for parcel in parcels:
            lane = lane_of(parcel)
            cursor = db.execute(
                of_lane("INSERT INTO LANE (id, topic, kind, body, accepted_ns) VALUES (?, ?, ?, ?, ?)", lane),
                (parcel.id, parcel.topic, parcel.kind.value, parcel.body, now_ns),
            )
            self._change.depth[lane] += 1
            self._change.last_row[lane] = cursor.lastrowid or 0

    def _fitting(self, db: sqlite3.Connection, parcels: Sequence[Parcel]) -> Sequence[Parcel]:
        """Make room for parcels within the row limit; return those for which there is room, the newest."""
        limit, events_may_go = self._limits.max_rows, any_event(parcels)
        n_fit = limit if events_may_go else max(limit - self.depth("event"), 0)
        n_lost = max(len(parcels) - n_fit, 0)
        excess = self.depth() + len(parcels) - n_lost - limit
        if excess > 0:
            self._evict(db, n_rows=max(excess, limit // 100), events_may_go=events_may_go)
        if n_lost:
            widen_gap(db, [parcel.id for parcel in parcels[:n_lost]])
            self._change.dropped += n_lost
        return parcels[n_lost:]

    def _delete(self, db: sqlite3.Connection, parcels: Sequence[Parcel]) -> None:
        for parcel in parcels:
            lane = lane_of(parcel)
            self._change.depth[lane] -= db.execute(
                of_lane("DELETE FROM LANE WHERE row = ?", lane), (parcel.row,)
            ).rowcount

    def _set_aside(self, db: sqlite3.Connection, parcel: Parcel, reason: str) -> None:
        if parcel.row:
            self._delete(db, [parcel])
        cursor = db.execute(
            "INSERT INTO quarantine (id, topic, kind, body, reason, at_ns) VALUES (?, ?, ?, ?, ?, ?)",
            (parcel.id, parcel.topic, parcel.kind.value, parcel.body[:8192], reason, self._utc_ns()),
        )
        oldest_row = (cursor.lastrowid or 0) - self._limits.max_quarantined
        db.execute("DELETE FROM quarantine WHERE row <= ?", (oldest_row,))

    def _evict(self, db: sqlite3.Connection, *, n_rows: int, events_may_go: bool) -> int:
        """Give up `n_rows` messages, those of less worth first; return how many rows went."""
        self._depth_when_full = self.depth()
        gone = self._evict_oldest(db, "score", n_rows)
        if gone < n_rows:
            gone += db.execute("DELETE FROM quarantine").rowcount
        if gone < n_rows and events_may_go:
            gone += self._evict_oldest(db, "event", n_rows - gone)
        return gone

    def _evict_oldest(self, db: sqlite3.Connection, lane: Lane, n_rows: int) -> int:
        found = db.execute(of_lane("SELECT row, id FROM LANE ORDER BY row LIMIT ?", lane), (n_rows,)).fetchall()
        if found:
            db.execute(of_lane("DELETE FROM LANE WHERE row <= ?", lane), (found[-1][0],))
            widen_gap(db, [message_id for _, message_id in found])
            self._change.depth[lane] -= len(found)
            self._change.dropped += len(found)
        return len(found)

    def _expire_sometimes(self) -> None:
        now_s = time.monotonic()
        if now_s - self._expired_s < _EXPIRE_EVERY_S:
            return
        self._expired_s = now_s
        cutoff_ns = self._utc_ns() - round(self._limits.max_age_s * NS_PER_S)
        gone = self._write(lambda db: sum(self._expire(db, lane, cutoff_ns) for lane in LANES))
        if gone:
            log.warning("messages older than %.0f s were given up count=%d", self._limits.max_age_s, gone)

    def _expire(self, db: sqlite3.Connection, lane: Lane, cutoff_ns: int) -> int:
        oldest = db.execute(of_lane("SELECT accepted_ns FROM LANE ORDER BY row LIMIT ?", lane), (_EXPIRE_ROWS,))
        n_rows = 0
        for (accepted_ns,) in oldest:
            if not _CLOCK_WAS_SET_NS <= accepted_ns < cutoff_ns:
                break
            n_rows += 1
        return self._evict_oldest(db, lane, n_rows)
