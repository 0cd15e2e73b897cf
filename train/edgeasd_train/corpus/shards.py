"""Decoded sound in big int16 files, each with a ledger of the recordings it holds; written once, then mapped.

A shard is NAME.i16, recordings end to end, and NAME.ledger, which says what lies where. Samples are safe on disk before
the ledger mentions them. Whoever writes to a shard holds a lock on its ledger; readers need none, since nothing that a
ledger mentions ever changes.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from edgeasd.capture.convert import Channel
from edgeasd.errors import CannotWriteError
from edgeasd_train.corpus.ledger import KEY_BYTES, Keys, checked, find, read_ledger, sealed

SHARD_BYTES = 1 << 30
"""A shard that holds this much takes no further recording."""
SOUND = checked(("key", f"S{KEY_BYTES}"), ("sha256", "V32"), ("first_frame", "<i8"), ("n_frames", "<i8"))
_COMMIT_S = 1.0
"""At most so much work is lost by a kill."""
_COMMIT_BYTES = 64 << 20
_FRAME_BYTES = 2


def shard_dir(cache_dir: Path, *, rate_hz: int, channel: Channel) -> Path:
    """Return where the shards of one rate and channel lie."""
    return cache_dir / "sound" / f"{rate_hz}-{channel}"


@dataclass(frozen=True, slots=True)
class SoundIndex:
    """Which recordings the shards of a directory hold, as columns: one entry a recording."""

    shards: tuple[Path, ...]
    keys: Keys
    sha256: NDArray[np.void]
    shard: NDArray[np.int32]
    """Index into `shards`."""
    first_frame: NDArray[np.int64]
    n_frames: NDArray[np.int64]

    def find(self, keys: Keys) -> NDArray[np.int64]:
        """Return the entry of each of `keys` (n,), -1 where there is none."""
        return find(self.keys, keys)


def read_index(directory: Path) -> SoundIndex:
    """Read all ledgers of a directory; what their shards do not hold in full is not believed."""
    shards, parts = [], []
    for path in sorted(directory.glob("*.ledger")):
        records, _ = _held(path)
        if len(records):
            shards.append(path.with_suffix(".i16"))
            parts.append(records)
    entries = np.concatenate(parts) if parts else np.empty(0, SOUND)
    counts = [len(part) for part in parts]
    return SoundIndex(
        shards=tuple(shards),
        keys=np.ascontiguousarray(entries["key"]),
        sha256=np.ascontiguousarray(entries["sha256"]),
        shard=np.repeat(np.arange(len(parts), dtype=np.int32), counts),
        first_frame=np.ascontiguousarray(entries["first_frame"]),
        n_frames=np.ascontiguousarray(entries["n_frames"]),
    )


def _held(ledger_path: Path) -> tuple[NDArray[np.void], bool]:
    """Return the records of a shard whose samples are all there, and whether nothing at all is amiss."""
    records, whole = read_ledger(ledger_path, SOUND)
    try:
        n_frames = ledger_path.with_suffix(".i16").stat().st_size // _FRAME_BYTES
    except FileNotFoundError:
        n_frames = 0
    there = records["first_frame"] + records["n_frames"] <= n_frames
    return (records, whole) if there.all() else (records[there], False)


class ShardWriter:
    """Adds recordings to the shards of a directory; one writer may be at work in each process."""

    def __init__(self, directory: Path) -> None:
        """Write to `directory`, made if need be; CannotWriteError when the disk is to blame, here and later."""
        self._directory = directory
        self._shard: _OpenShard | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, key: bytes, blocks: Iterable[NDArray[np.int16]]) -> int:
        """Store the sound that `blocks` yield under `key`; return its number of frames, nothing is kept of none.

        What `blocks` raises is raised, and nothing is kept then.
        """
        try:
            if self._shard is not None and self._shard.n_frames * _FRAME_BYTES >= SHARD_BYTES:
                self.close()
            if self._shard is None:
                self._directory.mkdir(parents=True, exist_ok=True)
                self._shard = _open_shard(self._directory)
            return self._shard.append(key, blocks)
        except OSError as exc:
            raise self._blamed(exc) from exc

    def close(self) -> None:
        """Make safe what was added, and let others write to the shard."""
        shard, self._shard = self._shard, None
        if shard is None:
            return
        try:
            shard.close()
        except OSError as exc:
            raise self._blamed(exc) from exc

    def _blamed(self, exc: OSError) -> CannotWriteError:
        return CannotWriteError(f"cache {self._directory}: cannot be written: {exc.strerror or exc}")


def _open_shard(directory: Path) -> _OpenShard:
    """Return a shard with room that nobody writes to, a new one if there is none."""
    for path in sorted(directory.glob("*.ledger")):
        with suppress(FileNotFoundError):
            if path.with_suffix(".i16").stat().st_size >= SHARD_BYTES:
                continue
        ledger = os.open(path, os.O_WRONLY | os.O_APPEND)
        with suppress(OSError):  # held by another process, or a file system without locks
            fcntl.flock(ledger, fcntl.LOCK_EX | fcntl.LOCK_NB)
            records, whole = _held(path)
            if whole:
                return _OpenShard(path, ledger, int((records["first_frame"] + records["n_frames"]).max(initial=0)))
        os.close(ledger)
    return _new_shard(directory)


def _new_shard(directory: Path) -> _OpenShard:
    while True:
        path = directory / f"{secrets.token_hex(8)}.ledger"
        ledger = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            fcntl.flock(ledger, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # another process saw it first
            os.close(ledger)
            continue
        except OSError:  # no locks on this file system: then nobody else takes up this shard either
            pass
        return _OpenShard(path, ledger, 0)


class _OpenShard:
    """A shard that this process alone writes to."""

    def __init__(self, path: Path, ledger: int, n_frames: int) -> None:
        self.n_frames = n_frames
        self._ledger = ledger
        self._samples = path.with_suffix(".i16").open("r+b" if path.with_suffix(".i16").exists() else "w+b")
        self._samples.truncate(n_frames * _FRAME_BYTES)  # a writer that was killed left more than its ledger says
        self._samples.seek(0, os.SEEK_END)
        self._pending: list[tuple[bytes, bytes, int, int, int]] = []
        self._pending_frames = 0
        self._committed_s = time.monotonic()

    def append(self, key: bytes, blocks: Iterable[NDArray[np.int16]]) -> int:
        digest, first_frame, n_frames = hashlib.sha256(), self.n_frames, 0
        try:
            for block in blocks:
                self._samples.write(block.data)
                digest.update(block.data)
                n_frames += len(block)
        except BaseException:
            self._samples.seek(first_frame * _FRAME_BYTES)
            self._samples.truncate()
            raise
        if n_frames:
            self._pending.append((key, digest.digest(), first_frame, n_frames, 0))
            self.n_frames += n_frames
            self._pending_frames += n_frames
        late = time.monotonic() - self._committed_s >= _COMMIT_S
        if late or self._pending_frames * _FRAME_BYTES >= _COMMIT_BYTES:
            self._commit()
        return n_frames

    def close(self) -> None:
        try:
            with self._samples:
                self._commit()
        finally:
            os.close(self._ledger)

    def _commit(self) -> None:
        if self._pending:
            self._samples.flush()
            os.fdatasync(self._samples.fileno())
            records = sealed(np.array(self._pending, SOUND))
            if os.write(self._ledger, records) != len(records):
                raise OSError(28, "No space left on device")
            self._pending.clear()
            self._pending_frames = 0
        self._committed_s = time.monotonic()
