"""A strict WAV reader that streams: PCM and float, nothing a decoder would have to guess at."""

from __future__ import annotations

import errno
import io
import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from edgeasd.capture.riff import Chunks, read_chunks
from edgeasd.errors import InputError
from edgeasd.records import FloatArray

MAX_CHANNELS = 8
MIN_RATE_HZ, MAX_RATE_HZ = 4_000, 384_000

_PCM, _FLOAT, _EXTENSIBLE = 0x0001, 0x0003, 0xFFFE
_OTHER_FORMATS = {
    0x0002: "Microsoft ADPCM",
    0x0006: "A-law",
    0x0007: "mu-law",
    0x0011: "IMA ADPCM",
    0x0050: "MPEG audio",
    0x0055: "MP3",
    0x00FF: "AAC",
    0xF1AC: "FLAC",
}
_SUBFORMAT_TAIL = bytes.fromhex("000000001000800000aa00389b71")
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class WavInfo:
    """What the header of a WAV file says, checked."""

    rate_hz: int
    n_channels: int
    n_frames: int
    """That are there, whatever the header promises."""
    encoding: str
    """pcm16, pcm24, pcm32, float32 or float64."""
    truncated: bool
    """True when the header promises more frames than are there."""
    bext: bytes | None
    """The broadcast extension chunk, raw."""
    guano: bytes | None
    """The GUANO chunk, raw."""


def shown_name(path: Path) -> str:
    """Return a path as it may stand in a message: odd bytes and control characters escaped."""
    text = str(path)
    return text if text.isprintable() else repr(text)


def open_regular(path: Path) -> io.FileIO:
    """Open a regular file for reading, unbuffered; InputError for what is missing, forbidden or something else."""
    shown = shown_name(path)
    try:
        _refuse_irregular(path.stat().st_mode, shown)  # before opening: that alone rewinds a tape, or arms a watchdog
        # Between the two it may have been replaced. O_NONBLOCK: a FIFO without a writer must not hold us up; on regular
        # files it changes nothing.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = error.strerror.lower() if isinstance(error, OSError) and error.strerror else "not a valid file name"
        raise InputError(f"{shown}: {reason}") from error
    try:
        _refuse_irregular(os.fstat(descriptor).st_mode, shown)
    except InputError:
        os.close(descriptor)
        raise
    return io.FileIO(descriptor, "rb", closefd=True)


def _refuse_irregular(mode: int, shown: str) -> None:
    if not stat.S_ISREG(mode):
        what = "a directory" if stat.S_ISDIR(mode) else "a pipe, socket or device"
        raise InputError(f"{shown}: is {what}, not a regular file")


