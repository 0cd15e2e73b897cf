"""`edgeasd bundle`: look into a bundle, or verify it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeasd.commands.common import JsonOption, print_json

if TYPE_CHECKING:
    from edgeasd.bundle import Bundle

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True)

BundleArgument = Annotated[Path, typer.Argument(metavar="FILE", help="A bundle, NAME.edgeasd.")]


@app.command()
def info(file: BundleArgument, *, as_json: JsonOption = False) -> None:
    """Print what a bundle says of itself; its digests are checked, its model is not run."""
    from edgeasd.bundle import read_bundle

    bundle = read_bundle(file)
    if as_json:
        print_json(_facts(bundle) | {"manifest": bundle.manifest.model_dump(mode="json")})
        return
    for key, value in _facts(bundle).items():
        print(f"{key.replace('_', ' '):<14} {value}")
    print(f"\n{bundle.card.strip()}")


@app.command()
def verify(file: BundleArgument, *, as_json: JsonOption = False) -> None:
    """Verify digests, graph and golden test, as a node does before it runs a bundle (exit 65 if it would not)."""
    from edgeasd.bundle import read_bundle
    from edgeasd.engine import open_engine

    bundle = read_bundle(file)
    engine = open_engine(bundle, "onnx")
    windows = len(bundle.golden.outputs["score"])
    name = engine.name
    engine.close()
    if as_json:
        print_json({"ok": True, "engine": name, "golden_windows": windows} | _facts(bundle))
    else:
        print(f"ok: {file}: digests, graph, and golden test on {windows} windows by the {name} engine")


def _facts(bundle: Bundle) -> dict[str, Any]:
    manifest = bundle.manifest
    return {
        "name": manifest.name,
        "version": manifest.version,
        "detector": manifest.detector,
        "sha256": bundle.sha256,
        "sample_rate": f"{manifest.sample_rate_hz} Hz",
        "window": f"{manifest.window_frames / manifest.sample_rate_hz:g} s",
        "outputs": ", ".join(manifest.outputs),
    }
