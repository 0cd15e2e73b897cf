"""P10: microphones that lie."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from deploy.demo.soundscape import RATE_HZ
from edgeasd.records import Fault, FloatArray
from tests.rig.promise import Measured, Promise
from tests.rig.stage import Stage, hall, needs, seconds_since, staged

_WINDOW_NS, _STAMP_ERROR_NS = 1_000_000_000, 50_000_000
_ONSET_NS = 1_700_000_000
"""A window, what is on its way, and a player that takes its time to start: before, the sound may still be healthy."""


def _tone(hz: float, amplitude: float) -> FloatArray:
    return (amplitude * np.sin(2 * np.pi * hz * np.arange(20 * RATE_HZ) / RATE_HZ)).astype(np.float32)


def _broken_inputs() -> dict[Fault, FloatArray | None]:
    sound = hall(20.0)
    return {
        Fault.DEAD: None,
        Fault.CONSTANT: np.full(20 * RATE_HZ, 0.01, np.float32),
        Fault.CLIPPED: np.clip(20.0 * sound, -1.0, 1.0),
        Fault.DC_OFFSET: sound + np.float32(0.3),
    }


def flag_the_wrong_microphone(scratch: Path, *, kinds: int, healthy_s: float, swaps: int) -> Measured:
    """Make the microphone dead, constant, clipped, shifted; then let the server put another one in its place."""
    flagged_s: dict[str, float] = {}
    n_broken = n_valid = n_events = 0
    with staged(scratch) as stage:
        for fault, sound in list(_broken_inputs().items())[:kinds]:
            _play_for(stage, healthy_s)
            began_ns = time.monotonic_ns()
            flagged_s[fault.value] = _flagged_after_s(stage, fault, sound)
            broken = [each.json for each in stage.heard("mic0/score", since_ns=began_ns + _ONSET_NS)]
            n_broken, n_valid = n_broken + len(broken), n_valid + sum(each["valid"] for each in broken)
            n_events += len(stage.heard("mic0/event", since_ns=began_ns + _ONSET_NS))
        swapped = [_swapped(stage, hz=1000.0 + 500.0 * number) for number in range(swaps)]
        stage.node.stop()
    slowest_s = max(seconds for seconds, _ in swapped)
    foreign = sum(n_foreign for _, n_foreign in swapped)
    times = ", ".join(f"{name} {seconds:.1f}" for name, seconds in flagged_s.items())
    return Measured(
        f"flagged after, s: {times}; {n_valid} of {n_broken} scores of broken input valid, {n_events} events from it; "
        f"{swaps} swaps by the sound server told after {slowest_s:.1f} s at most, {foreign} windows of the wrong "
        "microphone scored",
        kept=max(*flagged_s.values(), slowest_s) <= 3.0 and not n_events and not foreign and not n_valid,
    )


def _play_for(stage: Stage, seconds: float) -> None:
    """Let it hear normal sound: its second opinion speaks after some 16 s only."""
    stage.microphone.silence()
    stage.microphone.play(hall(seconds + 20.0), RATE_HZ)
    stage.wait("mic0/score", lambda each: each.json["valid"], since_ns=time.monotonic_ns())
    time.sleep(seconds)


def _flagged_after_s(stage: Stage, fault: Fault, sound: FloatArray | None) -> float:
    began_ns = time.monotonic_ns()
    stage.microphone.silence()
    if sound is not None:
        stage.microphone.play(sound, RATE_HZ)
    told = stage.wait("fault/attributes", lambda each: each.json["fault"] == fault.value, since_ns=began_ns)
    return seconds_since(began_ns, told)


def _swapped(stage: Stage, *, hz: float) -> tuple[float, int]:
    """Take the microphone away beside another one; return when that was told, and how many windows of it were scored.

    Whatever is heard after the right one has gone comes from the other.
    """
    microphone = stage.microphone
    microphone.silence()
    microphone.play(hall(20.0) * np.float32(0.01), RATE_HZ)
    microphone.put_back("mic_b")
    microphone.play(_tone(hz, 0.9), RATE_HZ, into="mic_b")
    stage.wait("mic0/score", lambda each: each.json["valid"], since_ns=time.monotonic_ns())
    began_ns = time.monotonic_ns()
    microphone.take_away()
    gone_ns = time.time_ns()
    told = stage.wait("mic0/status", lambda each: each.text == "offline", since_ns=began_ns)
    time.sleep(1.5)
    ends_ns = [each.json["ts_ns"] + _WINDOW_NS for each in stage.heard("mic0/score", since_ns=began_ns)]
    foreign = [end_ns for end_ns in ends_ns if end_ns > gone_ns + _STAMP_ERROR_NS]
    microphone.put_back()
    microphone.play(hall(20.0), RATE_HZ)
    stage.wait("mic0/score", since_ns=time.monotonic_ns())
    return seconds_since(began_ns, told), len(foreign)


PROMISES = (
    Promise(
        "P10",
        "a wrong or dead microphone is never scored in silence",
        "flagged <= 3 s; valid: false; no event from dead input; none of the wrong microphone's sound scored",
        flag_the_wrong_microphone,
        short={"kinds": 1, "healthy_s": 0, "swaps": 1},
        long={"kinds": 4, "healthy_s": 25, "swaps": 20},
        needs=needs,
    ),
)
