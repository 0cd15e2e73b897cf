"""Is the microphone broken? A judgement on the samples themselves, before anything is made of them.

Thresholds are for full scale 1.0. They are set so that loud, quiet and odd but real sound passes:

- Dead and constant: what remains after the mean is taken off is below -100 dBFS, less than the idle noise of any
  converter with a microphone on it.
- Clipped: more than 1 % of the samples lie at full scale AND they pile up there, at the very same value as at no other,
  or go beyond 1.0. A pure tone just below full scale spends 12 % of its time above 0.98, but only 0.6 % at its very
  peak; a tone clipped by half a percent spends 6 % there. Resampling bends flat tops into ripples that overshoot 1.0,
  which a sound that was never clipped does not do.
- Offset: the mean is beyond 0.05 AND every eighth of the window agrees. A gust of wind or a slamming door moves the
  mean of a second further than that, but not the same way all through it.
- Not finite: NaN, infinity, or samples a hundred times beyond full scale, which no converter delivers.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from edgeasd.records import Fault, FloatArray, Level

FLOOR_DBFS = -120.0

_FULL_SCALE = 0.98
_CLIPPED_PCT = 1.0
_SAME_VALUE = 5e-5
"""One and a half steps of 16 bits: -32768 and 32767 are both the end of the scale."""
_OVERSHOOT = 1.005
_LOUD = 0.3
_DEAD_RMS = 1e-5
_DEAD_SPAN = 1e-3
"""Only a window that spans less than this is looked at in double precision for being dead or constant."""
_CONSTANT_DC = 1e-4
_OFFSET_DC = 0.05
_OFFSET_PARTS = 8
_ABSURD = 100.0


class FaultLatch:
    """Makes of the verdicts on single windows the lasting state of one input.

    A fault stands once it has lasted two seconds, and falls after three seconds without one; a lost device is a fault
    at once. Time is counted in frames.
    """

    def __init__(self, rate_hz: int, *, enter_s: float = 2.0, leave_s: float = 3.0) -> None:
        self._enter_frames = round(enter_s * rate_hz)
        self._leave_frames = round(leave_s * rate_hz)
        self._standing: Fault | None = None
        self._faulty_since: int | None = None
        self._healthy_since: int | None = None

    @property
    def standing(self) -> Fault | None:
        """Return what is wrong with the input, as of now."""
        return self._standing

    def observe(self, fault: Fault | None, *, first_frame: int, end_frame: int) -> bool:
        """Take note of the verdict on a window; return whether what stands has changed."""
        before = self._standing
        if fault is None:
            self._faulty_since = None
            self._healthy_since = first_frame if self._healthy_since is None else self._healthy_since
            if end_frame - self._healthy_since >= self._leave_frames:
                self._standing = None
        else:
            self._healthy_since = None
            self._faulty_since = first_frame if self._faulty_since is None else self._faulty_since
            if end_frame - self._faulty_since >= self._enter_frames:
                self._standing = fault
        return self._standing is not before

    def device_lost(self) -> bool:
        """Take note that the device is gone; return whether what stands has changed."""
        before = self._standing
        self._standing = Fault.DEVICE_ABSENT
        self._faulty_since = self._healthy_since = None
        return before is not Fault.DEVICE_ABSENT


def measure(samples: FloatArray) -> tuple[Level, Fault | None]:
    """Return the level of samples (n,) and what is wrong with them."""
    low, high = float(np.minimum.reduce(samples)), float(np.maximum.reduce(samples))
    peak = max(-low, high)
    if not peak <= _ABSURD:  # NaN compares false
        return _level_of_rubble(samples), Fault.NOT_FINITE
    mean_square = float(np.dot(samples, samples)) / len(samples)
    dc = float(np.dot(samples, _ones(len(samples)))) / len(samples)  # a third of the time that `mean` takes
    clip_pct = _share_pct(samples, _FULL_SCALE) if peak >= _FULL_SCALE else 0.0
    level = Level(_dbfs(math.sqrt(mean_square)), _dbfs(peak), clip_pct, dc)
    return level, _fault(samples, span=high - low, peak=peak, level=level)


@lru_cache(maxsize=2)
def _ones(n_frames: int) -> FloatArray:
    return np.ones(n_frames, np.float32)


def _fault(samples: FloatArray, *, span: float, peak: float, level: Level) -> Fault | None:
    if span < _DEAD_SPAN and float(samples.std(dtype=np.float64)) < _DEAD_RMS:
        return Fault.CONSTANT if abs(level.dc) > _CONSTANT_DC else Fault.DEAD
    if level.clip_pct > _CLIPPED_PCT and _is_clipped(samples, peak):
        return Fault.CLIPPED
    if abs(level.dc) > _OFFSET_DC and _is_steady_offset(samples, level.dc):
        return Fault.DC_OFFSET
    return None


def _is_clipped(samples: FloatArray, peak: float) -> bool:
    if peak > _OVERSHOOT:
        return True
    magnitudes = np.abs(samples)
    n_at_peak = int(np.count_nonzero(magnitudes >= peak - _SAME_VALUE))
    if 100.0 * n_at_peak <= _CLIPPED_PCT * len(samples):
        return False
    # A noiseless tone that fits the sample rate repeats all its values, not only the highest.
    loud = magnitudes[(magnitudes > _LOUD) & (magnitudes < _FULL_SCALE)]
    usual = np.quantile(loud, (0.25, 0.5, 0.75), method="nearest") if len(loud) else ()
    return all(n_at_peak > 2 * int(np.count_nonzero(np.abs(loud - value) <= _SAME_VALUE)) for value in usual)


def _is_steady_offset(samples: FloatArray, dc: float) -> bool:
    n_part = len(samples) // _OFFSET_PARTS
    if n_part == 0:
        return True
    means = samples[: n_part * _OFFSET_PARTS].reshape(_OFFSET_PARTS, n_part).mean(axis=1) * math.copysign(1.0, dc)
    return bool(means.min() > 0.5 * _OFFSET_DC)


def _share_pct(samples: FloatArray, magnitude: float) -> float:
    n_beyond = np.count_nonzero(samples >= magnitude) + np.count_nonzero(samples <= -magnitude)
    return 100.0 * int(n_beyond) / len(samples)


def _level_of_rubble(samples: FloatArray) -> Level:
    """Return the level of what can be measured of samples that are partly not finite or absurdly large."""
    finite: NDArray[np.float64] = samples[np.isfinite(samples)].astype(np.float64)
    usable = finite[np.abs(finite) <= _ABSURD]
    if not len(usable):
        return Level(FLOOR_DBFS, FLOOR_DBFS, 0.0, 0.0)
    rms = math.sqrt(float(np.mean(usable**2)))
    clip_pct = 100.0 * float(np.mean(np.abs(usable) >= _FULL_SCALE))
    return Level(_dbfs(rms), _dbfs(float(np.abs(usable).max())), clip_pct, float(usable.mean()))


def _dbfs(amplitude: float) -> float:
    return max(20.0 * math.log10(amplitude), FLOOR_DBFS) if amplitude > 0.0 else FLOOR_DBFS
