"""P23: hours of listening under hourly faults, without growth and without loss."""

from __future__ import annotations

from pathlib import Path

from tests.rig import pulse
from tests.rig.broker import MOSQUITTO, NO_MOSQUITTO
from tests.rig.faults import KILL_NODE, STOP_BROKER, UNPLUG
from tests.rig.promise import Measured, Promise
from tests.rig.soak import Plan, hourly, soak, train_bundle
from tests.rig.soakreport import verdict
from tests.small_bundle import write_small_bundle

_SHORT_FAULTS = ((1.0, STOP_BROKER), (2.0, KILL_NODE), (3.0, UNPLUG))
_HOP_S = 0.064
"""A window of the small bundle."""


def _soaked(scratch: Path, *, hours: float) -> Measured:
    duration_s = 3600.0 * hours
    return _measured(scratch, Plan(duration_s, hourly(duration_s), train_bundle(scratch)))


def _tried(scratch: Path, *, seconds: float) -> Measured:
    """Show that nothing is lost; seconds say nothing about growth."""
    bundle = write_small_bundle(scratch / "small.edgeasd")
    plan = Plan(
        seconds,
        _SHORT_FAULTS,
        bundle,
        n_microphones=1,
        scale=0.03,
        restart_pause_s=0.2,
        health_interval_s=1.0,
        hop_s=_HOP_S,
    )
    return _measured(scratch, plan)


def _measured(scratch: Path, plan: Plan) -> Measured:
    found = verdict(soak(scratch, plan))
    return Measured(found.text, found.kept)


def _run(scratch: Path, *, hours: float = 0.0, seconds: float = 0.0) -> Measured:
    return _soaked(scratch, hours=hours) if hours else _tried(scratch, seconds=seconds)


def _needs() -> str | None:
    return pulse.available() or (NO_MOSQUITTO if MOSQUITTO is None else None)


PROMISES = (
    Promise(
        number="P23",
        title="Soak",
        target="8 h with hourly faults: memory < 0.1 MB/h, descriptors flat, 0 lost, 0 unexplained",
        run=_run,
        short={"seconds": 5},
        long={"hours": 8},
        needs=_needs,
    ),
)
