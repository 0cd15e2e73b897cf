"""Putting an installed bundle to work while the node listens: tried aside, heard in the shadow, swapped, watched.

No window is lost on the way. The new model is asked from one window on; should it fail within its first hour, the one
before it judges the very windows over which it failed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from edgeasd.assembly import Bench, seat_model
from edgeasd.bundle import read_bundle
from edgeasd.engine.choosing import Chosen, choose_engine
from edgeasd.errors import BundleError, EdgeasdError
from edgeasd.models.choosing import Choice, Start, choose
from edgeasd.models.shadow import SHADOW_WINDOWS, Shadow
from edgeasd.models.sidetest import side_test
from edgeasd.models.store import ModelStore
from edgeasd.node import Node
from edgeasd.publish import ModelInfo
from edgeasd.scoring.jury import Model
from edgeasd.settings import Settings

log = logging.getLogger(__name__)

LOOKED_AFTER = ("bundle", "trusted_keys_dir")
"""Settings that a reload leaves to `Swapping`."""
TRIAL_S = 3600.0
_SHADOW_S = 600.0
"""A shadow that has heard too little after this, for want of sound, is believed as it is."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A bundle that has passed its golden test in a process of its own, and again in this one."""

    choice: Choice
    model: Model
    on_site: bool
    chosen: Chosen


class _Preparation(threading.Thread):
    """Finds out which bundle is to run, and makes it ready, away from the thread that judges."""

    def __init__(self, node: Node, settings: Settings) -> None:
        super().__init__(name="model", daemon=True)
        self._node = node
        self._settings = settings
        self.candidate: _Candidate | None = None
        """None when nothing is to change."""
        self.refused: tuple[str | None, EdgeasdError] | None = None
        """The digest of what was refused, where it could be read, and why."""
        self.note = ""
        """Why nothing changes though it might have been expected."""
        self.start()

    def run(self) -> None:
        """Prepare; what is refused is kept for the thread that judges."""
        choice: Choice | None = None
        try:
            choice = choose(self._settings)
            if choice is not None:
                self._prepare(choice)
        except EdgeasdError as exc:
            self.refused = (None if choice is None else choice.bundle.sha256, exc)

    def _prepare(self, choice: Choice) -> None:
        bench, bundle = self._node.bench, choice.bundle
        settings = self._node.settings  # another engine, like all that a reload does not take, waits for a restart
        if bench.bundle is not None and bundle.sha256 == bench.bundle.sha256:
            self.note = choice.why if choice.origin == "previous" else ""
            return
        if not bench.pipeline.takes(bundle.manifest):
            name, version = bundle.manifest.name, bundle.manifest.version
            self.note = f"{name} version {version} is cut or framed otherwise, and used from the next start"
            return
        cache_dir = settings.engine_cache_dir
        side_test(bundle, engine=settings.engine, precision=settings.precision, cache_dir=cache_dir)
        if choice.origin == "settings":
            _adopt(ModelStore(settings.state_dir), choice, bench)
        chosen = choose_engine(bundle, settings.engine, precision=settings.precision, cache_dir=cache_dir)
        model, on_site = seat_model(bundle, chosen.engine, state_dir=settings.state_dir)
        self.candidate = _Candidate(choice, model, on_site, chosen)


@dataclass(frozen=True, slots=True)
class _Audition:
    """A candidate in the shadow."""

    candidate: _Candidate
    shadow: Shadow
    until_s: float


@dataclass(frozen=True, slots=True)
class _Trial:
    """A model in its first hour, and the one to which the node would return."""

    bench: Bench
    until_s: float
    before: tuple[Bench, ModelInfo | None] | None
    """None when the node began with the model: then the next start returns."""