class WavReader:
    """Reads a WAV file block by block; memory does not grow with the file.

    A file that shrinks while it is read ends early and sets `truncated`.
    """

    def __init__(self, path: Path) -> None:
        self._shown = shown_name(path)
        self._file = open_regular(path)
        try:
            chunks = read_chunks(self._file, self._shown)
            self.info = _check(chunks, self._shown)
            self._file.seek(chunks.data_start)
        except OSError as error:
            self._file.close()
            raise InputError(f"{self._shown}: {(error.strerror or 'cannot be read').lower()}") from error
        except InputError:
            self._file.close()
            raise
        self.truncated = self.info.truncated
        self._frames_left = self.info.n_frames
        self._frame_bytes = self.info.n_channels * _SAMPLE_BYTES[self.info.encoding]
        self._scratch = bytearray()

    def __enter__(self) -> Self:
        """Return the open reader."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def read(self, n_frames: int) -> FloatArray:
        """Return the next frames, shape (k, n_channels), full scale 1.0; k < n_frames only at the end."""
        wanted = min(n_frames, self._frames_left) * self._frame_bytes
        if len(self._scratch) < wanted:
            self._scratch = bytearray(wanted)
        view = memoryview(self._scratch)[:wanted]
        n_bytes = self._fill(view)
        if n_bytes < wanted:
            self.truncated = True
            self._frames_left = 0
            view = view[: n_bytes - n_bytes % self._frame_bytes]
        else:
            self._frames_left -= wanted // self._frame_bytes
        return _decode(view, self.info.encoding).reshape(-1, self.info.n_channels)

    def _fill(self, view: memoryview) -> int:
        done = 0
        try:
            while done < len(view):
                n_bytes = self._file.readinto(view[done:])
                if not n_bytes:
                    break
                done += n_bytes
        except OSError as error:
            name = errno.errorcode.get(error.errno or 0, "EIO")
            raise InputError(f"{self._shown}: cannot be read to its end ({name})") from error
        return done


_SAMPLE_BYTES = {"pcm16": 2, "pcm24": 3, "pcm32": 4, "float32": 4, "float64": 8}


def _check(chunks: Chunks, shown: str) -> WavInfo:
    fmt = chunks.described[b"fmt "]
    if len(fmt) < 16:
        raise InputError(f"{shown}: the fmt chunk has {len(fmt)} bytes where at least 16 are needed")
    tag, n_channels, rate_hz, _, align_bytes, n_bits = struct.unpack("<HHIIHH", fmt[:16])
    if tag == _EXTENSIBLE:
        tag = _extensible_tag(fmt, shown)
    if tag not in {_PCM, _FLOAT}:
        name = _OTHER_FORMATS.get(tag, "an unknown format")
        raise InputError(f"{shown}: holds {name} (format tag {tag:#06x}); only PCM and float are read")
    encoding = f"pcm{n_bits}" if tag == _PCM else f"float{n_bits}"
    if encoding not in _SAMPLE_BYTES:
        raise InputError(f"{shown}: has {n_bits}-bit samples; read are 16, 24 and 32 bit PCM, 32 and 64 bit float")
    if not 1 <= n_channels <= MAX_CHANNELS:
        raise InputError(f"{shown}: has {n_channels} channels; 1 to {MAX_CHANNELS} are read")
    if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
        raise InputError(f"{shown}: has a sample rate of {rate_hz} Hz; {MIN_RATE_HZ} to {MAX_RATE_HZ} are read")
    frame_bytes = n_channels * _SAMPLE_BYTES[encoding]
    if align_bytes != frame_bytes:
        raise InputError(f"{shown}: claims {align_bytes} bytes a frame where its format makes {frame_bytes}")
    n_frames = chunks.data_bytes // frame_bytes
    if n_frames == 0:
        raise InputError(f"{shown}: holds no audio")
    bext, guano = chunks.described.get(b"bext"), chunks.described.get(b"guan")
    return WavInfo(rate_hz, n_channels, n_frames, encoding, chunks.truncated, bext, guano)


def _extensible_tag(fmt: bytes, shown: str) -> int:
    if len(fmt) < 40:
        raise InputError(f"{shown}: the extensible fmt chunk has {len(fmt)} bytes where 40 are needed")
    if fmt[26:40] != _SUBFORMAT_TAIL:
        raise InputError(f"{shown}: holds an unknown extensible format; only PCM and float are read")
    return int.from_bytes(fmt[24:26], "little")


def _decode(raw: memoryview, encoding: str) -> FloatArray:
    """Return little-endian samples as float32, full scale 1.0, shape (n,); owns its memory."""
    if encoding == "pcm16":
        return _scaled(np.frombuffer(raw, dtype="<i2"), 2.0**-15)
    if encoding == "pcm24":
        packed = np.frombuffer(raw, dtype=np.uint8).reshape(-1, 3)
        wide = np.zeros((len(packed), 4), dtype=np.uint8)
        wide[:, 1:] = packed  # into the upper three bytes: the sign comes out right
        return _scaled(wide.view("<i4")[:, 0], 2.0**-31)
    if encoding == "pcm32":
        return _scaled(np.frombuffer(raw, dtype="<i4"), 2.0**-31)
    with np.errstate(over="ignore", invalid="ignore"):  # what is too large for float32 becomes infinite: a fault later
        return np.frombuffer(raw, dtype="<f4" if encoding == "float32" else "<f8").astype(np.float32)


def _scaled(integers: NDArray[np.int16] | NDArray[np.int32], scale: float) -> FloatArray:
    samples = integers.astype(np.float32)
    samples *= np.float32(scale)
    return samples
