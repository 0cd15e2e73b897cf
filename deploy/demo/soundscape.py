"""A machine hall that never was: seeded sound with planted events, for a first look without any recording.

Normal sound is hum with drifting load, an air handler, a press that thumps every few seconds and now and then a clank.
The events are sounds such a hall should not make. Nothing measured on this sound says how edgeasd does on yours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import signal

Sound = NDArray[np.float64]

RATE_HZ = 16000


@dataclass(frozen=True, slots=True)
class PlantedEvent:
    """Where an event was mixed in."""

    onset_s: float
    offset_s: float
    label: str


def _times_s(duration_s: float) -> Sound:
    return np.arange(round(duration_s * RATE_HZ)) / RATE_HZ


def _slow(rng: np.random.Generator, n: int, *, period_s: float) -> Sound:
    """Return a slow random walk between about -1 and 1, shape (n,)."""
    knots = max(4, int(n / RATE_HZ / period_s) + 3)
    return np.interp(np.linspace(0, knots - 1, n), np.arange(knots), np.tanh(rng.normal(size=knots)))


def _band(sound: Sound, low_hz: float, high_hz: float) -> Sound:
    sos = signal.butter(4, [low_hz, high_hz], "bandpass", fs=RATE_HZ, output="sos")
    return np.asarray(signal.sosfilt(sos, sound))


def _ring(rng: np.random.Generator, duration_s: float, modes_hz: list[float], decay_s: float) -> Sound:
    t = _times_s(duration_s)
    tones = [
        rng.uniform(0.4, 1) * np.sin(2 * np.pi * f * t + rng.uniform(0, 6.28)) * np.exp(-t * f / modes_hz[0] / decay_s)
        for f in modes_hz
    ]
    return np.asarray(sum(tones)) / len(modes_hz)


def machine_hall(rng: np.random.Generator, duration_s: float) -> Sound:
    """Return normal sound, shape (n,), root mean square about 0.05."""
    n = round(duration_s * RATE_HZ)
    load = _slow(rng, n, period_s=8.0)
    phase = 2 * np.pi * np.cumsum(49.3 * (1 + 0.004 * load)) / RATE_HZ
    hum = np.asarray(
        sum((0.6 + 0.3 * np.tanh(load + k / 9)) * np.sin(k * phase + k) / k**0.8 for k in (1, 2, 3, 4, 6, 8, 12, 16))
    )
    air = _band(rng.normal(size=n), 150, 2500) * (1 + 0.25 * _slow(rng, n, period_s=5.0))
    hiss = _band(rng.normal(size=n), 2500, 7500) * 0.15
    sound = 0.02 * hum + 0.10 * air + 0.06 * hiss
    for at_s in np.arange(1.3, duration_s - 0.6, 2.7) + rng.normal(
        scale=0.03, size=len(np.arange(1.3, duration_s - 0.6, 2.7))
    ):
        _mix(sound, _ring(rng, 0.5, [83.0, 137.0, 211.0, 1250.0], 0.09) * 0.22, at_s)
    for at_s in rng.uniform(2, duration_s - 1, size=int(duration_s / 11)):
        _mix(sound, _ring(rng, 0.3, [640.0, 1410.0, 2200.0], 0.05) * 0.06, at_s)
    return np.asarray(sound)


def _mix(into: Sound, what: Sound, at_s: float) -> None:
    first = round(at_s * RATE_HZ)
    what = what[: max(0, len(into) - first)]
    into[first : first + len(what)] += what


def _bang(rng: np.random.Generator) -> Sound:
    modes_hz = list(np.sort(rng.uniform(400, 5200, size=9)))
    return 1.1 * _ring(rng, 1.2, modes_hz, 0.35)


def _squeal(rng: np.random.Generator) -> Sound:
    t = _times_s(2.2)
    pitch_hz = 2900 + 180 * np.sin(2 * np.pi * 5.5 * t) + 250 * t + 40 * rng.normal(size=len(t)).cumsum() / 80
    phase = 2 * np.pi * np.cumsum(pitch_hz) / RATE_HZ
    return 0.07 * (np.sin(phase) + 0.5 * np.sin(2 * phase)) * signal.windows.tukey(len(t), 0.3)


def _leak(rng: np.random.Generator) -> Sound:
    t = _times_s(3.0)
    return 0.05 * _band(rng.normal(size=len(t)), 3800, 7600) * signal.windows.tukey(len(t), 0.4)


def _glass(rng: np.random.Generator) -> Sound:
    sound = np.zeros(round(1.0 * RATE_HZ))
    for _ in range(26):
        modes_hz = list(np.sort(rng.uniform(2500, 7400, size=3)))
        _mix(sound, _ring(rng, 0.25, modes_hz, 0.05) * rng.uniform(0.2, 1.0), float(rng.gamma(1.6, 0.12)))
    return 0.3 * sound


def _grinding(rng: np.random.Generator) -> Sound:
    t = _times_s(2.5)
    teeth = 1 + signal.sawtooth(2 * np.pi * 27.0 * t)
    return 0.12 * _band(rng.normal(size=len(t)), 900, 3500) * teeth * signal.windows.tukey(len(t), 0.2)


def _shout(rng: np.random.Generator) -> Sound:
    t = _times_s(1.1)
    phase = 2 * np.pi * np.cumsum(230 + 60 * np.sin(2 * np.pi * 1.1 * t)) / RATE_HZ
    voiced = signal.sawtooth(phase) + 0.2 * rng.normal(size=len(t))
    return 0.55 * (_band(voiced, 500, 1100) + 0.6 * _band(voiced, 1700, 2800)) * signal.windows.tukey(len(t), 0.5)


EVENTS: dict[str, Callable[[np.random.Generator], Sound]] = {
    "metal bang": _bang,
    "bearing squeal": _squeal,
    "air leak": _leak,
    "breaking glass": _glass,
    "grinding": _grinding,
    "shout": _shout,
}


def make_soundscape(*, seed: int, normal_s: float, eventful_s: float) -> tuple[Sound, list[PlantedEvent]]:
    """Return sound (n,) whose first `normal_s` hold no event, and what was planted in the rest, every 12 to 18 s."""
    rng = np.random.default_rng(seed)
    sound = machine_hall(rng, normal_s + eventful_s)
    planted: list[PlantedEvent] = []
    labels = list(EVENTS)
    at_s = normal_s + 8.0
    while at_s < normal_s + eventful_s - 12.0:
        if len(planted) % len(labels) == 0:
            rng.shuffle(labels)
        label = labels[len(planted) % len(labels)]
        event = EVENTS[label](rng)
        _mix(sound, event, at_s)
        planted.append(PlantedEvent(round(at_s, 3), round(at_s + len(event) / RATE_HZ, 3), label))
        at_s += float(rng.uniform(12.0, 18.0))
    return np.clip(sound, -0.99, 0.99), planted
