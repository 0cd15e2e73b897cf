"""Recordings for tests: seeded noise, written as files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

RATE_HZ = 16000


def noise(duration_s: float, *, seed: int = 0, rate_hz: int = RATE_HZ) -> NDArray[np.float32]:
    """Return white noise (n,) of standard deviation 0.1."""
    random = np.random.default_rng(seed)
    return (0.1 * random.standard_normal(round(duration_s * rate_hz))).astype(np.float32)


def write(path: Path, samples: NDArray[np.float32], *, rate_hz: int = RATE_HZ, subtype: str = "PCM_16") -> Path:
    """Write samples (n,) or (n, n_channels) to `path`, in folders made for it, and return it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate_hz, subtype=subtype)
    return path
