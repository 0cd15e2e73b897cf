"""Checks of the bundle: whole, and giving here what it gave where it was trained."""

from __future__ import annotations

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
    from edgeasd.engine.choosing import choose_engine
    from edgeasd.engine.measuring import batch_of, latency_ms
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
        cache_dir = settings.engine_cache_dir
        chosen = choose_engine(bundle, settings.engine, precision=settings.precision, cache_dir=cache_dir)
    except EdgeasdError as exc:
        fix = "set engine: onnx and precision: fp32, or install what the line names"
        yield _say.fail("golden test", str(exc), fix=fix, exit_code=exc.exit_code)
        return
    engine = chosen.engine
    try:
        each_ms = latency_ms(engine, batch_of(bundle.golden, 1))
        where = f"{engine.name} engine in {engine.precision} on {engine.device}"
        yield _say.ok("golden test", f"passed by the {where}, {each_ms:.2f} ms a window; {chosen.why}")
    finally:
        engine.close()
    for line in chosen.passed_over:
        yield _say.warn("engine", f"passed over: {line}", fix="edgeasd engine info says what is installed")
    try:
        spec = novelty_spec(manifest.inputs.log_mel, rate_hz=manifest.sample_rate_hz)
        make_grid(window_frames=manifest.window_frames, hop_s=settings.windows.hop_s, framing=spec)
    except EdgeasdError as exc:
        yield _say.fail("windows", str(exc), fix="change windows.hop_s", exit_code=exc.exit_code)
