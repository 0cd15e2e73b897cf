"""Checks of the microphones: there, allowed, and alive."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from edgeasd.commands.checks import Finding, Reporter
from edgeasd.errors import EdgeasdError, NoPermissionError

if TYPE_CHECKING:
    from edgeasd.settings import Settings, SourceSettings

_LISTEN_S = 2.0
_RATE_HZ = 16_000
_FIXES = {
    "dead": "nothing but zeros: check the mute switch, the mixer (alsamixer) and the cable",
    "constant": "the converter stands still: plug the card out and in",
    "clipped": "lower the capture gain in alsamixer",
    "dc_offset": "a broken preamplifier or a cable without ground",
}

_say = Reporter("microphone")


def check_devices(settings: Settings) -> Iterator[Finding]:
    """Yield a finding for each source, or about the microphones there are when no source is set."""
    if not settings.sources:
        yield _any_there()
    for source in settings.sources:
        yield _check_source(source)


def _any_there() -> Finding:
    from edgeasd.commands.hearing import known_devices

    try:
        names = [info.name for info in known_devices()]
    except EdgeasdError as exc:
        return _say.fail("devices", str(exc), fix="restart the sound server", exit_code=exc.exit_code)
    if not names:
        return _say.warn("devices", "none, and no source is set", fix="plug one in; it will be found while running")
    return _say.warn(
        "devices", f"no source is set; there is {', '.join(names)}", fix="set sources, or run --device NAME"
    )


def _check_source(source: SourceSettings) -> Finding:
    from edgeasd.capture.source import SourceSpec, is_pipe
    from edgeasd.commands.hearing import hear

    if is_pipe(source.device):
        return _say.ok(source.name, f"{source.device}: a pipe, nothing was read from it")
    spec = SourceSpec(
        name=source.name,
        device=source.device,
        rate_hz=_RATE_HZ,
        channel=source.channel,
        native_rate_hz=source.native_rate_hz,
    )
    try:
        heard = hear(spec, listen_s=_LISTEN_S)
    except NoPermissionError as exc:
        return _say.fail(source.name, str(exc), fix="add the user to group audio", exit_code=exc.exit_code)
    except EdgeasdError as exc:
        return _say.fail(source.name, str(exc), fix="edgeasd devices lists what there is", exit_code=exc.exit_code)
    detail = f"{heard.device}: {heard.rms_dbfs:.0f} dBFS at {heard.native_rate_hz} Hz, {heard.n_channels} channels"
    if heard.fault is not None:
        fix = _FIXES.get(heard.fault, "check the microphone")
        return _say.warn(source.name, f"{detail}, {heard.fault}", fix=fix)
    return _say.ok(source.name, detail)
