"""The chunks of a RIFF, RF64 or BW64 file, read with suspicion."""

from __future__ import annotations

import io
import os
import struct
from dataclasses import dataclass

from edgeasd.errors import InputError

_MAX_CHUNKS = 1024
_MAX_TEXT_BYTES = 1 << 20
"""A metadata chunk beyond this is left unread."""
_STREAMED_BYTES = 0x7FFF_F000
"""Programs that write to a pipe put 0, or something from here up, where the size of the sound belongs."""
_BEHIND_SOUND = frozenset((b"LIST", b"bext", b"guan", b"id3 ", b"iXML", b"cue ", b"fact", b"PEAK", b"smpl", b"JUNK"))
_WANTED = (b"fmt ", b"ds64", b"bext", b"guan")

_CLAIMS = {
    b"RIFX": "is big-endian (RIFX)",
    b"fLaC": "holds FLAC",
    b"OggS": "holds Ogg",
    b"ID3\x03": "holds MP3",
    b"ID3\x04": "holds MP3",
    b"FORM": "holds AIFF",
}


@dataclass(slots=True)
class Chunks:
    """What was found in a file: where the sound lies, and the raw bytes of the chunks that describe it."""

    described: dict[bytes, bytes]
    """Keys are among fmt, ds64, bext and guan, as four bytes."""
    data_start: int
    data_bytes: int
    """What is there, never more."""
    truncated: bool
    """True when the header promises more sound than is there."""


def read_exactly(file: io.FileIO, n_bytes: int) -> bytes:
    """Read up to `n_bytes`; less only at the end of the file."""
    parts: list[bytes] = []
    while n_bytes > 0 and (part := file.read(n_bytes)):
        parts.append(part)
        n_bytes -= len(part)
    return b"".join(parts)


def read_chunks(file: io.FileIO, shown: str) -> Chunks:
    """Walk the chunks of a file that is open at its start; InputError, with `shown` as the file's name."""
    size = os.fstat(file.fileno()).st_size
    form, riff_bytes = _read_form(file, shown)
    found = Chunks({}, 0, 0, truncated=False)
    offset = 12
    for _ in range(_MAX_CHUNKS):
        if offset + 8 > size:
            break
        file.seek(offset)
        header = read_exactly(file, 8)
        if len(header) < 8:
            break  # the file has shrunk
        tag, n_bytes = struct.unpack("<4sI", header)
        offset += 8
        if tag == b"data" and not found.data_start:
            if b"fmt " not in found.described:
                raise InputError(f"{shown}: the sound comes before its format (no fmt chunk ahead of data)")
            whole = form == b"RIFF" and riff_bytes + 8 == size
            n_bytes = _place_sound(found, file, offset=offset, n_bytes=n_bytes, size=size, whole=whole)
        elif tag in _WANTED:
            _keep(found, file, tag, n_bytes=n_bytes, shown=shown)
        offset += n_bytes + n_bytes % 2
    else:
        raise InputError(f"{shown}: more than {_MAX_CHUNKS} chunks")
    if b"fmt " not in found.described:
        raise InputError(f"{shown}: no fmt chunk, so the format of the sound is unknown")
    if not found.data_start:
        raise InputError(f"{shown}: no data chunk within the file, so no sound")
    return found


def _read_form(file: io.FileIO, shown: str) -> tuple[bytes, int]:
    head = read_exactly(file, 12)
    if not head:
        raise InputError(f"{shown}: the file is empty")
    if head[:4] in _CLAIMS:
        raise InputError(f"{shown}: {_CLAIMS[head[:4]]}, not the RIFF that a .wav file must hold")
    if len(head) < 12 or head[:4] not in (b"RIFF", b"RF64", b"BW64") or head[8:12] != b"WAVE":
        raise InputError(f"{shown}: not a WAV file (it does not start with RIFF and WAVE)")
    return head[:4], int.from_bytes(head[4:8], "little")


def _keep(found: Chunks, file: io.FileIO, tag: bytes, *, n_bytes: int, shown: str) -> None:
    if tag == b"fmt " and tag in found.described:
        raise InputError(f"{shown}: two fmt chunks contradict each other")
    if tag not in found.described and n_bytes <= _MAX_TEXT_BYTES:
        found.described[tag] = read_exactly(file, n_bytes)


def _place_sound(found: Chunks, file: io.FileIO, *, offset: int, n_bytes: int, size: int, whole: bool) -> int:
    """Note where the sound lies and return how many bytes to pass over; `whole`: the RIFF size is that of the file."""
    there = size - offset
    promised: int | None = n_bytes
    ds64 = found.described.get(b"ds64", b"")
    if n_bytes == 0xFFFF_FFFF and len(ds64) >= 16:
        promised = int.from_bytes(ds64[8:16], "little")
    elif n_bytes >= _STREAMED_BYTES and n_bytes > there:
        promised = None
    elif n_bytes == 0:
        file.seek(offset)
        empty = whole and read_exactly(file, 4) in _BEHIND_SOUND
        promised = 0 if empty else None
    found.data_start = offset
    found.data_bytes = there if promised is None else min(promised, there)
    found.truncated = promised is not None and promised > there
    return there if promised is None else promised
