"""Fixtures that every test may use."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# As on a node, one thread a library, before any of them is imported: pools fight over the cores, and a process that has
# one cannot be forked into ranks.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

import numpy as np  # noqa: E402
import pytest  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
_RECORDINGS = ROOT.parent / "shared" / "audio"

FloatArray = NDArray[np.float32]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run tests that fork first: torch refuses to differentiate in a child once its parent has autograd threads."""
    items.sort(key=lambda item: item.get_closest_marker("forks") is None)


@pytest.fixture(scope="session")
def project_root() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def recordings() -> Path:
    """The folder of real recordings (streams/, machines/, clips/); skips where it is missing."""
    if not (_RECORDINGS / "streams").is_dir():
        pytest.skip(f"no real recordings at {_RECORDINGS}")
    return _RECORDINGS


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    """An empty state directory of mode 0700."""
    path = tmp_path / "state"
    path.mkdir(mode=0o700)
    return path


@pytest.fixture
def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment that says nothing about edgeasd, with an empty home."""
    for name in list(os.environ):
        if name.upper().startswith(("EDGEASD_", "XDG_")) or name in ("CREDENTIALS_DIRECTORY", "STATE_DIRECTORY"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


@dataclass(frozen=True, slots=True)
class Planted:
    """An event in a soundscape."""

    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Soundscape:
    """Generated sound whose events are known."""

    rate_hz: int
    samples: FloatArray
    """Shape (n_frames,), full scale is 1.0."""
    events: tuple[Planted, ...]


MakeSoundscape = Callable[..., Soundscape]


@pytest.fixture(scope="session")
def make_soundscape() -> MakeSoundscape:
    """A function (duration_s, *, seed=0, rate_hz=16000, events=()) that makes the same machine hall every time.

    A hum with harmonics and slow modulation over pink noise; each event (start_s, end_s) is a rattle of loud clicks.
    """
    return _soundscape


def _soundscape(
    duration_s: float, *, seed: int = 0, rate_hz: int = 16000, events: tuple[tuple[float, float], ...] = ()
) -> Soundscape:
    random = np.random.default_rng(seed)
    n_frames = round(duration_s * rate_hz)
    time_s = np.arange(n_frames) / rate_hz
    samples = 0.02 * _pink(n_frames, random)
    for harmonic in range(1, 9):
        depth = 1 + 0.3 * np.sin(2 * np.pi * random.uniform(0.1, 0.6) * time_s + random.uniform(0, 6))
        samples += 0.04 / harmonic * depth * np.sin(2 * np.pi * 97.0 * harmonic * time_s + random.uniform(0, 6))
    for start_s, end_s in events:
        first, last = round(start_s * rate_hz), min(round(end_s * rate_hz), n_frames)
        n_event = last - first
        clicks = random.standard_normal(n_event) * (np.arange(n_event) % (rate_hz // 20) < rate_hz // 200)
        samples[first:last] += 0.25 * clicks
    planted = tuple(Planted(start_s, end_s) for start_s, end_s in events)
    return Soundscape(rate_hz, np.clip(samples, -1, 1).astype(np.float32), planted)


def _pink(n_frames: int, random: np.random.Generator) -> NDArray[np.float64]:
    """Return noise that falls by 3 dB an octave, standard deviation 1."""
    spectrum = np.fft.rfft(random.standard_normal(n_frames))
    noise = np.fft.irfft(spectrum / np.sqrt(np.arange(1, len(spectrum) + 1)), n_frames)
    return np.asarray(noise / noise.std())
