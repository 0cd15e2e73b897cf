"""Putting the judging half of the node together: bundle, engine, grid and pipeline, the same for `run` and `replay`."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from edgeasd.bundle import Bundle, read_bundle
from edgeasd.engine import Engine, EngineKind, PrecisionWish
from edgeasd.engine.choosing import Chosen, choose_engine
from edgeasd.errors import SettingsError
from edgeasd.features.mel import MelSpec
from edgeasd.health.inputs import measure
from edgeasd.publish import EngineInfo
from edgeasd.scoring.calibration import Calibration
from edgeasd.scoring.jury import AlarmPolicy, Grid, Model
from edgeasd.scoring.novelty import NOVELTY_SPEC
from edgeasd.scoring.pipeline import Pipeline
from edgeasd.signing import Trust
from edgeasd.site import site_calibration

log = logging.getLogger(__name__)

DEFAULT_WINDOW_S = 1.0
"""Window of a node without a bundle."""


@dataclass(frozen=True, slots=True)
class JudgeOptions:
    """Which judges sit, and how."""

    bundle: Bundle | Path | None = None
    """A path is read and verified."""
    trust: Trust | None = None
    """Whose signature a bundle that is read must bear; None asks for none."""
    engine: EngineKind = "auto"
    precision: PrecisionWish = "fp32"
    cache_dir: Path | None = None
    """Where engines keep what they build; None keeps nothing."""
    hop_s: float = 0.5
    novelty: bool = True
    policy: AlarmPolicy = AlarmPolicy()
    state_dir: Path | None = None
    """Where a site calibration may lie; None looks for none."""


@dataclass(frozen=True, slots=True)
class Bench:
    """The judges, sworn in."""

    pipeline: Pipeline
    grid: Grid
    bundle: Bundle | None
    model: Model | None
    """The bundle in use; None with it."""
    calibrated_on_site: bool
    chosen: Chosen | None = None
    """The engine that runs the bundle, and why; None with it."""

    @property
    def engine_name(self) -> str | None:
        """Return what runs the model."""
        return None if self.model is None else self.model.engine.name

    @property
    def engine_info(self) -> EngineInfo | None:
        """Return what runs the model, and why, as it is published."""
        if self.chosen is None:
            return None
        engine, chosen = self.chosen.engine, self.chosen
        return EngineInfo(engine.name, engine.precision, engine.device, chosen.why, chosen.window_ms)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Return what is wrong with the engines that do not run the model."""
        return () if self.chosen is None else tuple(f"engine passed over: {line}" for line in self.chosen.passed_over)


@dataclass(frozen=True, slots=True)
class Plan:
    """What will judge, known before anything heavy is loaded, so that capture can begin meanwhile."""

    options: JudgeOptions
    bundle: Bundle | None
    framing: MelSpec
    """Front end of the second opinion; its framing is the model's where there is one."""
    grid: Grid


def plan_judges(options: JudgeOptions) -> Plan:
    """Read and verify the bundle, if any, and lay out the grid of windows."""
    bundle = read_bundle(options.bundle, trust=options.trust) if isinstance(options.bundle, Path) else options.bundle
    if bundle is None:
        framing = NOVELTY_SPEC
        window_frames = round(DEFAULT_WINDOW_S * framing.sample_rate_hz)
    else:
        manifest = bundle.manifest
        framing = novelty_spec(manifest.inputs.log_mel, rate_hz=manifest.sample_rate_hz)
        window_frames = manifest.window_frames
    grid = make_grid(window_frames=window_frames, hop_s=options.hop_s, framing=framing)
    return Plan(options, bundle, framing, grid)


@contextmanager
def seat_judges(plan: Plan) -> Iterator[Bench]:
    """Open what judges; the engine has passed its golden test when this yields."""
    if plan.bundle is None:
        yield _bench(plan, model=None, on_site=False)
        return
    options = plan.options
    chosen = choose_engine(plan.bundle, options.engine, precision=options.precision, cache_dir=options.cache_dir)
    try:
        model, on_site = seat_model(plan.bundle, chosen.engine, state_dir=options.state_dir)
        yield replace(_bench(plan, model=model, on_site=on_site), chosen=chosen)
    finally:
        chosen.engine.close()


def seat_model(bundle: Bundle, engine: Engine, *, state_dir: Path | None) -> tuple[Model, bool]:
    """Return a bundle in use, and whether it is calibrated on site; the site calibration wins where there is one.

    Scores mean in each precision something else, so both calibrations are those of the engine's.
    """
    on_site = None if state_dir is None else site_calibration(state_dir, bundle, engine.precision)
    calibration = Calibration(on_site or bundle.calibration(engine.precision))
    return Model(engine=engine, manifest=bundle.manifest, calibration=calibration), on_site is not None


def _bench(plan: Plan, *, model: Model | None, on_site: bool) -> Bench:
    pipeline = Pipeline(
        plan.grid,
        model=model,
        novelty=plan.framing if plan.options.novelty else None,
        policy=plan.options.policy,
        inspect=measure,
    )
    return Bench(pipeline, plan.grid, plan.bundle, model, on_site)


def novelty_spec(model_spec: MelSpec | None, *, rate_hz: int) -> MelSpec:
    """Return the second opinion's front end, on the model's framing where there is one, so that spectra are shared."""
    if model_spec is not None:
        n_fft, hop_frames = model_spec.n_fft, model_spec.hop_frames
    else:
        scale = rate_hz / NOVELTY_SPEC.sample_rate_hz
        n_fft, hop_frames = 2 * round(NOVELTY_SPEC.n_fft * scale / 2), round(NOVELTY_SPEC.hop_frames * scale)
    return replace(NOVELTY_SPEC, sample_rate_hz=rate_hz, n_fft=n_fft, hop_frames=hop_frames)


def make_grid(*, window_frames: int, hop_s: float, framing: MelSpec) -> Grid:
    """Put the hop on the nearest place of the grid of mel frames; SettingsError when it is out of range."""
    rate_hz = framing.sample_rate_hz
    if not math.isfinite(hop_s):
        raise SettingsError(f"windows.hop_s: {hop_s} is no number of seconds")
    mel_hop_s = framing.hop_frames / rate_hz
    if not framing.hop_frames <= round(hop_s * rate_hz) <= window_frames:
        raise SettingsError(
            f"windows.hop_s: {hop_s:g} is not between one mel frame ({mel_hop_s:g} s) "
            f"and the window ({window_frames / rate_hz:g} s)"
        )
    hop_frames = min(round(hop_s / mel_hop_s), window_frames // framing.hop_frames) * framing.hop_frames
    if abs(hop_frames / rate_hz - hop_s) > 1e-9:
        log.info("windows.hop_s %g becomes %g: a whole number of the model's mel frames", hop_s, hop_frames / rate_hz)
    return Grid(rate_hz, window_frames, hop_frames)
