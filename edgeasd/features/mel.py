"""The mel front end: from samples to log-mel frames, each frame computed once, however much the windows overlap.

Incremental and whole-window results agree bit for bit, so nothing on this path may depend on how many frames one call
holds. That rules out a matrix product (BLAS picks its summation order by shape); a sparse one sums every band in one
fixed order, and is also the fastest, since each FFT bin feeds at most two triangles.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeasd.features.kernels import SparseMatrix, spectra
from edgeasd.records import FloatArray

_BATCH_FRAMES = 80
"""Frames transformed at once: they, their spectra and powers together stay in a second-level cache of 1 MB."""
_LANES = 4
"""The FFT takes this many rows side by side in vector registers; leftover rows would run through other machine code."""
_DB_PER_NEPER = np.float32(10.0 / np.log(10.0))

_SLANEY_HZ_PER_MEL = 200.0 / 3.0
_SLANEY_BREAK_HZ = 1000.0
_SLANEY_LOG_STEP = np.log(6.4) / 27.0


@dataclass(frozen=True, slots=True)
class MelSpec:
    """Says everything about a log-mel front end: periodic Hann window, no centre padding, power spectrum."""

    sample_rate_hz: int = 16000
    n_fft: int = 1024
    hop_frames: int = 400
    n_mels: int = 64
    f_min_hz: float = 0.0
    f_max_hz: float | None = None
    """Upper end of the highest band; None is half the sample rate."""
    mel_scale: Literal["htk", "slaney"] = "htk"
    norm: Literal["none", "slaney"] = "none"
    """slaney: triangles of equal area, not equal height."""
    scale: Literal["db", "power"] = "db"
    floor: float = 1e-10
    """Power at which the logarithm bottoms out; unused when scale is power."""
    floor_mode: Literal["clamp", "add"] = "clamp"
    rows: tuple[int, int] | None = None
    """First mel row kept and the row past the last; None keeps all."""

    def __post_init__(self) -> None:
        """Refuse what no filter bank can be built from."""
        for name, value in (("sample_rate_hz", self.sample_rate_hz), ("n_mels", self.n_mels)):
            if value < 1:
                raise ValueError(f"{name}: {value} is below 1")
        if self.n_fft < 2 or self.n_fft % 2:
            raise ValueError(f"n_fft: {self.n_fft} is not an even number of at least 2")
        if not 1 <= self.hop_frames <= self.n_fft:
            raise ValueError(f"hop_frames: {self.hop_frames} is not within 1 and n_fft {self.n_fft}")
        if not 0.0 <= self.f_min_hz < self.top_hz <= self.sample_rate_hz / 2:
            raise ValueError(f"f_min_hz {self.f_min_hz} and f_max_hz {self.top_hz} are not ordered below Nyquist")
        if self.floor <= 0.0 and self.scale == "db":
            raise ValueError(f"floor: {self.floor} is not above 0")
        if self.rows is not None and not 0 <= self.rows[0] < self.rows[1] <= self.n_mels:
            raise ValueError(f"rows: {self.rows} is no range within 0 and n_mels {self.n_mels}")

    @property
    def top_hz(self) -> float:
        """Return the upper end of the highest mel band before cropping."""
        return self.sample_rate_hz / 2 if self.f_max_hz is None else self.f_max_hz

    @property
    def n_bins(self) -> int:
        """Return the number of FFT bins."""
        return self.n_fft // 2 + 1

    @property
    def n_rows(self) -> int:
        """Return the number of mel rows left after cropping."""
        return self.n_mels if self.rows is None else self.rows[1] - self.rows[0]

    def n_frames(self, window_frames: int) -> int:
        """Return how many STFT frames fit into a window of audio frames."""
        return max(0, 1 + (window_frames - self.n_fft) // self.hop_frames)

    def band_edges_hz(self) -> NDArray[np.float64]:
        """Return (n_rows, 2) lower and upper edges: the half-height points, so that bands tile without overlap."""
        points = mel_points_hz(self)
        middles = (points[:-1] + points[1:]) / 2
        return self._crop(np.stack([middles[:-1], middles[1:]], axis=1))

    def filter_bank(self) -> FloatArray:
        """Return (n_rows, n_bins) triangles, float32."""
        points = mel_points_hz(self)[:, None]  # (n_mels + 2, 1)
        bins_hz = np.linspace(0.0, self.sample_rate_hz / 2, self.n_bins)[None, :]
        rising = (bins_hz - points[:-2]) / (points[1:-1] - points[:-2])
        falling = (points[2:] - bins_hz) / (points[2:] - points[1:-1])
        triangles = np.maximum(0.0, np.minimum(rising, falling))
        if self.norm == "slaney":
            triangles *= 2.0 / (points[2:] - points[:-2])
        return self._crop(triangles).astype(np.float32)

    def _crop(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        return rows if self.rows is None else rows[self.rows[0] : self.rows[1]]


def mel_points_hz(spec: MelSpec) -> NDArray[np.float64]:
    """Return the n_mels + 2 corner frequencies of the triangles, before cropping."""
    if spec.mel_scale == "htk":
        low, high = 2595.0 * np.log10(1.0 + np.array([spec.f_min_hz, spec.top_hz]) / 700.0)
        points: NDArray[np.float64] = 700.0 * (10.0 ** (np.linspace(low, high, spec.n_mels + 2) / 2595.0) - 1.0)
        return points
    low, high = (_slaney_mel(hz) for hz in (spec.f_min_hz, spec.top_hz))
    mels = np.linspace(low, high, spec.n_mels + 2)
    break_mel = _SLANEY_BREAK_HZ / _SLANEY_HZ_PER_MEL
    curved = _SLANEY_BREAK_HZ * np.exp(_SLANEY_LOG_STEP * (mels - break_mel))
    return np.where(mels < break_mel, mels * _SLANEY_HZ_PER_MEL, curved)


def _slaney_mel(hz: float) -> float:
    if hz < _SLANEY_BREAK_HZ:
        return hz / _SLANEY_HZ_PER_MEL
    return float(_SLANEY_BREAK_HZ / _SLANEY_HZ_PER_MEL + np.log(hz / _SLANEY_BREAK_HZ) / _SLANEY_LOG_STEP)


class _Room(NamedTuple):
    framed: FloatArray
    """(_BATCH_FRAMES, n_fft)."""
    spectra: NDArray[np.complex64]
    """Space for those of `framed`, flat."""


class _Desk(threading.local):
    """Room to work in, for each length of frames: one for all streams of a thread, so that it stays in the cache."""

    def __init__(self) -> None:
        self._rooms: dict[int, _Room] = {}

    def of(self, n_fft: int) -> _Room:
        if n_fft not in self._rooms:
            framed = np.zeros((_BATCH_FRAMES, n_fft), np.float32)
            self._rooms[n_fft] = _Room(framed, np.zeros((n_fft // 2 + 1) * _BATCH_FRAMES, np.complex64))
        return self._rooms[n_fft]


_desk = _Desk()


class StftPower:
    """Power spectra of a stream of samples: keeps what the next frame needs, computes each frame once."""

    def __init__(self, n_fft: int, hop_frames: int) -> None:
        self._n_fft = n_fft
        self._hop_frames = hop_frames
        self._hann = (0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(n_fft) / n_fft)).astype(np.float32)
        self._tail: FloatArray = np.empty(0, np.float32)

    def push(self, samples: FloatArray) -> FloatArray:
        """Take samples (n,) and return the power (k, n_fft // 2 + 1) of the k frames they complete."""
        sound = np.concatenate((self._tail, samples), dtype=np.float32)
        n_frames = max(0, 1 + (len(sound) - self._n_fft) // self._hop_frames)
        self._tail = sound[n_frames * self._hop_frames :].copy()
        return self.transform(sound)

    def transform(self, sound: FloatArray) -> FloatArray:
        """Return the power (k, n_fft // 2 + 1) of all frames within `sound` (n,), leaving the stream alone."""
        batches = list(self.batches([sound]))
        if len(batches) == 1:
            return batches[0]
        return np.concatenate(batches) if batches else np.empty((0, self._n_fft // 2 + 1), np.float32)

    def batches(self, sounds: Iterable[FloatArray]) -> Iterator[FloatArray]:
        """Yield the power (k, n_fft // 2 + 1) of all frames within each of `sounds` (n,), one sound after the other.

        In pieces small enough to stay in the processor's cache, and transposed: bins lie together.
        """
        framed, n_filled = _desk.of(self._n_fft).framed, 0  # empty whenever something is handed out
        for sound in sounds:
            frames = self._frames(sound)
            first = 0
            while first < len(frames):
                some = frames[first : first + _BATCH_FRAMES - n_filled]
                with np.errstate(invalid="ignore", over="ignore"):
                    np.multiply(some, self._hann, out=framed[n_filled : n_filled + len(some)])
                first, n_filled = first + len(some), n_filled + len(some)
                if n_filled == _BATCH_FRAMES:
                    yield self._transform(n_filled)
                    n_filled = 0
        if n_filled:
            yield self._transform(n_filled)

    def reset(self) -> None:
        """Forget the samples held back: what comes next does not join on."""
        self._tail = np.empty(0, np.float32)

    def _frames(self, sound: FloatArray) -> FloatArray:
        """Return the frames (k, n_fft) of `sound` (n,) as a view."""
        n_frames = max(0, 1 + (len(sound) - self._n_fft) // self._hop_frames)
        sound = np.ascontiguousarray(sound, np.float32)
        strides = (self._hop_frames * sound.itemsize, sound.itemsize)
        return np.ndarray((n_frames, self._n_fft), np.float32, sound.data if n_frames else None, strides=strides)

    def _transform(self, n_frames: int) -> FloatArray:
        """Return the power of the first frames that are in place."""
        n_rows, n_bins = -(-n_frames // _LANES) * _LANES, self._n_fft // 2 + 1
        room = _desk.of(self._n_fft)
        found = room.spectra[: n_bins * n_rows].reshape(n_bins, n_rows)
        spectra(room.framed[:n_rows], found)
        parts = found.view(np.float32)[:, : 2 * n_frames]  # real, imaginary, real, ..
        with np.errstate(invalid="ignore", over="ignore"):  # sound that is not finite is a fault for others to report
            parts *= parts
            power: FloatArray = parts[:, 0::2] + parts[:, 1::2]
        return power.T


class MelBank:
    """Mel bands of power spectra, in dB or as power; those of several specs one below the other."""

    def __init__(self, *specs: MelSpec) -> None:
        self._specs = specs
        self._triangles = SparseMatrix(np.concatenate([spec.filter_bank() for spec in specs]))

    def log_mel(self, power: FloatArray) -> FloatArray:
        """Turn power (k, n_bins) into (k, n_rows): dB, or linear power when the spec says so."""
        return np.ascontiguousarray(self.columns(power).T)

    def columns(self, power: FloatArray) -> FloatArray:
        """Turn power (k, n_bins) into (n_rows, k), what `log_mel` returns the other way round."""
        mel = self._triangles.times(power.T)
        first = 0
        with np.errstate(invalid="ignore", over="ignore"):
            for spec in self._specs:
                if spec.scale == "db":
                    _to_db(mel[first : first + spec.n_rows], spec)
                first += spec.n_rows
        return mel


def _to_db(mel: FloatArray, spec: MelSpec) -> None:
    if spec.floor_mode == "clamp":
        np.maximum(mel, np.float32(spec.floor), out=mel)
    else:
        mel += np.float32(spec.floor)
    np.log(mel, out=mel)
    mel *= _DB_PER_NEPER


class MelFrontEnd:
    """Samples to log-mel frames of one stream, window by window or as the sound comes."""

    def __init__(self, spec: MelSpec) -> None:
        self.spec = spec
        self._stft = StftPower(spec.n_fft, spec.hop_frames)
        self._bank = MelBank(spec)

    def window_log_mel(self, samples: FloatArray) -> FloatArray:
        """Return (n_rows, n_frames) of one whole window (window_frames,), leaving the stream alone."""
        log_mel = np.empty((self.spec.n_rows, self.spec.n_frames(len(samples))), np.float32)
        first = 0
        for power in self._stft.batches([samples]):
            log_mel[:, first : first + len(power)] = self._bank.columns(power)
            first += len(power)
        return log_mel

    def push(self, samples: FloatArray) -> FloatArray:
        """Take samples (n,) of the stream and return (k, n_rows) for the k frames they complete."""
        return self._bank.log_mel(self._stft.push(samples))

    def reset(self) -> None:
        """Forget the samples held back: what comes next does not join on."""
        self._stft.reset()
