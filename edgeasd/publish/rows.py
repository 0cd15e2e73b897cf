"""The rows of the outbox: what goes in, what is read, and who goes first when there is no room."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from edgeasd.clock import NS_PER_S
from edgeasd.publish.lanes import LANES, Lane, any_event, lane_of, of_lane, whole_parcel, widen_gap
from edgeasd.publish.message import Parcel

log = logging.getLogger(__name__)

_CLOCK_WAS_SET_NS = 1_577_836_800 * NS_PER_S
"""2020-01-01: an earlier stamp is from a machine that did not know the time, and says nothing about age."""
_EXPIRE_ROWS = 4096
_MAX_ROW = 1 << 53


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


class Rows:
    """Works on the tables within transactions, and counts what they came to: `begin`, some work, `commit`."""

    def __init__(self, limits: OutboxLimits, *, utc_ns: Callable[[], int]) -> None:
        self._limits = limits
        self._utc_ns = utc_ns
        self._opened_s = time.monotonic()
        self._change = _Change()
        self._depth_when_full = limits.max_rows
        self._depth: Counter[str] = Counter()
        self._last_row: dict[Lane, int] = dict.fromkeys(LANES, 0)
        self._first_rows: dict[Lane, int] | None = None
        self.dropped = 0

    def begin(self) -> None:
        """Forget what a transaction that failed would have changed."""
        self._change = _Change()

    def commit(self) -> None:
        """Count what the transaction changed."""
        self._depth.update(self._change.depth)
        self._last_row.update({lane: row for lane, row in self._change.last_row.items() if lane in LANES})
        self.dropped += self._change.dropped

    def depth(self, lane: Lane | None = None) -> int:
        """Return the number of rows, in one lane or in both."""
        return self._depth[lane] if lane else self._depth["event"] + self._depth["score"]

    @property
    def roomy(self) -> bool:
        """Return whether a tenth of what was there when it was last full has gone since."""
        return self.depth() <= 0.9 * self._depth_when_full

    def last_row(self, lane: Lane) -> int:
        """Return the highest row ever used in a lane."""
        return self._last_row[lane]

    def count(self, db: sqlite3.Connection) -> None:
        """Read depth and highest row of both lanes from a file just opened; DatabaseError when they make no sense."""
        used = dict(db.execute("SELECT name, seq FROM sqlite_sequence"))
        last_row = {lane: used.get(lane, 0) for lane in LANES}
        if not all(isinstance(row, int) and 0 <= row < _MAX_ROW for row in last_row.values()):
            raise sqlite3.DatabaseError(f"rows are counted up to {last_row}")
        self._depth = Counter(
            {lane: db.execute(of_lane("SELECT COUNT(*) FROM LANE", lane)).fetchone()[0] for lane in LANES}
        )
        self._last_row = last_row
        self._first_rows = self._first_rows or dict(last_row)

    def go_on_counting(self, db: sqlite3.Connection) -> None:
        """Let the rows of a new file follow those of the corrupt one: parcels in flight still name these."""
        used = [(lane, row) for lane, row in self._last_row.items() if row]
        db.executemany("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", used)
        self.count(db)

    def insert(self, db: sqlite3.Connection, parcels: Sequence[Parcel]) -> None:
        """Add parcels, making room for them within the limit of rows."""
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

    def read(self, db: sqlite3.Connection, lane: Lane, *, after_row: int, limit: int) -> list[Parcel]:
        """Return up to `limit` parcels behind `after_row`; damaged ones, which SQLite does not see, are given up."""
        query = of_lane("SELECT topic, kind, body, id, row FROM LANE WHERE row > ? ORDER BY row LIMIT ?", lane)
        while found := db.execute(query, (after_row, limit)).fetchall():
            parcels = [(columns[-1], whole_parcel(columns)) for columns in found]
            damaged = [(row,) for row, parcel in parcels if parcel is None]
            if damaged:
                log.error("damaged messages in the outbox were given up count=%d", len(damaged))
                db.executemany(of_lane("DELETE FROM LANE WHERE row = ?", lane), damaged)
                self._change.depth[lane] -= len(damaged)
                self._change.dropped += len(damaged)
            if len(damaged) < len(found):
                return [parcel for _, parcel in parcels if parcel is not None]
        return []

    def delete(self, db: sqlite3.Connection, parcels: Sequence[Parcel]) -> None:
        """Remove parcels."""
        for parcel in parcels:
            lane = lane_of(parcel)
            statement = of_lane("DELETE FROM LANE WHERE row = ?", lane)
            self._change.depth[lane] -= db.execute(statement, (parcel.row,)).rowcount

    def set_aside(self, db: sqlite3.Connection, parcel: Parcel, reason: str) -> None:
        """Move a parcel to the quarantine; the oldest of too many are forgotten."""
        if parcel.row:
            self.delete(db, [parcel])
        cursor = db.execute(
            "INSERT INTO quarantine (id, topic, kind, body, reason, at_ns) VALUES (?, ?, ?, ?, ?, ?)",
            (parcel.id, parcel.topic, parcel.kind.value, parcel.body[:8192], reason, self._utc_ns()),
        )
        oldest_row = (cursor.lastrowid or 0) - self._limits.max_quarantined
        db.execute("DELETE FROM quarantine WHERE row <= ?", (oldest_row,))

    def evict(self, db: sqlite3.Connection, *, n_rows: int, events_may_go: bool) -> int:
        """Give up `n_rows` messages, those of less worth first; return how many rows went."""
        self._depth_when_full = self.depth()
        gone = self._evict_oldest(db, "score", n_rows)
        if gone < n_rows:
            gone += db.execute("DELETE FROM quarantine").rowcount
        if gone < n_rows and events_may_go:
            gone += self._evict_oldest(db, "event", n_rows - gone)
        return gone

    def expire(self, db: sqlite3.Connection) -> int:
        """Give up what is older than the limit of age; return how many rows went."""
        cutoff_ns = self._utc_ns() - round(self._limits.max_age_s * NS_PER_S)
        return sum(self._expire(db, lane, cutoff_ns) for lane in LANES)

    def _fitting(self, db: sqlite3.Connection, parcels: Sequence[Parcel]) -> Sequence[Parcel]:
        """Make room for parcels within the row limit; return those for which there is room, the newest."""
        limit, events_may_go = self._limits.max_rows, any_event(parcels)
        n_fit = limit if events_may_go else max(limit - self.depth("event"), 0)
        n_lost = max(len(parcels) - n_fit, 0)
        excess = self.depth() + len(parcels) - n_lost - limit
        if excess > 0:
            self.evict(db, n_rows=max(excess, limit // 100), events_may_go=events_may_go)
        if n_lost:
            widen_gap(db, [parcel.id for parcel in parcels[:n_lost]])
            self._change.dropped += n_lost
        return parcels[n_lost:]

    def _evict_oldest(self, db: sqlite3.Connection, lane: Lane, n_rows: int) -> int:
        found = db.execute(of_lane("SELECT row, id FROM LANE ORDER BY row LIMIT ?", lane), (n_rows,)).fetchall()
        if found:
            db.execute(of_lane("DELETE FROM LANE WHERE row <= ?", lane), (found[-1][0],))
            widen_gap(db, [message_id for _, message_id in found])
            self._change.depth[lane] -= len(found)
            self._change.dropped += len(found)
        return len(found)

    def _expire(self, db: sqlite3.Connection, lane: Lane, cutoff_ns: int) -> int:
        """Rows lie in the order in which they came, so what lies before one that is too old is too old as well."""
        oldest = db.execute(of_lane("SELECT row, accepted_ns FROM LANE ORDER BY row LIMIT ?", lane), (_EXPIRE_ROWS,))
        last_row = self._oldest_possible(lane)
        n_expired = 0
        for number, (row, accepted_ns) in enumerate(oldest, start=1):
            if row > last_row or not isinstance(accepted_ns, int) or accepted_ns >= cutoff_ns:
                break
            if accepted_ns >= _CLOCK_WAS_SET_NS:
                n_expired = number
        return self._evict_oldest(db, lane, n_expired)

    def _oldest_possible(self, lane: Lane) -> int:
        """Return the last row that may be too old: what came in this run is not, wherever the clock has jumped to."""
        young = time.monotonic() - self._opened_s < self._limits.max_age_s
        return self._first_rows[lane] if young and self._first_rows else _MAX_ROW
