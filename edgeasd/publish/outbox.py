"""The outbox: messages on disk until the broker has them.

A crash of the process loses nothing that was put; a power cut loses nothing that was put durably.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from edgeasd.errors import CannotWriteError
from edgeasd.publish.database import Database, FullError, RefusedError, RestartedError
from edgeasd.publish.identity import Identity, StateLock, next_boot, passing_identity
from edgeasd.publish.lanes import (
    SCHEMA,
    SCHEMA_VERSION,
    Lane,
    any_event,
    gap_of,
    joined,
    read_gap,
    write_gap,
)
from edgeasd.publish.message import GapRecord, Parcel
from edgeasd.publish.rows import OutboxLimits, Rows

__all__ = ["Outbox", "OutboxLimits"]

log = logging.getLogger(__name__)

T = TypeVar("T")

_ATTEMPTS = 8
_TEND_EVERY_S = 1.0


class Outbox:
    """Holds a state directory, and in it the messages that the broker does not have yet, in two lanes.

    Bound: `OutboxLimits`. Policy when full: the oldest scores go first, then quarantined messages, then the oldest
    events. Counters: `dropped`, `quarantined`; what was dropped is also written down as one growing gap record until
    somebody settles it. A corrupt file is set aside and a new one begun. May be used by several threads.
    """

    def __init__(
        self,
        directory: Path,
        *,
        limits: OutboxLimits | None = None,
        utc_ns: Callable[[], int] = time.time_ns,
        expire_every_s: float = 60.0,
    ) -> None:
        limits = limits or OutboxLimits()
        self._rows = Rows(limits, utc_ns=utc_ns)
        self._lock = threading.Lock()
        self._telling = threading.Lock()
        self._owed: list[Parcel] = []
        self._untold: GapRecord | None = None
        self._expire_every_s = expire_every_s
        self._expired_s = -expire_every_s
        self._refused = False
        self._tended_s = 0.0
        self.quarantined = 0
        self._state_lock = StateLock(directory)
        try:
            held = self._state_lock.held
            self.identity: Identity = next_boot(directory) if held else passing_identity()
            self._database = Database(
                directory / "outbox.db" if held else None,
                schema=SCHEMA,
                schema_version=SCHEMA_VERSION,
                max_bytes=limits.max_bytes,
            )
            self._count()
        except BaseException:
            self._state_lock.close()
            raise

    @property
    def durable(self) -> bool:
        """Return whether the messages lie on a disk, and the disk took the last of them."""
        return self._database.on_disk and not self._refused

    @property
    def dropped(self) -> int:
        """Return how many messages were given up."""
        return self._rows.dropped

    @property
    def recorded(self) -> int:
        """Return how many of the dropped messages the gap record holds, or held before it was settled."""
        return self.dropped - (self._untold.count if self._untold else 0)

    def depth(self, lane: Lane | None = None) -> int:
        """Return the number of messages held, in one lane or in both."""
        return self._rows.depth(lane)

    @property
    def roomy(self) -> bool:
        """Return whether a tenth of what was there when the outbox was last full has gone since."""
        return self._rows.roomy

    def last_row(self, lane: Lane) -> int:
        """Return the highest row ever used in a lane; rows only grow, across restarts too."""
        return self._rows.last_row(lane)

    def put(self, parcels: Sequence[Parcel], *, durable: bool) -> bool:
        """Commit parcels, all or none, making room if need be; return False when the disk takes nothing.

        With `durable` they survive a power cut too, which costs a wait for the disk.
        """
        try:
            self._expire_sometimes()
            self._write(lambda db: self._rows.insert(db, parcels), durable=durable, events_may_go=any_event(parcels))
        except (FullError, RefusedError) as exc:
            if not self._refused:
                log.warning("the outbox takes no messages, they are kept in memory: %s", exc)
            self._refused = True
            return False
        self._refused = False
        self._tell()
        return True

    def rows(self, lane: Lane, *, after_row: int, limit: int) -> list[Parcel] | None:
        """Return up to `limit` parcels of a lane behind `after_row`, oldest first; None when the disk fails.

        Rows that are damaged, without SQLite having seen it, are dropped and counted.
        """
        try:
            return self._write(lambda db: self._rows.read(db, lane, after_row=after_row, limit=limit))
        except (FullError, RefusedError) as exc:
            log.debug("the outbox cannot be read: %s", exc)
            return None

    def remove(self, parcels: Sequence[Parcel]) -> None:
        """Forget parcels that the broker has; on a disk that refuses, try again with the next ones."""
        self._owed.extend(parcels)
        try:
            self._write(lambda db: self._rows.delete(db, self._owed))
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
            self._write(lambda db: self._rows.set_aside(db, parcel, reason))
        except (FullError, RefusedError) as exc:
            log.warning("a quarantined message is lost: %s id=%s", exc, parcel.id)

    def gap(self) -> GapRecord | None:
        """Return what was dropped since the last settled gap."""
        try:
            return self._write(read_gap)
        except (FullError, RefusedError):
            return None

    def settle_gap(self, parcel: Parcel) -> bool:
        """Exchange the gap record for the message that tells of it, in one transaction; return whether that worked."""

        def exchange(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM gap")  # first: making room for the message may begin the next gap
            self._rows.insert(db, [parcel])

        try:
            self._write(exchange, events_may_go=True)
        except (FullError, RefusedError):
            return False
        return True

    def note_dropped(self, ids: Sequence[str]) -> None:
        """Count messages that were given up before they reached the disk, and add them to the gap record."""
        with self._telling:
            with self._lock:
                self._rows.dropped += len(ids)
            self._untold = joined(self._untold, gap_of(ids))
        self._tell()

    def tend(self) -> None:
        """Try again, once a second, what the disk has refused: forgetting what was delivered, noting what was dropped.

        Called by the thread that calls `remove`.
        """
        now_s = time.monotonic()
        if now_s - self._tended_s < _TEND_EVERY_S:
            return
        self._tended_s = now_s
        if self._owed:
            self.remove([])
        self._tell()

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
                    self._database.transaction(self._rows.go_on_counting)
                except FullError:
                    n_rows = max(64, self.depth() // 20)
                    if not self._commit(partial(self._rows.evict, n_rows=n_rows, events_may_go=events_may_go)):
                        raise
            raise RefusedError(f"no success in {_ATTEMPTS} attempts")

    def _commit(self, work: Callable[[sqlite3.Connection], T], *, durable: bool = False) -> T:
        self._rows.begin()
        result = self._database.transaction(work, durable=durable)
        self._rows.commit()
        return result

    def _count(self) -> None:
        try:
            for _ in range(_ATTEMPTS):
                with suppress(RestartedError):
                    return self._database.transaction(self._rows.count)
        except (FullError, RefusedError) as exc:
            raise CannotWriteError(f"the outbox cannot be read: {exc}") from exc
        raise CannotWriteError("the outbox cannot be read, nor another begun")

    def _tell(self) -> None:
        """Write down which messages never reached the disk; where it refuses, with the next that it takes."""
        with self._telling:
            if self._untold is None:
                return
            try:
                self._write(lambda db: write_gap(db, joined(read_gap(db), self._untold)))
            except (FullError, RefusedError) as exc:
                log.debug("gap not recorded: %s", exc)
            else:
                self._untold = None

    def _expire_sometimes(self) -> None:
        now_s = time.monotonic()
        if now_s - self._expired_s < self._expire_every_s:
            return
        self._expired_s = now_s
        gone = self._write(self._rows.expire)
        if gone:
            log.warning("messages that were too old were given up count=%d", gone)
