"""Who speaks: the node's lasting uuid, the count of its boots, and the lock that keeps a second process out."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from edgeasd.disk import read_small, replace_file
from edgeasd.errors import CannotWriteError, TemporaryError

log = logging.getLogger(__name__)

_IDENTITY_FILE = "identity.json"
_MAX_IDENTITY_BYTES = 4096
_MAX_EPOCH = 1 << 52
_LOCK_FILE = "lock"
_DISK_TROUBLE = (errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO)
"""What a disk does when it is full or dying; anything else about the directory is for the operator to put right."""


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
    """Holds a state directory for this process alone, made if need be; refuses with TemporaryError if it is taken.

    On a disk that takes no file at all nothing can be held: `held` is then false.
    """

    def __init__(self, directory: Path) -> None:
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd = os.open(directory / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            if exc.errno not in _DISK_TROUBLE:
                raise CannotWriteError(f"state directory {directory}: {exc.strerror}") from exc
            log.warning("state directory %s: %s; nothing is kept on disk in this run", directory, exc.strerror)
            self._fd = -1
            return
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            holder = os.pread(self._fd, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._fd)
            raise TemporaryError(f"state directory {directory} is in use by another edgeasd, process {holder}") from exc
        self._note_holder()

    @property
    def held(self) -> bool:
        """Return whether the directory is held."""
        return self._fd >= 0

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
    known = _known(path)
    identity = Identity(str(uuid.uuid4()), 1) if known is None else Identity(known.node_uuid, known.boot_epoch + 1)
    text = json.dumps({"node_uuid": identity.node_uuid, "boot_epoch": identity.boot_epoch})
    try:
        for left_behind in directory.glob(f".{_IDENTITY_FILE}.*"):  # by a kill in the middle of this
            left_behind.unlink()
        replace_file(path, f"{text}\n".encode(), mode=0o600)
    except (OSError, CannotWriteError) as exc:
        log.warning("this run speaks under a passing uuid: %s", exc)
        return passing_identity()
    return identity


def _known(path: Path) -> Identity | None:
    """Return the identity of the last boot; None where there is none that makes sense."""
    try:
        known = json.loads(read_small(path, max_bytes=_MAX_IDENTITY_BYTES))
        node_uuid, boot_epoch = str(uuid.UUID(known["node_uuid"])), known["boot_epoch"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as exc:
        log.warning("%s is unreadable, the node gets a new uuid: %s", path, exc)
        return None
    if isinstance(boot_epoch, bool) or not isinstance(boot_epoch, int) or not 0 < boot_epoch < _MAX_EPOCH:
        log.warning("%s counts boots in a way nobody can, the node gets a new uuid", path)
        return None
    return Identity(node_uuid, boot_epoch)
