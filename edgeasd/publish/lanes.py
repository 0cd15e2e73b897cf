"""How the outbox is laid out: two lanes of messages, a quarantine, and one gap record."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Literal

from edgeasd.publish.identity import id_order
from edgeasd.publish.message import Kind, Parcel

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


def widen_gap(db: sqlite3.Connection, ids: Sequence[str]) -> None:
    """Add dropped messages to the gap record."""
    known = db.execute("SELECT from_id, to_id, count FROM gap").fetchone()
    ends = [*ids, known[0], known[1]] if known else list(ids)
    count = len(ids) + (known[2] if known else 0)
    if ends:
        row = (min(ends, key=id_order), max(ends, key=id_order), count)
        db.execute("REPLACE INTO gap (only_row, from_id, to_id, count) VALUES (0, ?, ?, ?)", row)
