"""From the channels and the rate a card or a file has to mono sound at the model's rate."""

from __future__ import annotations

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

    The output does not depend on how the input is cut into blocks. It lags the input by some 30 ms, which `finish`
    gives out.
    """

    def __init__(self, native_rate_hz: int, rate_hz: int) -> None:
        self._ratio = rate_hz / native_rate_hz
        self._n_in = 0
        self._stream = None if native_rate_hz == rate_hz else _open_resampler(native_rate_hz, rate_hz)

    @property
    def position(self) -> float:
        """Return the length of the stretch so far, in frames at the output rate."""
        return self._n_in * self._ratio

    def push(self, samples: FloatArray) -> FloatArray:
        """Return the frames, shape (k,), that `samples`, shape (n,), have completed."""
        self._n_in += len(samples)
        if self._stream is None:
            return samples
        return np.asarray(self._stream.resample_chunk(np.ascontiguousarray(samples)), dtype=np.float32)

    def finish(self) -> FloatArray:
        """Return what is left of the stretch, shape (k,), and begin a new one."""
        n_in, self._n_in = self._n_in, 0
        if self._stream is None or n_in == 0:
            return np.empty(0, dtype=np.float32)
        rest = np.asarray(self._stream.resample_chunk(np.empty(0, dtype=np.float32), last=True), dtype=np.float32)
        self._stream.clear()
        return rest


def _open_resampler(native_rate_hz: int, rate_hz: int) -> Any:
    import soxr  # noqa: PLC0415  # only sources at another rate than the model's pay for it

    return soxr.ResampleStream(native_rate_hz, rate_hz, 1, dtype="float32", quality="HQ")
