"""The sound on the page: pieces of recordings as Ogg Vorbis, the strangest first, as long as there is room."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import soundfile
import soxr

from edgeasd.records import FloatArray
from edgeasd_train.explore.gather import ShownWindows

PIECE_S = 30.0
"""Windows that start within one piece are played from it; it goes on until the last of them ends."""
_MAX_RATE_HZ = 48_000
"""What is beyond hearing is left out: neither browsers nor Vorbis take every rate."""
_COMPRESSION = 0.8
"""Of libsndfile, 0 to 1: about 30 kbit/s at 16 kHz."""
_FIRST_GUESS_BYTES = 0.3
"""Of one sample, before any piece was encoded."""
_BLOCK_FRAMES = 1 << 16  # libsndfile's Vorbis encoder keeps what one call hands it on the stack


@dataclass(frozen=True, slots=True, order=True)
class Piece:
    """A stretch of a recording: [number * PIECE_S, (number + 1) * PIECE_S + a window)."""

    recording: int
    number: int


def pieces_of(windows: ShownWindows, *, rate_hz: int) -> list[Piece]:
    """Return the pieces that the windows need, that of the strangest window first."""
    numbers = windows.first_frame // round(PIECE_S * rate_hz)
    order = np.argsort(-windows.score, kind="stable")
    return list(dict.fromkeys(Piece(int(windows.recording[i]), int(numbers[i])) for i in order))


def encode_pieces(
    pieces: Sequence[Piece],
    read: Callable[[int], FloatArray],
    *,
    rate_hz: int,
    window_frames: int,
    max_bytes: int,
) -> Mapping[Piece, bytes]:
    """Return pieces as Ogg Vorbis, mono, in the order given, until the next does not fit into `max_bytes`.

    `read` returns the sound of a recording at `rate_hz`. Each round takes as many pieces as should fit, by what those
    before came to, so that recordings are read few times.
    """
    encoded: dict[Piece, bytes] = {}
    waiting, room_bytes, piece_bytes = list(pieces), max_bytes, PIECE_S * rate_hz * _FIRST_GUESS_BYTES
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # the encoder runs outside Python's lock
        while waiting and room_bytes > 0:
            now, waiting = _split(waiting, max(1, int(room_bytes / piece_bytes)))
            oggs: dict[Piece, bytes] = {}
            for recording, group in groupby(sorted(now), key=lambda piece: piece.recording):
                samples, mine = read(recording), list(group)
                cuts = [_cut(samples, piece, rate_hz=rate_hz, window_frames=window_frames) for piece in mine]
                oggs |= zip(mine, pool.map(lambda cut: _to_ogg(cut, rate_hz), cuts), strict=True)
            for piece in now:
                room_bytes -= len(oggs[piece])
                if room_bytes < 0:
                    return encoded
                encoded[piece] = oggs[piece]
            piece_bytes = sum(map(len, encoded.values())) / len(encoded)
    return encoded


def _split(pieces: list[Piece], n: int) -> tuple[list[Piece], list[Piece]]:
    return pieces[:n], pieces[n:]


def _cut(samples: FloatArray, piece: Piece, *, rate_hz: int, window_frames: int) -> FloatArray:
    first = piece.number * round(PIECE_S * rate_hz)
    return samples[first : first + round(PIECE_S * rate_hz) + window_frames]


def _to_ogg(samples: FloatArray, rate_hz: int) -> bytes:
    """Return Ogg Vorbis of samples (n,), at the rate or at what can be heard of it."""
    if rate_hz > _MAX_RATE_HZ:
        samples, rate_hz = soxr.resample(samples, rate_hz, _MAX_RATE_HZ), _MAX_RATE_HZ
    packed = io.BytesIO()
    with soundfile.SoundFile(
        packed, "w", rate_hz, 1, subtype="VORBIS", format="OGG", compression_level=_COMPRESSION
    ) as file:
        for first in range(0, len(samples), _BLOCK_FRAMES):
            file.write(samples[first : first + _BLOCK_FRAMES])
    return packed.getvalue()
