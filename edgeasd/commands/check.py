"""`edgeasd check`: is this node fit to listen, and if not, what to do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from edgeasd.commands.checks import Finding, Reporter, exit_code_of
from edgeasd.commands.common import ConfigOption, EngineOption, JsonOption, MqttOption, PrecisionOption, print_json

if TYPE_CHECKING:
    from edgeasd.settings import Resolved


def check(
    config: ConfigOption = None,
    *,
    mqtt: MqttOption = None,
    engine: EngineOption = None,
    precision: PrecisionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check node, bundle, microphone and broker, with a fix for each.

    Prints ok, warn or fail a line; exits with the code of the first failure, 0 without one.
    """
    from edgeasd.settings import resolve_settings

    findings = []
    overrides = {"mqtt": {"url": mqtt}, "engine": engine, "precision": precision}
    for finding in _all(resolve_settings(config, overrides)):
        findings.append(finding)
        if not as_json:
            print(_line(finding), flush=True)
    if as_json:
        print_json([asdict(finding) for finding in findings])
    raise typer.Exit(exit_code_of(findings))


def _all(resolved: Resolved) -> Iterator[Finding]:
    from edgeasd.commands.checks.broker import check_broker
    from edgeasd.commands.checks.device import check_devices
    from edgeasd.commands.checks.model import check_bundle
    from edgeasd.commands.checks.node import check_node
    from edgeasd.settings import without_effect

    say = Reporter("settings")
    yield say.ok("file", str(resolved.config or "none, defaults"))
    for line in without_effect(resolved.settings):
        yield say.warn("effect", line, fix="remove it, or set what it needs")
    for part in (check_node, check_bundle, check_devices, check_broker):
        yield from part(resolved.settings)


def _line(finding: Finding) -> str:
    fix = f"\n     fix: {finding.fix}" if finding.fix else ""
    return f"{finding.verdict:<4} {finding.part} {finding.what}: {finding.detail}{fix}"
