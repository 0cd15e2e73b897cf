"""Small files that matter: replaced whole and for good, and read with suspicion."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from pathlib import Path

from edgeasd.errors import CannotWriteError


def replace_file(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Put a file in its place, whole or not at all, such that a power cut after the return does not undo it.

    CannotWriteError says why it could not be done; what was there before is there still.
    """
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(descriptor, mode)
                file.write(data)
                file.flush()
                os.fsync(descriptor)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        sync_directory(path.parent)
    except OSError as exc:
        raise CannotWriteError(f"{path}: cannot be written: {exc.strerror}") from exc


def sync_directory(directory: Path) -> None:
    """Wait until the names in a directory are on the disk: a rename is not before that."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as exc:
        if exc.errno != errno.EINVAL:  # a file system that has no such thing
            raise
    finally:
        os.close(descriptor)


def read_small(path: Path, *, max_bytes: int) -> bytes:
    """Return what a regular file of at most `max_bytes` holds; OSError for anything else, without waiting."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "is not a file")
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise OSError(errno.EFBIG, f"is longer than {max_bytes} bytes")
    return data
