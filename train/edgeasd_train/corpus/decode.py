"""From a recording to int16 blocks: one channel, at one rate, refusing what no microphone delivers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from edgeasd.capture.convert import Channel, RateConverter, to_mono
from edgeasd.records import FloatArray

FULL_SCALE = 32768.0
_BLOCK_FRAMES = 1 << 18
_MAX_CHANNELS = 64
_RATES_HZ = range(1000, 768_001)


class CannotDecodeError(Exception):
    """Raised when a recording cannot be used; its text is the reason, on one line."""


def int16_blocks(path: Path, *, rate_hz: int, channel: Channel) -> Iterator[NDArray[np.int16]]:
    """Yield the sound of a recording at `rate_hz` in blocks (n,), rounded to int16; CannotDecodeError says why not."""
    try:
        for block in _at_rate(path, rate_hz, channel):
            if not np.isfinite(block).all():
                raise CannotDecodeError("holds samples that are not finite")
            yield np.clip(np.rint(block * np.float32(FULL_SCALE)), -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)
    except (soundfile.SoundFileError, OSError, ValueError, RuntimeError, MemoryError) as exc:
        raise CannotDecodeError(_reason(exc)) from exc


def _at_rate(path: Path, rate_hz: int, channel: Channel) -> Iterator[FloatArray]:
    with soundfile.SoundFile(path) as file:
        if file.channels > _MAX_CHANNELS or file.samplerate not in _RATES_HZ:
            raise CannotDecodeError(f"has {file.channels} channels at {file.samplerate} Hz, which is no recording")
        if channel != "mix" and channel >= file.channels:
            count = "1 channel" if file.channels == 1 else f"{file.channels} channels"
            raise CannotDecodeError(f"has {count}, no channel {channel} (counted from 0)")
        converter = RateConverter(file.samplerate, rate_hz)
        for block in file.blocks(_BLOCK_FRAMES, dtype="float32", always_2d=True):
            yield converter.push(to_mono(block, channel))
        yield converter.finish()


def _reason(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return text.rpartition(": ")[2] if isinstance(error, soundfile.SoundFileError) else text
