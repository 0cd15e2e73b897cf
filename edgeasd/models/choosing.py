"""Which bundle a node runs, and why: the one its settings name, or the one that was installed after it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from edgeasd.bundle import Bundle, read_bundle
from edgeasd.errors import BundleError, CannotWriteError, EdgeasdError, SelfTestError
from edgeasd.models.store import MAX_STARTS, STARTS_WITHIN_S, ModelStore
from edgeasd.settings import Settings
from edgeasd.signing import Trust, load_trust

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Choice:
    """The bundle to run."""

    bundle: Bundle
    origin: Literal["settings", "installed", "previous"]
    why: str
    """A clause for a person."""


@dataclass(frozen=True, slots=True)
class Start:
    """What a node begins with."""

    choice: Choice | None
    on_trial: bool
    """The bundle has replaced another and has not run for an hour yet."""
    notes: tuple[str, ...] = ()
    """What went wrong before, for the info topic."""


def trust_of(settings: Settings) -> Trust | None:
    """Return the keys that this node trusts, None where it asks for no signatures; SettingsError when one is amiss."""
    return load_trust(settings.trusted_keys_dir, required="trusted_keys_dir" in settings.model_fields_set)


def choose(settings: Settings) -> Choice | None:
    """Return the bundle that the node is to run, verified; None where neither the settings nor anybody else has one.

    An installed bundle wins over that of the settings when it bears the same name and is no older, or when the one of
    the settings is refused. BundleError when nothing is left, or only what is older than what has run.
    """
    store, trust = ModelStore(settings.state_dir), trust_of(settings)
    memory = store.recall()
    installed, troubles = _installed(store, trust)
    if settings.bundle is None:
        if installed is None and troubles:
            raise troubles[0]
        return installed
    try:
        configured = read_bundle(settings.bundle, trust=trust)
    except BundleError as exc:
        if installed is None:
            raise
        return Choice(installed.bundle, installed.origin, f"the one of the settings is refused: {exc}")
    choice = _better(configured, installed, passed_over=configured.sha256 in memory.passed_over)
    manifest = choice.bundle.manifest
    if choice.origin != "previous" and manifest.version < memory.highest.get(manifest.name, 0):
        raise BundleError(
            f"{choice.bundle.path}: is version {manifest.version}, and this node has run version "
            f"{memory.highest[manifest.name]}; to go back: edgeasd bundle install --allow-older {choice.bundle.path}"
        )
    return choice


def _installed(store: ModelStore, trust: Trust | None) -> tuple[Choice | None, list[BundleError]]:
    """Return the current bundle of the store, else the one before it, else what is wrong with them."""
    troubles: list[BundleError] = []
    for origin, path in (("installed", store.current), ("previous", store.previous)):
        if path is None or (origin == "previous" and not troubles):
            continue
        try:
            bundle = read_bundle(path, trust=trust)
        except BundleError as exc:
            troubles.append(exc)
            continue
        if origin == "installed":
            return Choice(bundle, "installed", "it was installed"), []
        return Choice(bundle, "previous", f"the installed one is refused: {troubles[0]}"), troubles
    return None, troubles


def _better(configured: Bundle, installed: Choice | None, *, passed_over: bool) -> Choice:
    if installed is None:
        return Choice(configured, "settings", "the settings name it")
    if configured.sha256 == installed.bundle.sha256:
        return installed
    there, here = installed.bundle.manifest, configured.manifest
    if not passed_over and there.name != here.name:
        return Choice(configured, "settings", f"the settings name it; {there.name}, which is installed, is another")
    if not passed_over and here.version > there.version:
        return Choice(configured, "settings", f"the settings name it; version {there.version}, installed, is older")
    because = "was given up" if passed_over else "is not newer"
    why = f"{installed.why}; {here.name} version {here.version} of the settings {because}"
    return Choice(installed.bundle, installed.origin, why)


@contextmanager
def beginning(settings: Settings, store: ModelStore) -> Iterator[Start]:
    """Choose a bundle for a run, after going back from one that makes the node crash; on leaving, say how it ended.

    A run that ends by an exception that nobody foresaw, or by none at all since it was killed, stays counted.
    """
    began_utc_s = time.time()
    notes = _leave_crash_loop(store)
    choice = choose(settings)
    if choice is not None:
        _adopt_newer(store, choice)
    start = Start(choice, _on_trial(store, choice), notes)
    if choice is not None:
        log.log(logging.WARNING if choice.origin == "previous" else logging.DEBUG, "model: %s", choice.why)
        _remember(store, choice, on_trial=start.on_trial)
    try:
        yield start
    except (BundleError, SelfTestError) as exc:
        if choice is None or not _on_trial(store, choice):
            raise
        store.roll_back(choice.bundle.sha256)
        raise SelfTestError(f"{exc}; the next start uses the model before") from exc  # a supervisor starts us again
    except EdgeasdError:
        _end_cleanly(store, began_utc_s)
        raise
    _end_cleanly(store, began_utc_s)


def _leave_crash_loop(store: ModelStore) -> tuple[str, ...]:
    sha256 = store.crash_loops(now_utc_s=time.time())
    if sha256 is None:
        return ()
    within_min = STARTS_WITHIN_S / 60
    note = (
        f"model: bundle {sha256[:6]} is given up: {MAX_STARTS} starts within {within_min:.0f} min did not end cleanly"
    )
    log.error("%s", note)
    store.roll_back(sha256)
    return (note,)


def _on_trial(store: ModelStore, choice: Choice | None) -> bool:
    trial = store.recall().trial
    return choice is not None and trial is not None and trial.sha256 == choice.bundle.sha256


def _adopt_newer(store: ModelStore, choice: Choice) -> None:
    """Install what the settings name over what is installed: the node can then go back to that."""
    if choice.origin == "settings" and store.current is not None:
        try:
            store.install(choice.bundle)
        except EdgeasdError as exc:
            log.warning("model: %s; there is nothing to go back to", exc)


def _remember(store: ModelStore, choice: Choice, *, on_trial: bool) -> None:
    try:
        if on_trial:
            store.count_start(choice.bundle.sha256, now_utc_s=time.time())
        elif choice.origin != "previous":
            store.proven(choice.bundle)
    except CannotWriteError as exc:
        log.warning("%s; the version that runs is not remembered", exc)


def _end_cleanly(store: ModelStore, began_utc_s: float) -> None:
    try:
        store.end_cleanly(since_utc_s=began_utc_s)
    except CannotWriteError as exc:
        log.warning("%s", exc)
