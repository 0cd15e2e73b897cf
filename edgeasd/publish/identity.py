"""Who speaks: the node's lasting uuid, the count of its boots, and the lock that keeps a second process out."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from edgeasd.errors import CannotWriteError, TemporaryError

log = logging.getLogger(__name__)

_IDENTITY_FILE = "identity.json"
_LOCK_FILE = "lock"


@dataclass(frozen=True, slots=True)
class Identity:
    """What makes message ids unique for ever: no two boots share both fields."""

    node_uuid: str
    boot_epoch: int

    def message_id(self, number: int) -> str:
        """Return the id of the `number`-th message of this boot."""
        return f"{self.node_uuid}:{self.boot_epoch}:{number}"


def passing_identity() -> Identity:
    """Return an identity for a process that keeps no state: unique, but unknown tomorrow."""
    return Identity(str(uuid.uuid4()), 0)


def id_order(message_id: str) -> tuple[int, int]:
    """Return (boot, number), by which the ids of one node sort."""
    _, boot_epoch, number = message_id.rsplit(":", 2)
    return int(boot_epoch), int(number)


class StateLock:
    """Holds a state directory for this process alone, made if need be; refuses with TemporaryError if it is taken."""

    def __init__(self, directory: Path) -> None:
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd = os.open(directory / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise CannotWriteError(f"state directory {directory}: {exc.strerror}") from exc
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            holder = os.pread(self._fd, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._fd)
            raise TemporaryError(f"state directory {directory} is in use by another edgeasd, process {holder}") from exc
        self._note_holder()

    def close(self) -> None:
        """Let the directory go."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _note_holder(self) -> None:
        try:
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)
        except OSError as exc:  # a full disk: the lock holds all the same
            log.debug("process id not noted in the lock file: %s", exc)


def next_boot(directory: Path) -> Identity:
    """Return the identity of this boot, on disk before it is used; a fresh uuid where it cannot be read or written.

    The caller holds the `StateLock` of the directory.
    """
    path = directory / _IDENTITY_FILE
    try:
        known = json.loads(path.read_bytes())
        identity = Identity(str(uuid.UUID(known["node_uuid"])), int(known["boot_epoch"]) + 1)
    except FileNotFoundError:
        identity = Identity(str(uuid.uuid4()), 1)
    except (OSError, ValueError, KeyError, TypeError) as exc:
        log.warning("%s is unreadable, the node gets a new uuid: %s", path, exc)
        identity = Identity(str(uuid.uuid4()), 1)
    try:
        _write_durably(path, identity)
    except OSError as exc:
        log.warning("%s cannot be written, this run speaks under a passing uuid: %s", path, exc.strerror)
        return passing_identity()
    return identity


def _write_durably(path: Path, identity: Identity) -> None:
    fresh = path.with_suffix(".new")
    text = json.dumps({"node_uuid": identity.node_uuid, "boot_epoch": identity.boot_epoch})
    with fresh.open("w", encoding="ascii") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    directory_fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory_fd)
    finally:
        os.close(directory_fd)
