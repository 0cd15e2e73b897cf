"""Checks of the bundle: whole, and giving here what it gave where it was trained."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from edgeasd.commands.checks import Finding, Reporter
from edgeasd.errors import EdgeasdError

if TYPE_CHECKING:
    from edgeasd.settings import Settings

_say = Reporter("bundle")


def check_bundle(settings: Settings) -> Iterator[Finding]:
    """Yield findings about the bundle and the engine that is to run it."""
    from edgeasd.assembly import make_grid, novelty_spec
    from edgeasd.engine import open_engine
    from edgeasd.models.choosing import choose

    try:
        choice = choose(settings)
    except EdgeasdError as exc:
        fix = "copy the bundle again with its signature, or export it again with `edgeasd train`"
        yield _say.fail("file", str(exc), fix=fix, exit_code=exc.exit_code)
        return
    if choice is None:
        yield _say.ok("file", "none set: the untrained second opinion judges alone")
        return
    bundle, manifest = choice.bundle, choice.bundle.manifest
    signed = f", signed by {bundle.signed_by}" if bundle.signed_by else ""
    yield _say.ok(
        "file", f"{manifest.name} version {manifest.version}, sha256 {bundle.sha256[:12]}{signed}: {choice.why}"
    )
    try:
        engine = open_engine(bundle, settings.engine)
    except EdgeasdError as exc:
        fix = "set engine: onnx, or install what the line names"
        yield _say.fail("golden test", str(exc), fix=fix, exit_code=exc.exit_code)
        return
    try:
        started = time.perf_counter()
        engine.score(bundle.golden.inputs)
        windows = len(bundle.golden.outputs["score"])
        each_ms = 1e3 * (time.perf_counter() - started) / windows
        yield _say.ok("golden test", f"passed by the {engine.name} engine, {each_ms:.2f} ms a window")
    finally:
        engine.close()
    try:
        spec = novelty_spec(manifest.inputs.log_mel, rate_hz=manifest.sample_rate_hz)
        make_grid(window_frames=manifest.window_frames, hop_s=settings.windows.hop_s, framing=spec)
    except EdgeasdError as exc:
        yield _say.fail("windows", str(exc), fix="change windows.hop_s", exit_code=exc.exit_code)
