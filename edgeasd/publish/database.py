"""One bounded SQLite file that survives crashes, full disks and its own corruption."""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from edgeasd.errors import CannotWriteError

log = logging.getLogger(__name__)

T = TypeVar("T")

_PAGE_BYTES = 4096
_PAGES_SHARE = 0.75
"""Of the byte limit; the rest is for the write-ahead log and the shared-memory file."""
_CODE_MASK = 0xFF
_BUSY_S = 0.25
"""How long a put may wait for somebody else, a backup say, who holds the file."""
_CORRUPT_CODES = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_PASSING_CODES = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
"""Troubles of the disk, not of its operator: they must not keep the node from listening."""
_FORBIDDEN_CODES = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_NOMEM)
"""For the operator to put right. What is in neither list is in the file."""
_COMPACT_PAGES = 256
"""Free pages worth the shrinking: 1 MiB."""


class FullError(Exception):
    """Raised when the file is at its bound, or the disk is full."""


class RefusedError(Exception):
    """Raised when the disk does not work: an I/O error, a read-only remount."""


class RestartedError(Exception):
    """Raised when the file was corrupt and has been replaced by an empty one."""


class Database:
    """Runs transactions on a file of at most `max_bytes`, write-ahead log included; used by one thread at a time.

    A file that is corrupt, is laid out differently or was written by a newer edgeasd is renamed (the newest such file
    is kept, older ones go), and a new one begun. Without a path, and where the disk takes no new file, the database
    lives in memory: `on_disk` is then false.
    """

    def __init__(self, path: Path | None, *, schema: str, schema_version: int, max_bytes: int) -> None:
        self._path = path
        self._schema = schema
        self._schema_version = schema_version
        self._max_pages = max(32, int(max_bytes * _PAGES_SHARE) // _PAGE_BYTES)
        self._durable: bool | None = None
        self.on_disk = path is not None
        self._db = self._open_or_restart()

    def transaction(self, work: Callable[[sqlite3.Connection], T], *, durable: bool = False) -> T:
        """Run `work` and commit; with `durable` the commit is on the medium, not only with the kernel."""
        try:
            self._set_durable(durable=durable)
            with self._begun() as db:
                return work(db)
        except (sqlite3.DatabaseError, UnicodeDecodeError) as exc:
            code = _code(exc)
            if code == sqlite3.SQLITE_FULL:
                raise FullError(str(exc)) from exc
            if code in _CORRUPT_CODES:
                self._db = self._restart(exc)
                raise RestartedError(str(exc)) from exc
            raise RefusedError(str(exc)) from exc

    def compact(self) -> None:
        """Give unused pages back to the disk when there are many; cheap only while few rows are left."""
        with suppress(sqlite3.Error):  # best effort: the bound holds without it
            (free_pages,) = self._db.execute("PRAGMA freelist_count").fetchone()
            if free_pages > _COMPACT_PAGES:
                self._db.execute("VACUUM")
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Close the file; the last connection folds the write-ahead log back in."""
        with suppress(sqlite3.Error):
            self._db.close()

    @contextmanager
    def _begun(self) -> Iterator[sqlite3.Connection]:
        self._db.execute("BEGIN")  # not IMMEDIATE: what only reads need not wait for a program that writes
        try:
            yield self._db
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # SQLite has already rolled back after some errors
                with suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
            raise

    def _set_durable(self, *, durable: bool) -> None:
        if durable is not self._durable:
            self._db.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
            self._durable = durable

    def _open_or_restart(self) -> sqlite3.Connection:
        if self._path is None:
            return self._open(":memory:")
        try:
            return self._open(str(self._path))
        except (sqlite3.DatabaseError, UnicodeDecodeError) as exc:
            code = _code(exc)
            if code in _PASSING_CODES:
                return self._open_in_memory(exc)
            # A file can say of itself that it may only be read.
            if code in _FORBIDDEN_CODES and not (code == sqlite3.SQLITE_READONLY and os.access(self._path, os.W_OK)):
                raise CannotWriteError(f"{self._path}: {exc}") from exc
            return self._restart(exc)

    def _restart(self, fault: Exception) -> sqlite3.Connection:
        """Set the file aside and begin a new one, in memory where the disk does not even allow that."""
        assert self._path is not None, "memory does not go corrupt"
        if hasattr(self, "_db"):
            self.close()
        self._durable = None
        aside = self._path.with_name(f"{self._path.name}.corrupt-{time.time_ns()}")
        log.error("%s is unusable (%s), set aside as %s", self._path, " ".join(str(fault).split()), aside.name)
        try:
            for older in self._path.parent.glob(f"{self._path.name}.corrupt-*"):
                older.unlink(missing_ok=True)
            self._path.rename(aside)
            for suffix in ("-wal", "-shm"):
                self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
            return self._open(str(self._path))
        except (sqlite3.Error, OSError) as exc:
            return self._open_in_memory(exc)

    def _open_in_memory(self, fault: Exception) -> sqlite3.Connection:
        log.error("%s: %s; in this run messages are kept in memory only", self._path, fault)
        self.on_disk = False
        return self._open(":memory:")

    def _open(self, name: str) -> sqlite3.Connection:
        db = sqlite3.connect(name, timeout=_BUSY_S, isolation_level=None, check_same_thread=False, cached_statements=32)
        db.text_factory = _text
        try:
            db.execute(f"PRAGMA page_size={_PAGE_BYTES}")
            db.execute("PRAGMA journal_mode=WAL")
            db.execute(f"PRAGMA max_page_count={self._max_pages}")
            db.execute(f"PRAGMA wal_autocheckpoint={max(16, self._max_pages // 16)}")
            db.execute(f"PRAGMA journal_size_limit={_PAGE_BYTES * max(16, self._max_pages // 16)}")
            db.execute("PRAGMA cache_size=-512")
            self._check(db)
        except BaseException:
            db.close()
            raise
        return db

    def _check(self, db: sqlite3.Connection) -> None:
        """Lay out a new file; refuse one that is damaged or laid out in another way."""
        (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
        if version > self._schema_version:
            raise sqlite3.DatabaseError(f"schema {version} is newer than {self._schema_version}")
        _try_to_write(db, version)
        if not _layout(db):
            db.executescript(f"BEGIN IMMEDIATE; {self._schema} PRAGMA user_version={self._schema_version}; COMMIT")
        with closing(sqlite3.connect(":memory:")) as model:
            model.executescript(self._schema)
            if _layout(db) != _layout(model):
                raise sqlite3.DatabaseError("it holds other tables than an outbox has")


def _try_to_write(db: sqlite3.Connection, version: int) -> None:
    """Begin to write and take it back: a damaged header can say that the file may only be read; nothing else tells."""
    try:
        db.execute("BEGIN IMMEDIATE")
        try:
            db.execute(f"PRAGMA user_version={version}")
        finally:
            db.execute("ROLLBACK")
    except sqlite3.OperationalError as exc:
        if _code(exc) != sqlite3.SQLITE_BUSY:  # somebody else writes, so it can be written
            raise


def _layout(db: sqlite3.Connection) -> list[tuple[str, ...]]:
    return db.execute("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY name").fetchall()


def _code(exc: Exception) -> int:
    """Return the primary result code; errors that do not come from SQLite itself tell of a file that makes no sense."""
    return int(getattr(exc, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)) & _CODE_MASK


def _text(raw: bytes) -> str:
    return raw.decode(errors="replace")