class Swapping:
    """An attendant that swaps the model when a reload finds another one to run, and goes back when that one fails."""

    def __init__(self, store: ModelStore, start: Start | None = None) -> None:
        """`start` is what the node begins with."""
        self.store = store
        self._start = start
        self._preparation: _Preparation | None = None
        self._wanted: Settings | None = None
        self._audition: _Audition | None = None
        self._trial: _Trial | None = None

    def reload(self, node: Node, settings: Settings) -> None:
        """See whether another bundle is to run; called after the settings were read again."""
        node.settings = node.settings.model_copy(update={name: getattr(settings, name) for name in LOOKED_AFTER})
        self._wanted = settings

    def attend(self, node: Node, now_s: float) -> None:
        """Take the next step towards another model, if one is under way."""
        if self._start is not None:
            self._look_around(node, self._start, now_s)
            self._start = None
        if self._trial is not None:
            self._watch(node, self._trial, now_s)
        if self._audition is not None:
            self._listen(node, self._audition, now_s)
        elif self._preparation is not None and not self._preparation.is_alive():
            preparation, self._preparation = self._preparation, None
            self._take(node, preparation, now_s)
        elif self._wanted is not None and self._preparation is None:
            self._preparation, self._wanted = _Preparation(node, self._wanted), None

    def _look_around(self, node: Node, start: Start, now_s: float) -> None:
        node.reporter.warn("model", start.notes)
        if start.choice is not None:
            node.reporter.model = _info(start.choice, on_trial=start.on_trial)
        if start.on_trial:
            self._trial = _Trial(node.bench, now_s + TRIAL_S, before=None)

    def _take(self, node: Node, preparation: _Preparation, now_s: float) -> None:
        """Go on with what a preparation has come to."""
        if preparation.refused is not None:
            sha256, exc = preparation.refused
            self._refuse(node, sha256, str(exc))
        elif preparation.note:
            _tell(node, preparation.note)
        elif preparation.candidate is not None:
            candidate = preparation.candidate
            shadow = Shadow(node.bench.grid, candidate.model)
            node.bench.pipeline.overheard_by = shadow.hear
            self._audition = _Audition(candidate, shadow, now_s + _SHADOW_S)
            log.info("model: %s listens in the shadow for %d windows", _named(candidate.choice), SHADOW_WINDOWS)

    def _listen(self, node: Node, audition: _Audition, now_s: float) -> None:
        shadow, candidate = audition.shadow, audition.candidate
        if not shadow.done and now_s < audition.until_s:
            return
        self._audition = None
        node.bench.pipeline.overheard_by = None
        hop_s = node.bench.grid.hop_frames / node.bench.grid.rate_hz
        if shadow.failure is not None:
            reason = str(shadow.failure)
        elif shadow.window_s * len(node.line.tracks) > hop_s:
            reason = f"a window costs {1e3 * shadow.window_s:.0f} ms, and one comes every {1e3 * hop_s:.0f} ms"
        else:
            self._swap(node, audition, now_s)
            return
        candidate.model.engine.close()
        self._refuse(node, candidate.choice.bundle.sha256, f"in the shadow: {reason}")

    def _swap(self, node: Node, audition: _Audition, now_s: float) -> None:
        candidate, heard = audition.candidate, audition.shadow.summary()
        before, info = node.bench, node.reporter.model
        self._close_former()
        before.pipeline.set_model(candidate.model, standby=before.model)
        bundle = candidate.choice.bundle
        node.bench = replace(
            before,
            bundle=bundle,
            model=candidate.model,
            chosen=candidate.chosen,
            calibrated_on_site=candidate.on_site,
        )
        node.reporter.judged_by(node.bench, node.settings)
        node.reporter.model = replace(_info(candidate.choice, on_trial=True), shadow=heard)
        node.reporter.warn("model", [])
        self._trial = _Trial(node.bench, now_s + TRIAL_S, before=(before, info))
        _attempt(lambda: self.store.count_start(bundle.sha256, now_utc_s=time.time()))
        log.info("model: %s judges from now on; in the shadow: %s", _named(candidate.choice), heard)

    def _watch(self, node: Node, trial: _Trial, now_s: float) -> None:
        """Go back when the model has failed; believe in it after an hour."""
        assert trial.bench.bundle is not None
        failure = trial.bench.pipeline.failure
        if failure is not None and trial.before is not None:
            self._trial = None
            (node.bench, info), sha256 = trial.before, trial.bench.bundle.sha256
            node.reporter.judged_by(node.bench, node.settings)
            node.reporter.model = info
            self._refuse(node, sha256, f"{failure}; the one before judges again")
            if trial.bench.model is not None:
                trial.bench.model.engine.close()
        elif now_s >= trial.until_s:
            bundle = trial.bench.bundle
            self._close_former()
            self._trial = None
            _attempt(lambda: self.store.proven(bundle))
            if node.reporter.model is not None:
                node.reporter.model = replace(node.reporter.model, on_trial=False)
            if trial.bench.model is not None and trial.before is not None:
                trial.bench.pipeline.set_model(trial.bench.model)  # its standby is closed
            log.info("model: %s has run for an hour", bundle.manifest.name)

    def _close_former(self) -> None:
        """Close the engine to which the node will not return."""
        if self._trial is not None and self._trial.before is not None:
            former = self._trial.before[0].model
            if former is not None:
                former.engine.close()

    def _refuse(self, node: Node, sha256: str | None, reason: str) -> None:
        if sha256 is not None:
            _attempt(lambda: self.store.roll_back(sha256))
        which = "the bundle to run" if sha256 is None else f"bundle {sha256[:6]}"
        _tell(node, f"{which} is not used: {reason}")


def _adopt(store: ModelStore, choice: Choice, bench: Bench) -> None:
    """Put a bundle that the settings name into the store, with the running one before it where that is still there."""
    before = bench.bundle
    if before is not None:
        try:
            before = read_bundle(before.path)
        except BundleError:
            before = None
        if before is not None and bench.bundle is not None and before.sha256 != bench.bundle.sha256:
            before = None
    store.install(choice.bundle, before=before)


def _info(choice: Choice, *, on_trial: bool) -> ModelInfo:
    bundle = choice.bundle
    return ModelInfo(bundle.manifest.version, choice.origin, choice.why, bundle.signed_by, on_trial)


def _named(choice: Choice) -> str:
    return f"{choice.bundle.manifest.name} version {choice.bundle.manifest.version}"


def _tell(node: Node, text: str) -> None:
    log.warning("model: %s", text)
    node.reporter.warn("model", [f"model: {text}"])


def _attempt(change: Callable[[], None]) -> None:
    """Change what the store holds; a disk that does not take it stops nothing."""
    try:
        change()
    except EdgeasdError as exc:
        log.warning("model: %s", exc)
