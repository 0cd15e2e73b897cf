"""Decode and resample every recording once, into raw int16 files that are memory-mapped from then on."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from edgeasd.errors import CannotWriteError
from edgeasd.records import FloatArray
from edgeasd_train.corpus.discover import Recording

_LAYOUT = 1
"""Part of every key: raised when what is stored changes its meaning."""
_BLOCK_FRAMES = 1 << 18
_MAX_CHANNELS = 64
_RATES_HZ = range(1000, 768_001)
FULL_SCALE = 32768.0


@dataclass(frozen=True, slots=True)
class Sound:
    """A recording as the workshop uses it: mono, at the model's rate, on disk as raw int16."""

    path: Path
    """The recording it was made from."""
    data_path: Path
    key: str
    """Names the recording's state and the rate; files derived from this sound carry it."""
    n_frames: int
    sha256: str
    """Of the decoded samples: the same sound has the same digest wherever it lies."""

    def samples(self) -> NDArray[np.int16]:
        """Return all samples (n_frames,), mapped, not read."""
        return np.memmap(self.data_path, np.int16, mode="r", shape=(self.n_frames,))


@dataclass(frozen=True, slots=True)
class BadFile:
    """A file that cannot be used, and why."""

    path: Path
    named: bool
    reason: str


class AudioCache:
    """A directory of decoded recordings, keyed by path, size, modification time and sample rate."""

    def __init__(self, directory: Path, *, rate_hz: int) -> None:
        self.directory = directory
        self._rate_hz = rate_hz

    def load(self, recordings: Sequence[Recording]) -> Iterator[Sound | BadFile]:
        """Yield each recording decoded, in order; what is in the cache already is not decoded again."""
        workers = min(4, os.cpu_count() or 1)
        with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:  # decoder and resampler free the GIL
            yield from pool.map(self._load_one, recordings)

    def _load_one(self, recording: Recording) -> Sound | BadFile:
        try:
            key = self._key(recording.path)
            data_path = self.directory / key[:2] / f"{key}.i16"
            n_frames, digest = _known_facts(data_path) or self._decode(recording.path, data_path)
        except (soundfile.SoundFileError, OSError, ValueError, RuntimeError) as exc:
            return BadFile(recording.path, recording.named, _reason(exc))
        return Sound(recording.path, data_path, key, n_frames, digest)

    def _key(self, path: Path) -> str:
        status = path.stat()
        facts = [_LAYOUT, str(path.resolve()), status.st_size, status.st_mtime_ns, self._rate_hz]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:40]

    def _decode(self, path: Path, data_path: Path) -> tuple[int, str]:
        """Store the samples first, the facts about them last: an entry without facts does not count."""
        digest, n_frames = hashlib.sha256(), 0

        def write(file: BinaryIO) -> None:
            nonlocal n_frames
            for block in _int16_blocks(path, self._rate_hz):
                file.write(block.data)
                digest.update(block.data)
                n_frames += len(block)
            if not n_frames:
                raise ValueError("holds no sound")

        store(data_path, write)
        facts = json.dumps({"n_frames": n_frames, "sha256": digest.hexdigest(), "from": str(path)})
        store(data_path.with_suffix(".json"), lambda file: file.write(facts.encode()))
        return n_frames, digest.hexdigest()


def _known_facts(data_path: Path) -> tuple[int, str] | None:
    """Return number of frames and digest of a whole cache entry; a power cut may have left half of one."""
    try:
        facts = json.loads(data_path.with_suffix(".json").read_text())
        n_frames, digest = int(facts["n_frames"]), str(facts["sha256"])
        return (n_frames, digest) if data_path.stat().st_size == 2 * n_frames else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def store(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a cache file in one step; a file of the same name is as good and may be replaced.

    CannotWriteError when the disk is to blame: that says nothing about the recording.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".partial-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                write(file)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as exc:
        raise CannotWriteError(f"cache {path.parent}: cannot be written: {exc.strerror or exc}") from exc


def _int16_blocks(path: Path, rate_hz: int) -> Iterator[NDArray[np.int16]]:
    """Yield the mono sound of a file at `rate_hz`, rounded to int16; ValueError on what no microphone delivers."""
    for block in _at_rate(path, rate_hz):
        if not np.isfinite(block).all():
            raise ValueError("holds samples that are not finite")
        yield np.clip(np.rint(block * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)


def _at_rate(path: Path, rate_hz: int) -> Iterable[FloatArray]:
    with soundfile.SoundFile(path) as file:
        if file.channels > _MAX_CHANNELS or file.samplerate not in _RATES_HZ:
            raise ValueError(f"has {file.channels} channels at {file.samplerate} Hz, which is no recording")
        blocks = file.blocks(_BLOCK_FRAMES, dtype="float32", always_2d=True)
        mono = (block.mean(axis=1, dtype=np.float32) for block in blocks)
        if file.samplerate == rate_hz:
            yield from mono
            return
        resampler = soxr.ResampleStream(file.samplerate, rate_hz, 1, dtype="float32", quality="HQ")
        for block in mono:
            yield resampler.resample_chunk(block)
        yield resampler.resample_chunk(np.empty(0, np.float32), last=True)


def _reason(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return text.rpartition(": ")[2] if isinstance(error, soundfile.SoundFileError) else text
