"""Have every recording in the shards: find out which are missing, decode those, and say which cannot be used."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from stat import S_ISLNK
from typing import Self

import numpy as np
from numpy.typing import NDArray

from edgeasd.capture.convert import Channel
from edgeasd.errors import CannotWriteError
from edgeasd.workers import Lost, work
from edgeasd_train.corpus.decode import CannotDecodeError, int16_blocks
from edgeasd_train.corpus.discover import Recordings
from edgeasd_train.corpus.ledger import KEY_BYTES, Keys
from edgeasd_train.corpus.shards import ShardWriter, read_index, shard_dir
from edgeasd_train.corpus.sounds import Sounds
from edgeasd_train.corpus.workers import default_workers
from edgeasd_train.ranks import ALONE, Ranks

_LAYOUT = 2
"""Part of every key: raised when what is stored changes its meaning."""
_SMALL_BYTES = 128 << 20
"""So much is decoded before worker processes have well started."""
_PATIENCE_S = 600.0
_SLOWEST_BYTES_PER_S = 100_000.0
"""A file is given up as hanging after the one and its size over the other: no machine is so slow."""


@dataclass(frozen=True, slots=True)
class BadFile:
    """A file that cannot be used, and why."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class Cache:
    """Where decoded sound lies, and what it is: mono at one rate, of one channel or the mean of all."""

    directory: Path
    rate_hz: int
    channel: Channel = "mix"

    @property
    def shards(self) -> Path:
        """Return the directory of the shards."""
        return shard_dir(self.directory, rate_hz=self.rate_hz, channel=self.channel)


@dataclass(frozen=True, slots=True)
class _Task:
    number: int
    path: Path
    key: bytes
    n_bytes: int


@dataclass(slots=True)
class FileStates:
    """The recordings (n,) as they are on disk now."""

    keys: Keys
    n_bytes: NDArray[np.int64]
    reasons: dict[int, str]
    """Why recordings cannot be used, by number."""


