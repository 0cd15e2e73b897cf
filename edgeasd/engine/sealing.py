"""Files that only this node can have written: sealed with a secret, and read with suspicion.

A sealed file: magic, HMAC-SHA256 of all that follows it and of the magic, length of the key, key, content.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
from pathlib import Path

_MAGIC = b"EDGEASD sealed 1"
_SEAL_END = len(_MAGIC) + hashlib.sha256().digest_size
_KEY_START = _SEAL_END + 4
_MAX_KEY_BYTES = 4096


def seal(key: bytes, content: bytes, secret: bytes) -> bytes:
    """Return the file that says: whoever knows the secret has put this content under this key."""
    assert len(key) <= _MAX_KEY_BYTES, "keys are short"
    head = len(key).to_bytes(_KEY_START - _SEAL_END, "big") + key
    return b"".join((_MAGIC, _stamp(head, content, secret), head, content))


def key_of(data: bytes) -> bytes:
    """Return the key that a file claims to be under; ValueError when it claims none."""
    n_bytes = int.from_bytes(data[_SEAL_END:_KEY_START], "big")
    if not data.startswith(_MAGIC) or n_bytes > min(_MAX_KEY_BYTES, len(data) - _KEY_START):
        raise ValueError("is not something that edgeasd has sealed")
    return data[_KEY_START : _KEY_START + n_bytes]


def unseal(data: bytes, secret: bytes, *, key: bytes) -> bytes:
    """Return the content of a sealed file; ValueError unless it was sealed with this secret under this key."""
    if key_of(data) != key:
        raise ValueError("is sealed under another key")
    content_start = _KEY_START + len(key)
    content = data[content_start:]
    stamp = _stamp(data[_SEAL_END:content_start], content, secret)
    if not hmac.compare_digest(data[len(_MAGIC) : _SEAL_END], stamp):
        raise ValueError("was not built by this node, or has been changed since")
    return content


def read_ours(path: Path, *, max_bytes: int) -> bytes:
    """Return a file that nobody but us or root may read or write; OSError or ValueError for others, without waiting."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > max_bytes:
            raise ValueError(f"is not a file of at most {max_bytes} bytes")
        check_ours(status, forbidden=stat.S_IRWXG | stat.S_IRWXO)
        return file.read(status.st_size)


def check_ours(status: os.stat_result, *, forbidden: int) -> None:
    """Raise ValueError unless the file or folder belongs to us or to root, and has none of the forbidden mode bits."""
    if status.st_uid not in (0, os.geteuid()):
        raise ValueError(f"belongs to user {status.st_uid}, not to the one that runs edgeasd")
    if status.st_mode & forbidden:
        raise ValueError(f"is open to others: mode {stat.S_IMODE(status.st_mode):04o}")


def _stamp(head: bytes, content: bytes, secret: bytes) -> bytes:
    stamp = hmac.new(secret, _MAGIC + head, "sha256")
    stamp.update(content)
    return stamp.digest()
