"""Append-only files of small fixed-size records, each with a check of its own.

A record says that data lies on disk, and is written after them. A process killed half-way leaves at most a torn last
record, a power cut records of zeros; neither passes the check, so neither is believed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

KEY_BYTES = 16
_WORD = np.dtype("<u8")
_ODD_STEP = 0x9E3779B97F4A7C15  # 2**64 divided by the golden ratio: what Fibonacci hashing multiplies by
_SALT = 0x6564676561736431

Keys = NDArray[np.bytes_]
"""Shape (n,), S16: digests, compared as bytes."""


def checked(*fields: tuple[str, str]) -> np.dtype[Any]:
    """Return the type of a record of these fields and its check; their sizes add up to whole words of 8 bytes."""
    record = np.dtype([*fields, ("check", "<u8")])
    assert record.itemsize % _WORD.itemsize == 0
    return record


def sealed(records: NDArray[Any]) -> bytes:
    """Return records (n,) as they go to disk, their checks filled in."""
    records["check"] = _checks(records)
    return records.tobytes()


def read_ledger(path: Path, record: np.dtype[Any]) -> tuple[NDArray[Any], bool]:
    """Return all records (n,) that pass their check, and whether that is everything the file holds.

    A file that is not there holds nothing, and is whole.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raw = b""
    whole_bytes = len(raw) // record.itemsize * record.itemsize
    records = np.frombuffer(raw[:whole_bytes] if whole_bytes < len(raw) else raw, record)
    good = records["check"] == _checks(records)
    if good.all():
        return records, whole_bytes == len(raw)
    return records[good], False


def find(keys: Keys, wanted: Keys) -> NDArray[np.int64]:
    """Return where in `keys` each of `wanted` (n,) stands, -1 where it does not."""
    if not len(keys):
        return np.full(len(wanted), -1, np.int64)
    order = np.argsort(keys, kind="stable")
    place = np.minimum(np.searchsorted(keys, wanted, sorter=order), len(keys) - 1)
    found = order[place]
    return np.where(keys[found] == wanted, found, -1).astype(np.int64)


def _checks(records: NDArray[Any]) -> NDArray[np.uint64]:
    """Return a check (n,) of each record: its words, each times an odd number of its own, summed modulo 2**64."""
    n_words = records.dtype.itemsize // _WORD.itemsize
    words = records.view(_WORD).reshape(len(records), n_words)[:, :-1]
    steps = (np.arange(1, n_words, dtype=np.uint64) * np.uint64(_ODD_STEP)) | np.uint64(1)
    with np.errstate(over="ignore"):
        return np.asarray((words * steps).sum(axis=1, dtype=np.uint64) + np.uint64(_SALT))