def load_sounds(
    recordings: Recordings,
    cache: Cache,
    *,
    ranks: Ranks = ALONE,
    workers: int | None = None,
    on_file: Callable[[Path], None] = lambda _: None,
) -> tuple[Sounds, list[BadFile]]:
    """Decode what is not in the cache, each rank its share; return the sounds and what cannot be used.

    `on_file` is called as each file of this rank's share is done. All ranks return the same. CannotWriteError when the
    cache cannot be written.
    """
    states = file_states(recordings, cache)
    index = read_index(cache.shards)
    entries = index.find(states.keys)
    mine = range(ranks.rank, len(recordings), ranks.size)
    missing = []
    for number in mine:
        if entries[number] >= 0 or number in states.reasons:
            on_file(Path(recordings.name(number)))
        else:
            missing.append(number)
    if missing or ranks.size > 1:
        workers = default_workers(ranks.size // ranks.n_nodes) if workers is None else workers
        _decode(recordings, states, missing, cache, workers=workers, on_file=on_file)
        _share_reasons(states, cache, ranks)
        index = read_index(cache.shards)
        entries = index.find(states.keys)
    good = (entries >= 0) & ~np.isin(np.arange(len(recordings)), list(states.reasons))
    bad = [
        BadFile(Path(recordings.name(number)), states.reasons.get(number, "could not be decoded"))
        for number in np.flatnonzero(~good).tolist()
    ]
    numbers = np.flatnonzero(good)
    return Sounds(recordings, numbers, index, entries[numbers]), bad


def file_states(recordings: Recordings, cache: Cache) -> FileStates:
    """Return what names the state of each recording: path, size, time of change, and what is made of it."""
    keys = bytearray(KEY_BYTES * len(recordings))
    n_bytes = np.zeros(len(recordings), np.int64)
    reasons = {}
    real_folder = lru_cache(maxsize=65536)(os.path.realpath)
    for number, name in enumerate(recordings.names()):
        try:
            status = os.lstat(name)
            folder, base = os.path.split(name)
            real = os.path.join(real_folder(folder or os.curdir), base)  # noqa: PTH118  # a million of them
            if S_ISLNK(status.st_mode):
                real, status = os.path.realpath(name), os.stat(name)  # noqa: PTH116  # what it points to
        except OSError as exc:
            reasons[number] = exc.strerror or str(exc)
            continue
        facts = f"{_LAYOUT} {cache.rate_hz} {cache.channel} {status.st_size} {status.st_mtime_ns} ".encode()
        key = hashlib.blake2b(facts + os.fsencode(real), digest_size=KEY_BYTES).digest()
        keys[KEY_BYTES * number : KEY_BYTES * (number + 1)] = key
        n_bytes[number] = status.st_size
    return FileStates(np.frombuffer(bytes(keys), f"S{KEY_BYTES}"), n_bytes, reasons)


def _decode(
    recordings: Recordings,
    states: FileStates,
    missing: list[int],
    cache: Cache,
    *,
    workers: int,
    on_file: Callable[[Path], None],
) -> None:
    """Decode the recordings `missing`; why some cannot be is added to the reasons."""
    workers = 1 if states.n_bytes[missing].sum() < _SMALL_BYTES else min(workers, len(missing))
    told = set()
    while missing:
        tasks = (_task(recordings, states, number) for number in missing)
        for task, outcome in work(partial(_Decoder, cache), tasks, workers=workers, patience_s=_patience_s):
            reason = outcome.reason if isinstance(outcome, Lost) else outcome
            if reason:
                states.reasons[task.number] = reason
            if task.number not in told:
                on_file(task.path)
                told.add(task.number)
        # A worker that died took with it what it had decoded since it last made its work safe.
        entries = read_index(cache.shards).find(states.keys[missing])
        left = [n for n, entry in zip(missing, entries, strict=True) if entry < 0 and n not in states.reasons]
        missing = left if len(left) < len(missing) else []


def _task(recordings: Recordings, states: FileStates, number: int) -> _Task:
    key = states.keys[number : number + 1].tobytes()
    return _Task(number, Path(recordings.name(number)), key, int(states.n_bytes[number]))


def _patience_s(task: _Task) -> float:
    return _PATIENCE_S + task.n_bytes / _SLOWEST_BYTES_PER_S


class _Decoder:
    """Decodes recordings into shards of its own."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._writer = ShardWriter(cache.shards)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def __call__(self, task: _Task) -> str:
        """Decode a recording and return why it cannot be used, nothing if it can."""
        blocks = int16_blocks(task.path, rate_hz=self._cache.rate_hz, channel=self._cache.channel)
        try:
            return "" if self._writer.add(task.key, blocks) else "holds no sound"
        except CannotDecodeError as exc:
            return str(exc)


def _share_reasons(states: FileStates, cache: Cache, ranks: Ranks) -> None:
    """Tell the other ranks what cannot be used and why, and learn the same of them: all leave out the same files."""
    if ranks.size == 1:
        return
    mine = {states.keys[n : n + 1].tobytes().hex(): reason for n, reason in states.reasons.items()}
    path = cache.shards / f"reasons-{ranks.rank}.json"
    partial_path = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial_path.write_text(json.dumps(mine))
        partial_path.replace(path)
    except OSError as exc:
        raise CannotWriteError(f"cache {path.parent}: cannot be written: {exc.strerror or exc}") from exc
    ranks.barrier()
    of_all: dict[str, str] = {}
    for rank in range(ranks.size):
        of_all.update(_read_reasons(cache.shards / f"reasons-{rank}.json"))
    for number, key in _hex_keys(states, of_all):
        states.reasons.setdefault(number, of_all[key])


def _read_reasons(path: Path) -> Mapping[str, str]:
    with suppress(OSError, ValueError):
        return {str(key): str(reason) for key, reason in json.loads(path.read_text()).items()}
    return {}


def _hex_keys(states: FileStates, wanted: Mapping[str, str]) -> Iterator[tuple[int, str]]:
    if wanted:
        named = np.array([bytes.fromhex(key) for key in wanted], states.keys.dtype)
        for number in np.flatnonzero(np.isin(states.keys, named)).tolist():
            yield number, states.keys[number : number + 1].tobytes().hex()
