"""`edgeasd run`: the daemon."""

from __future__ import annotations

import faulthandler
import os
import resource
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeasd.commands.common import (
    BundleOption,
    ConfigOption,
    DeviceOption,
    EngineOption,
    HopOption,
    MqttOption,
    PrecisionOption,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgeasd.settings import Settings


_SWITCH_S = 0.0005
"""A thread that captures or publishes waits so long for the one that judges, at each call of the system it makes."""


def run(  # noqa: PLR0913  # one parameter an option
    *,
    device: DeviceOption = None,
    bundle: BundleOption = None,
    mqtt: MqttOption = None,
    config: ConfigOption = None,
    duration: Annotated[float | None, typer.Option(metavar="SECONDS", min=0.1, help="Stop after this.")] = None,
    once: Annotated[bool, typer.Option("--once", help="Stop when every source has been judged once.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the messages, send none.")] = False,
    hop: HopOption = None,
    engine: EngineOption = None,
    precision: PrecisionOption = None,
    node: Annotated[str | None, typer.Option(metavar="NAME", help="Name of this node in topics.")] = None,
    log_format: Annotated[str | None, typer.Option(metavar="auto|journal|json|text", help="Form of the log.")] = None,
) -> None:
    """Listen to microphones and publish scores and events.

    --device may be given several times; each is a source, mic0, mic1 and so on. Without a broker the messages are
    printed as JSON lines.
    """
    from edgeasd.daemon import RunOptions
    from edgeasd.daemon import run as run_daemon
    from edgeasd.line import HungError
    from edgeasd.logs import set_up_logging
    from edgeasd.settings import load_settings

    overrides: dict[str, Any] = {
        "bundle": bundle,
        "engine": engine,
        "precision": precision,
        "windows": {"hop_s": hop},
        "mqtt": {"url": mqtt},
        "node": {"name": node},
        "log": {"format": log_format},
        "sources": _sources(device),
    }

    def load() -> Settings:
        settings = load_settings(config, overrides)
        if not dry_run:
            return settings
        from edgeasd.publishing import without_broker

        return without_broker(settings)

    _leave_no_core()
    sys.setswitchinterval(_SWITCH_S)
    settings = load()
    set_up_logging(level=settings.log.level, form=settings.log.format)
    faulthandler.enable()  # a watchdog that runs out ends us by SIGABRT: say where every thread stood
    try:
        run_daemon(settings, RunOptions(duration_s=duration, once=once, load_again=load))
    except HungError as exc:
        # Its thread sits in the sound system for good, and would hold up an orderly exit.
        print(f"edgeasd: {exc}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(exc.exit_code)


def _leave_no_core() -> None:
    """Let no crash write memory, and with it a password, to a disk; who wants a core sets the limit while we run."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))


def _sources(devices: Sequence[str] | None) -> list[dict[str, str]] | None:
    if not devices:
        return None
    return [{"name": f"mic{index}", "device": device} for index, device in enumerate(devices)]
