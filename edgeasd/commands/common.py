"""Options that several commands share, and how they print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="Settings file. Default: /etc/edgeasd/config.yaml, else ~/.config/edgeasd/config.yaml.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
MqttOption = Annotated[
    str | None, typer.Option("--mqtt", metavar="URL", help="Broker: mqtt[s]://HOST[:PORT][/BASE/TOPIC].")
]
BundleOption = Annotated[Path | None, typer.Option("--bundle", "-b", metavar="FILE", help="Model to run.")]
EngineOption = Annotated[
    str | None, typer.Option("--engine", metavar="auto|onnx|torch|tensorrt", help="What runs the model.")
]
PrecisionOption = Annotated[
    str | None, typer.Option("--precision", metavar="auto|fp32|fp16|int8", help="In which numbers it computes.")
]
HopOption = Annotated[
    float | None, typer.Option("--hop", metavar="SECONDS", help="Time from window to window. Default: 0.5.")
]
DeviceOption = Annotated[
    list[str] | None,
    typer.Option("--device", "-d", metavar="NAME", help="Sound card: hw:1, hw:CARD=x, or a part of its name."),
]


def print_json(value: Any) -> None:
    """Print a value as indented JSON."""
    print(json.dumps(value, indent=2, allow_nan=False))
