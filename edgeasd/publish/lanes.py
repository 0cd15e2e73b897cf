"""How the outbox is laid out: two lanes of messages, a quarantine, and one gap record."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from typing import Literal

from edgeasd.publish.identity import id_order
from edgeasd.publish.message import GapRecord, Kind, Parcel

Lane = Literal["event", "score"]
LANES: tuple[Lane, Lane] = ("event", "score")

_COLUMNS = "row INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL, topic TEXT NOT NULL, kind TEXT NOT NULL"
SCHEMA_VERSION = 1
SCHEMA = f"""
CREATE TABLE IF NOT EXISTS event ({_COLUMNS}, body BLOB NOT NULL, accepted_ns INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS score ({_COLUMNS}, body BLOB NOT NULL, accepted_ns INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS quarantine ({_COLUMNS}, body BLOB NOT NULL, reason TEXT NOT NULL, at_ns INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS gap (only_row INTEGER PRIMARY KEY CHECK (only_row = 0),
    from_id TEXT NOT NULL, to_id TEXT NOT NULL, count INTEGER NOT NULL);
"""


def lane_of(parcel: Parcel) -> Lane:
    """Return the lane a parcel waits in."""
    return "score" if parcel.kind is Kind.SCORE else "event"


def any_event(parcels: Sequence[Parcel]) -> bool:
    """Return whether one of the parcels is more than a score."""
    return any(lane_of(parcel) == "event" for parcel in parcels)


def of_lane(statement: str, lane: Lane) -> str:
    """Return an SQL statement with its table in the place of `LANE`; no input ever gets there."""
    return statement.replace("LANE", lane)


def whole_parcel(columns: Sequence[object]) -> Parcel | None:
    """Return a row (topic, kind, body, id, row) as a parcel; None when it is damaged, which SQLite does not see."""
    topic, kind, body, message_id, row = columns
    assert isinstance(row, int)
    if not (isinstance(topic, str) and isinstance(body, bytes) and isinstance(message_id, str)):
        return None
    try:
        sound = _in_order(message_id) and isinstance(json.loads(body), dict)
        return Parcel(topic, Kind(str(kind)), body, id=message_id, row=row) if sound else None
    except (ValueError, RecursionError):
        return None


def read_gap(db: sqlite3.Connection) -> GapRecord | None:
    """Return the gap record, None where there is none or none that makes sense."""
    found = db.execute("SELECT from_id, to_id, count FROM gap").fetchone()
    whole = found and isinstance(found[2], int) and all(map(_in_order, found[:2]))
    return GapRecord(*found) if whole else None


def write_gap(db: sqlite3.Connection, gap: GapRecord | None) -> None:
    """Put a gap record in the place of the one that is there."""
    if gap is not None:
        row = (gap.from_id, gap.to_id, gap.count)
        db.execute("REPLACE INTO gap (only_row, from_id, to_id, count) VALUES (0, ?, ?, ?)", row)


def widen_gap(db: sqlite3.Connection, ids: Sequence[str]) -> None:
    """Add dropped messages to the gap record."""
    write_gap(db, joined(read_gap(db), gap_of(ids)))


def gap_of(ids: Sequence[str]) -> GapRecord | None:
    """Return the gap that dropped messages leave."""
    known = sorted(filter(_in_order, ids), key=id_order)
    return GapRecord(known[0], known[-1], len(ids)) if known else None


def joined(one: GapRecord | None, other: GapRecord | None) -> GapRecord | None:
    """Return the gap that holds both."""
    if one is None or other is None:
        return one or other
    ends = (one.from_id, one.to_id, other.from_id, other.to_id)
    return GapRecord(min(ends, key=id_order), max(ends, key=id_order), one.count + other.count)


def _in_order(message_id: object) -> bool:
    """Return whether an id is one, and not what a damaged page made of it."""
    try:
        id_order(str(message_id))
    except ValueError:
        return False
    return True
