"""From the channels and the rate a card or a file has to mono sound at the model's rate."""

from __future__ import annotations

import math
from functools import cache
from typing import Any, Literal

import numpy as np

from edgeasd.records import FloatArray

Channel = int | Literal["mix"]


def to_mono(samples: FloatArray, channel: Channel) -> FloatArray:
    """Return one channel, or the mean of all, of samples shaped (n_frames, n_channels); may be a view of them."""
    n_channels = samples.shape[1]
    if channel != "mix":
        return samples[:, channel]
    if n_channels == 1:
        return samples[:, 0]
    mean = samples[:, 0].copy()
    for index in range(1, n_channels):  # in order, so that the sum does not depend on how the sound was cut into blocks
        mean += samples[:, index]
    mean *= np.float32(1 / n_channels)
    return mean


class RateConverter:
    """Resamples one contiguous stretch of mono sound after another; passes it through when the rates are equal.

    The output does not depend on how the input is cut into blocks. It lags the input by some 6 to 40 ms, by turns,
    which `finish` gives out.
    """

    def __init__(self, native_rate_hz: int, rate_hz: int) -> None:
        self._native_rate_hz, self._rate_hz = native_rate_hz, rate_hz
        self._ratio = rate_hz / native_rate_hz
        self._n_in = self._n_out = 0
        self._stream = None if native_rate_hz == rate_hz else _open_resampler(native_rate_hz, rate_hz)

    @property
    def position(self) -> float:
        """Return the length of the stretch so far, in frames at the output rate."""
        return self._n_in * self._ratio

    @property
    def lag(self) -> float:
        """Return how much of it has not been given out yet, in frames at the output rate."""
        return self.position - self._n_out

    def until(self, block_frames: int) -> int:
        """Return how many frames to push for the output to reach its next multiple of `block_frames` for certain."""
        if self._stream is None:
            return block_frames - self._n_in % block_frames
        most_lag = longest_lag(self._native_rate_hz, self._rate_hz)
        sure = max(0, self._n_in * self._rate_hz - most_lag * self._native_rate_hz)  # in frames, times the native rate
        goal = (sure // (block_frames * self._native_rate_hz) + 1) * block_frames + most_lag
        return -(-goal * self._native_rate_hz // self._rate_hz) - self._n_in

    def push(self, samples: FloatArray) -> FloatArray:
        """Return the frames, shape (k,), that `samples`, shape (n,), have completed."""
        self._n_in += len(samples)
        if self._stream is not None:
            samples = np.asarray(self._stream.resample_chunk(np.ascontiguousarray(samples)), dtype=np.float32)
        self._n_out += len(samples)
        return samples

    def finish(self) -> FloatArray:
        """Return what is left of the stretch, shape (k,), and begin a new one."""
        n_in, self._n_in, self._n_out = self._n_in, 0, 0
        if self._stream is None or n_in == 0:
            return np.empty(0, dtype=np.float32)
        rest = np.asarray(self._stream.resample_chunk(np.empty(0, dtype=np.float32), last=True), dtype=np.float32)
        self._stream.clear()
        return rest


@cache
def longest_lag(native_rate_hz: int, rate_hz: int) -> int:
    """Return how far a converter's output may lag, in frames at its rate: it is the same for whatever it is fed."""
    if native_rate_hz == rate_hz:
        return 0
    resampler, n_out, most = _open_resampler(native_rate_hz, rate_hz), 0, 0
    step = native_rate_hz // 200
    for n_in in range(step, native_rate_hz // 2, step):
        n_out += len(resampler.resample_chunk(np.zeros(step, np.float32)))
        most = max(most, math.ceil(n_in * rate_hz / native_rate_hz) - n_out)
    return most


def _open_resampler(native_rate_hz: int, rate_hz: int) -> Any:
    import soxr  # noqa: PLC0415  # only sources at another rate than the model's pay for it

    return soxr.ResampleStream(native_rate_hz, rate_hz, 1, dtype="float32", quality="HQ")
