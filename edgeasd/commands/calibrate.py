"""`edgeasd calibrate`: learn on site what a bundle's scores mean there."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeasd.commands.common import BundleOption, ConfigOption, EngineOption, HopOption, PrecisionOption
from edgeasd.errors import UsageError

if TYPE_CHECKING:
    from edgeasd.calibrating import Heard
    from edgeasd.settings import Settings


def calibrate(  # noqa: PLR0913  # one parameter an option
    recordings: Annotated[
        list[Path] | None, typer.Argument(help="Recordings of normal sound; none: listen to --device.")
    ] = None,
    *,
    device: Annotated[str | None, typer.Option("--device", "-d", metavar="NAME", help="Sound card to hear.")] = None,
    minutes: Annotated[float, typer.Option(min=0.1, help="How long to listen.")] = 30.0,
    far: Annotated[str | None, typer.Option(metavar="N/hour", help="False-alarm budget to report on: 2/day.")] = None,
    bundle: BundleOption = None,
    hop: HopOption = None,
    engine: EngineOption = None,
    precision: PrecisionOption = None,
    config: ConfigOption = None,
) -> None:
    """Learn on site what a bundle's scores mean there.

    Everything heard must be normal. The result lies in the state directory beside no other node's, and wins over what
    the bundle brought along. The untrained second opinion adapts by itself and needs none of this.
    """
    from edgeasd.calibrating import hear_microphone, hear_recordings
    from edgeasd.models.choosing import choose
    from edgeasd.settings import load_settings
    from edgeasd.site import save_site_calibration

    if bool(recordings) == bool(device):
        raise UsageError("give either recordings of normal sound or --device NAME")
    overrides = {
        "bundle": bundle,
        "engine": engine,
        "precision": precision,
        "windows": {"hop_s": hop},
        "alarm": {"false_alarms": far},
        "sources": [{"name": "mic0", "device": device}] if device else None,
    }
    settings = load_settings(config, overrides)
    choice = None if bundle is not None else choose(settings)
    if settings.bundle is None and choice is None:
        raise UsageError("--bundle: none given; without a bundle there is nothing to calibrate")
    if recordings:
        heard = hear_recordings(settings, choice, recordings)
    else:
        print(f"listening to {device} for {minutes:g} minutes", file=sys.stderr)
        heard = hear_microphone(settings, choice, duration_s=60.0 * minutes)
    path = save_site_calibration(settings.state_dir, heard.bundle, heard.table, heard.precision)
    print(_report(settings, heard, path))


def _report(settings: Settings, heard: Heard, path: Path) -> str:
    from edgeasd.scoring.calibration import Calibration

    rate, table = settings.alarm.false_alarms, heard.table
    new, old = Calibration(table), Calibration(heard.bundle.calibration(heard.precision))
    p_value = new.p_for_alarms(24.0 * rate.per_hour, hop_s=table.hop_s)
    reach, start, start_before = new.extrapolation(p_value), new.score_at(p_value), old.score_at(p_value)
    lines = [
        f"{table.n_scores} windows, worth {table.n_effective:.0f} independent ones",
        f"budget {rate}: an event starts at score {start:.4g} (the bundle's own: {start_before:.4g})",
        f"written to {path}",
    ]
    if reach > 1.0:
        lines.insert(2, f"extrapolated {reach:.0f}x: listen {reach:.0f} times as long to hear such a budget itself")
    return "\n".join(lines)
