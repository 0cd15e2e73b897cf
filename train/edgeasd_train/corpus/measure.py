"""What one recording holds: measured block by block in a single pass, whatever its length, rate and channels."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from edgeasd.capture.convert import Channel, to_mono
from edgeasd.features.mel import MelSpec, StftPower, mel_points_hz
from edgeasd.records import FloatArray

Spectrum = NDArray[np.float32]

N_BANDS = 80
_POINTS_HZ = mel_points_hz(MelSpec(sample_rate_hz=48_000, n_mels=N_BANDS))
BAND_CENTRES_HZ = _POINTS_HZ[1:-1]
"""Of the mel bands (HTK) that all spectra are taken in, 0 to 24 kHz, whatever the rate of a recording."""
FLOOR_DBFS = -150.0
"""What digital silence reads; 0 dBFS is the mean square of a square wave that fills the range."""

_BLOCK_FRAMES = 1 << 17
_FRAME_S = 0.06
_HANN_POWER = 0.375
"""Mean square of a Hann window."""
_HOT = 0.9995
"""Full scale, as far as clipping is concerned."""


@dataclass(frozen=True, slots=True)
class Measured:
    """The facts about a recording that can be heard. Levels and spectrum are those of the channel listened to."""

    rate_hz: int
    n_frames: int
    coding: str
    """Container and sample format, such as FLAC PCM_16."""
    rms_dbfs: float
    """Without DC."""
    peak_dbfs: float
    """Highest sample of all channels."""
    dc: float
    """Mean of the channel where it is farthest from 0, in full scales."""
    clipped_share: float
    """Samples at full scale that follow two others there, of all: a normalised file touches it in single ones."""
    channels_dbfs: tuple[float, ...]
    """RMS of each channel, without DC."""
    digest: bytes
    """Of rate, channels and all samples: the same sound has the same, in whatever lossless file it lies."""
    spectrum_dbfs: Spectrum
    """Mean power (N_BANDS,); NaN above half the rate."""


@dataclass(frozen=True, slots=True)
class Task:
    """A recording to measure."""

    number: int
    name: str
    n_bytes: int


@contextmanager
def measuring(channel: Channel) -> Iterator[Callable[[Task], Measured | str]]:
    """Give a function that measures a recording, or says why it cannot."""

    def measure_or_tell(task: Task) -> Measured | str:
        try:
            return measure(Path(task.name), channel)
        except (soundfile.SoundFileError, OSError, ValueError, RuntimeError, MemoryError) as exc:
            line = (str(exc).splitlines() or [type(exc).__name__])[0]
            if isinstance(exc, OSError) and exc.strerror:
                return exc.strerror
            return line.rpartition(": ")[2] if isinstance(exc, soundfile.SoundFileError) else line

    yield measure_or_tell


def measure(path: Path, channel: Channel) -> Measured:
    """Read a recording once; ValueError, or an error of the decoder, when it holds no sound that could be used."""
    with soundfile.SoundFile(path) as file:
        if channel != "mix" and channel >= file.channels:
            count = "1 channel" if file.channels == 1 else f"{file.channels} channels"
            raise ValueError(f"has {count}, no channel {channel} (counted from 0)")
        sums = _Sums(file.channels, rate_hz=file.samplerate)
        for block in file.blocks(_BLOCK_FRAMES, dtype="float32", always_2d=True):
            sums.add(block, np.ascontiguousarray(to_mono(block, channel)))
        measured = sums.measured()
        return replace(measured, coding=f"{file.format} {file.subtype}")


class _Sums:
    """Adds up the blocks of one recording."""

    def __init__(self, n_channels: int, *, rate_hz: int) -> None:
        self._rate_hz = rate_hz
        self._n_frames = 0
        self._n_hot = 0
        self._hot_tail: NDArray[np.bool_] = np.zeros((0, n_channels), np.bool_)
        self._peak = 0.0
        self._first = np.zeros(n_channels + 1)  # sums of the channels and, last, of the one listened to
        self._second = np.zeros(n_channels + 1)  # sums of squares
        self._digest = hashlib.blake2b(f"{rate_hz} {n_channels}".encode(), digest_size=16)
        self._n_fft = fft_frames(rate_hz)
        self._stft = StftPower(self._n_fft, self._n_fft // 2)
        self._power = np.zeros(self._n_fft // 2 + 1)
        self._n_spectra = 0

    def add(self, block: FloatArray, heard: FloatArray) -> None:
        """Take the next frames (n, n_channels), and of them what is listened to (n,)."""
        if not np.isfinite(block).all():
            raise ValueError("holds samples that are not finite")
        self._n_frames += len(block)
        self._digest.update(np.ascontiguousarray(block).data)
        self._first[:-1] += block.sum(axis=0, dtype=np.float64)
        self._second[:-1] += np.square(block, dtype=np.float64).sum(axis=0)
        self._first[-1] += heard.sum(dtype=np.float64)
        self._second[-1] += np.square(heard, dtype=np.float64).sum()
        magnitude = np.abs(block)
        self._peak = max(self._peak, float(magnitude.max(initial=0.0)))
        if self._peak >= _HOT:
            self._count_hot(magnitude >= _HOT)
        self._add_spectra(heard)

    def _count_hot(self, hot: NDArray[np.bool_]) -> None:
        joined = np.concatenate([self._hot_tail, hot])
        self._n_hot += int((joined[2:] & joined[1:-1] & joined[:-2]).sum())
        self._hot_tail = joined[-2:]

    def _add_spectra(self, heard: FloatArray) -> None:
        power = self._stft.push(heard)
        self._power += power.sum(axis=0, dtype=np.float64)
        self._n_spectra += len(power)

    def measured(self) -> Measured:
        """Return what the blocks added up to."""
        if not self._n_frames:
            raise ValueError("holds no sound")
        mean = self._first / self._n_frames
        variance = np.maximum(self._second / self._n_frames - mean**2, 0.0)
        levels = dbfs(variance)
        return Measured(
            rate_hz=self._rate_hz,
            n_frames=self._n_frames,
            coding="",
            rms_dbfs=float(levels[-1]),
            peak_dbfs=float(dbfs(np.array(self._peak**2))),
            dc=float(mean[:-1][np.abs(mean[:-1]).argmax()]),
            clipped_share=self._n_hot / (self._n_frames * (len(mean) - 1)),
            channels_dbfs=tuple(levels[:-1].tolist()),
            digest=self._digest.digest(),
            spectrum_dbfs=self._spectrum(),
        )

    def _spectrum(self) -> Spectrum:
        n_spectra: float = self._n_spectra
        if not n_spectra:  # shorter than one frame: its spectrum is that of the sound between silence
            self._add_spectra(np.zeros(self._n_fft, np.float32))
            n_spectra = self._n_frames / self._n_fft
        bank = _bank(self._rate_hz)
        # Parseval, one-sided: the bands of white noise add up to its mean square.
        power = 2.0 * self._power / (n_spectra * self._n_fft**2 * _HANN_POWER)
        spectrum = dbfs(bank @ power).astype(np.float32)
        spectrum[_POINTS_HZ[2:] > self._rate_hz / 2] = np.nan
        return spectrum


def fft_frames(rate_hz: int) -> int:
    """Return the length of a transform of some 60 ms, a power of two."""
    return 1 << int(np.ceil(np.log2(max(2.0, _FRAME_S * rate_hz))))


def dbfs(mean_square: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the level of a mean square, FLOOR_DBFS at least."""
    level: NDArray[np.float64] = 10.0 * np.log10(np.maximum(mean_square, 10.0 ** (FLOOR_DBFS / 10.0)))
    return level


@lru_cache(maxsize=8)
def _bank(rate_hz: int) -> NDArray[np.float64]:
    """Return (N_BANDS, n_bins) triangles of height 1 over the bins of a transform at `rate_hz`."""
    bins_hz = np.linspace(0.0, rate_hz / 2, fft_frames(rate_hz) // 2 + 1)
    low, centre, high = _POINTS_HZ[:-2, None], _POINTS_HZ[1:-1, None], _POINTS_HZ[2:, None]
    return np.maximum(0.0, np.minimum((bins_hz - low) / (centre - low), (high - bins_hz) / (high - centre)))
