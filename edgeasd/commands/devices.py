"""`edgeasd devices`: which microphones there are, by the names that `run --device` takes."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeasd.commands.common import JsonOption, print_json
from edgeasd.errors import EdgeasdError, UnavailableError

if TYPE_CHECKING:
    from edgeasd.capture.devices import DeviceInfo

_BAR_DB = 60


def devices(
    *,
    as_json: JsonOption = False,
    test_s: Annotated[
        float | None, typer.Option("--test", min=1, max=60, metavar="SECONDS", help="Listen to each for so long.")
    ] = None,
) -> None:
    """List sound cards and what each can do."""
    from edgeasd.commands.hearing import known_devices

    found = known_devices()
    if not found and not as_json:
        raise UnavailableError("no microphone: is one plugged in, and may this user use it (group audio)?")
    rows = [asdict(info) | ({} if test_s is None else _test(info, test_s)) for info in found]
    if as_json:
        print_json(rows)
    else:
        for row in rows:
            print("\n".join(_lines(row)))


def _test(info: DeviceInfo, listen_s: float) -> dict[str, Any]:
    """Return what is heard, or why nothing is."""
    from edgeasd.capture.source import SourceSpec
    from edgeasd.commands.hearing import hear

    rate_hz = info.default_rate_hz or 48_000
    try:
        heard = hear(SourceSpec(name="test", device=info.alsa_id or info.name, rate_hz=rate_hz), listen_s=listen_s)
    except EdgeasdError as exc:
        return {"heard": None, "trouble": str(exc)}
    return {"heard": asdict(heard), "trouble": None}


def _lines(row: dict[str, Any]) -> list[str]:
    lines = [f"{row['name']}" + ("  (default)" if row["is_default"] else "")]
    rates = ", ".join(str(rate_hz) for rate_hz in row["rates_hz"]) or "none now"
    lines.append(f"    {row['max_channels']} channels at {rates} Hz, {row['host_api']}")
    names = [f"usb-{key}:{row[f'usb_{key}']}" for key in ("id", "path") if row[f"usb_{key}"]]
    if row["alsa_id"] or names:
        lines.append(f"    also {', '.join([*([row['alsa_id']] if row['alsa_id'] else []), *names])}")
    if row["holder"]:
        lines.append(f"    in use by {row['holder']}")
    if row.get("heard"):
        heard = row["heard"]
        bar = "#" * max(0, round((heard["rms_dbfs"] + _BAR_DB) / 2))
        fault = f"  {heard['fault'].upper()}" if heard["fault"] else ""
        lines.append(f"    heard {heard['rms_dbfs']:6.1f} dBFS, peak {heard['peak_dbfs']:6.1f}  {bar}{fault}")
    elif row.get("trouble"):
        lines.append(f"    not heard: {row['trouble']}")
    return lines
