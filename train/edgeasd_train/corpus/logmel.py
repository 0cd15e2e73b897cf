"""Log mel of a whole corpus on disk, computed once with the node's own front end; windows of it by the batch.

Beside each shard NAME.i16 lies NAME-SPEC.f32, frames by rows. Where the frames of a sound lie follows from where its
samples do, so the ledger, NAME-SPEC.done, need only say which pieces are there. Two processes that compute the same
piece write the same bytes to the same place.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from edgeasd.errors import CannotWriteError, UnavailableError
from edgeasd.features.mel import MelFrontEnd, MelSpec
from edgeasd.records import FloatArray
from edgeasd.workers import Lost, work
from edgeasd_train.corpus import Corpus, WindowIndex
from edgeasd_train.corpus.decode import FULL_SCALE
from edgeasd_train.corpus.ledger import KEY_BYTES, Keys, checked, find, read_ledger, sealed
from edgeasd_train.corpus.shards import shard_dir
from edgeasd_train.corpus.sounds import MappedFiles, Sounds
from edgeasd_train.corpus.workers import default_workers
from edgeasd_train.ranks import ALONE, Ranks

_LAYOUT = 1
"""Part of the name of a spec: raised when what is stored changes its meaning."""
PIECE_FRAMES = 16_384
"""Mel frames that are computed, written and recorded together."""
_CHUNK_FRAMES = 2048
_SMALL_FRAMES = 250_000_000
"""So many samples are turned into mel before worker processes have well started."""
_TASK_FRAMES = 16_000_000
_PATIENCE_S = 600.0
_VALUE_BYTES = 4
_PIECE = checked(("key", f"S{KEY_BYTES}"), ("piece", "<i8"), ("end_row", "<i8"))


class LogMelStore:
    """The log mel of all sounds of a corpus, mapped, in the bits a node would compute.

    Frame i of a sound that begins at sample s of its shard is row ceil(s / hop) + i: a sound of n samples has at most
    n / hop frames, since an FFT is no shorter than a hop, so sounds do not overlap.
    """

    def __init__(
        self,
        corpus: Corpus,
        spec: MelSpec,
        *,
        cache_dir: Path,
        ranks: Ranks = ALONE,
        workers: int | None = None,
        on_piece: Callable[[float], None] = lambda _: None,
    ) -> None:
        """Compute what is not there, each rank its share of the shards, in `workers` processes where it is much.

        `on_piece` is told, as work proceeds, the share of this rank's work that is done. CannotWriteError when the
        cache cannot be written.
        """
        self.spec = spec
        sounds = corpus.sounds
        directory = shard_dir(cache_dir, rate_hz=corpus.rate_hz, channel=corpus.channel)
        name = hashlib.sha256(f"{_LAYOUT} {spec!r}".encode()).hexdigest()[:12]
        paths = [directory / f"{shard.stem}-{name}.f32" for shard in sounds.shards]
        self._shard = sounds.shard
        self.first_row = -(-sounds.first_frame // spec.hop_frames)
        """Of each sound (n,), where its frames begin within its file."""
        self.n_frames = np.maximum(0, 1 + (sounds.n_frames - spec.n_fft) // spec.hop_frames)
        """Of each sound (n,), how many mel frames it has."""
        self._maps = MappedFiles(paths, np.float32, width=spec.n_rows)
        _fill(Plan(sounds, self.first_row, self.n_frames, spec, paths), ranks, workers, on_piece)

    def rows(self, shard: int) -> FloatArray:
        """Return the file (n, n_rows) of a shard, mapped."""
        return self._maps[shard]

    def frames(self, sound: int) -> FloatArray:
        """Return the log mel (n, n_rows) of a sound, mapped, not read."""
        if not self.n_frames[sound]:
            return np.empty((0, self.spec.n_rows), np.float32)
        first = int(self.first_row[sound])
        return self.rows(int(self._shard[sound]))[first : first + int(self.n_frames[sound])]


class LogMelWindows:
    """The log mel of numbered windows, by the batch."""

    def __init__(self, corpus: Corpus, index: WindowIndex, store: LogMelStore) -> None:
        self.corpus = corpus
        self.index = index
        self.spec = store.spec
        self._store = store
        self._n_frames = store.spec.n_frames(index.window_frames)
        self._shard = corpus.sounds.shard

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self.index)

    def of_length(self, window_frames: int) -> LogMelWindows:
        """Return windows of another length of the same sound."""
        return LogMelWindows(self.corpus, self.index.of_length(window_frames), self._store)

    def batch(self, numbers: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Return windows `numbers` (B,): log_mel float32 (B, n_rows, n_frames); index, section, domain int64 (B,)."""
        sounds, first_frames = self.index.locate(numbers)
        firsts = self._store.first_row[sounds] + first_frames // self.spec.hop_frames
        log_mel = np.empty((len(numbers), self.spec.n_rows, self._n_frames), np.float32)
        shards = self._shard[sounds].tolist()
        rows = {shard: np.asarray(self._store.rows(shard)) for shard in set(shards)}  # quicker to slice than a memmap
        for out, shard, first in zip(log_mel, shards, firsts.tolist(), strict=True):
            out[:] = rows[shard][first : first + self._n_frames].T
        section, domain = self.corpus.section[sounds], self.corpus.domain[sounds]
        return {"log_mel": log_mel, "index": numbers, "section": section, "domain": domain}


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be on disk: of each sound (n,), n_frames rows from first_row of the file of its shard."""

    sounds: Sounds
    first_row: NDArray[np.int64]
    n_frames: NDArray[np.int64]
    spec: MelSpec
    paths: list[Path]


@dataclass(frozen=True, slots=True)
class _Task:
    """Pieces (n,) of sounds of one shard."""

    shard_path: Path
    path: Path
    spec: MelSpec
    keys: Keys
    pieces: NDArray[np.int64]
    first_samples: NDArray[np.int64]
    first_rows: NDArray[np.int64]
    n_rows: NDArray[np.int64]
    """Mel frames in each piece."""


def _fill(plan: Plan, ranks: Ranks, workers: int | None, on_piece: Callable[[float], None]) -> None:
    """Compute the missing pieces of this rank's shards, and wait for the other ranks."""
    used = np.unique(plan.sounds.shard)
    tasks = [task for shard in used[ranks.rank :: ranks.size].tolist() for task in _missing(plan, shard)]
    n_samples = sum(int(task.n_rows.sum()) for task in tasks) * plan.spec.hop_frames
    if n_samples < _SMALL_FRAMES:
        workers = 1
    elif workers is None:
        workers = default_workers(ranks.size // ranks.n_nodes)
    for n_done, (task, outcome) in enumerate(
        work(PieceWriter, tasks, workers=min(workers, len(tasks)), patience_s=lambda _: _PATIENCE_S), start=1
    ):
        if isinstance(outcome, Lost):
            raise UnavailableError(f"log mel of {task.shard_path}: {outcome.reason}")
        on_piece(n_done / len(tasks))
    ranks.barrier()


def _missing(plan: Plan, shard: int) -> Iterator[_Task]:
    """Yield the pieces of a shard that are not on disk, some at a time."""
    members = np.flatnonzero((plan.sounds.shard == shard) & (plan.n_frames > 0))
    counts = -(-plan.n_frames[members] // PIECE_FRAMES)
    of = np.repeat(members, counts)
    pieces = np.arange(len(of)) - np.repeat(np.cumsum(counts) - counts, counts)
    first = pieces * PIECE_FRAMES
    n_rows = np.minimum(plan.n_frames[of] - first, PIECE_FRAMES)
    done = _done(plan.paths[shard], plan.spec)
    left = np.flatnonzero(find(_names(done["key"], done["piece"]), _names(plan.sounds.keys[of], pieces)) < 0)
    batches = np.cumsum(n_rows[left]) * plan.spec.hop_frames // _TASK_FRAMES
    for which in np.split(left, np.flatnonzero(np.diff(batches)) + 1) if len(left) else ():
        of_some, first_some = of[which], first[which]
        yield _Task(
            shard_path=plan.sounds.shards[shard],
            path=plan.paths[shard],
            spec=plan.spec,
            keys=plan.sounds.keys[of_some],
            pieces=pieces[which],
            first_samples=plan.sounds.first_frame[of_some] + first_some * plan.spec.hop_frames,
            first_rows=plan.first_row[of_some] + first_some,
            n_rows=n_rows[which],
        )


def _done(path: Path, spec: MelSpec) -> NDArray[Any]:
    """Return the records of the pieces on disk; none when the file is shorter than they say."""
    records, _ = read_ledger(_ledger(path), _PIECE)
    n_rows = (path.stat().st_size if path.exists() else 0) // (spec.n_rows * _VALUE_BYTES)
    if records["end_row"].max(initial=0) <= n_rows:
        return records
    _ledger(path).unlink(missing_ok=True)  # else it would say, as the file grows again, that what it lost is there
    return records[:0]


def _names(keys: Keys, pieces: NDArray[np.int64]) -> Keys:
    """Return what names each piece (n,) of a sound."""
    both = np.empty(len(keys), np.dtype([("key", keys.dtype), ("piece", ">i8")]))
    both["key"], both["piece"] = keys, pieces
    return both.view(f"S{both.itemsize}")


class PieceWriter:
    """Computes pieces of log mel and writes them to their place."""

    def __init__(self) -> None:
        self._front_end: MelFrontEnd | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self, task: _Task) -> None:
        """Write some pieces, and only then their records."""
        if self._front_end is None or self._front_end.spec != task.spec:
            self._front_end = MelFrontEnd(task.spec)
        samples = np.memmap(task.shard_path, np.int16, mode="r")
        try:
            with os.fdopen(os.open(task.path, os.O_WRONLY | os.O_CREAT, 0o644), "wb", buffering=0) as file:
                for first_sample, first_row, n_rows in zip(
                    task.first_samples.tolist(), task.first_rows.tolist(), task.n_rows.tolist(), strict=True
                ):
                    file.seek(first_row * task.spec.n_rows * _VALUE_BYTES)
                    for log_mel in _chunks(self._front_end, samples[first_sample:], n_rows):
                        _write_all(file, log_mel)
                os.fdatasync(file.fileno())
            record_pieces(task)
        except OSError as exc:
            raise CannotWriteError(f"cache {task.path.parent}: cannot be written: {exc.strerror or exc}") from exc


def _chunks(front_end: MelFrontEnd, samples: NDArray[np.int16], n_frames: int) -> Iterator[FloatArray]:
    """Yield the first mel frames of `samples` in order, some (k, n_rows) at a time."""
    hop_frames, n_fft = front_end.spec.hop_frames, front_end.spec.n_fft
    for first in range(0, n_frames, _CHUNK_FRAMES):
        last = min(first + _CHUNK_FRAMES, n_frames) - 1
        chunk = samples[first * hop_frames : last * hop_frames + n_fft].astype(np.float32) / np.float32(FULL_SCALE)
        yield np.ascontiguousarray(front_end.window_log_mel(chunk).T)


def _write_all(file: FileIO, log_mel: FloatArray) -> None:
    rest = log_mel.data.cast("B")
    while len(rest):
        rest = rest[file.write(rest) :]


def record_pieces(task: _Task) -> None:
    """Append to the ledger that the pieces of a task are on disk."""
    records = np.zeros(len(task.keys), _PIECE)
    records["key"], records["piece"], records["end_row"] = task.keys, task.pieces, task.first_rows + task.n_rows
    with os.fdopen(os.open(_ledger(task.path), os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644), "ab", buffering=0) as file:
        n_bytes = file.seek(0, os.SEEK_END)
        if n_bytes % _PIECE.itemsize:  # torn by a full disk: what follows would be misread
            file.truncate(n_bytes - n_bytes % _PIECE.itemsize)
        file.write(sealed(records))


def _ledger(path: Path) -> Path:
    return path.with_suffix(".done")
