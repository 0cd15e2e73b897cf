"""The bundles installed on a node: the one in use, the one before it, and what is remembered of versions and trials.

STATE/models/SHA256/model.edgeasd and its signature; `current` and `previous` are symbolic links to such directories.
Everything takes its place by a rename, so that a process that is killed at any moment leaves the old or the new.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from edgeasd.bundle import Bundle
from edgeasd.disk import read_small, replace_file, sync_directory
from edgeasd.errors import BundleError, CannotWriteError, TemporaryError
from edgeasd.signing import read_signature, signature_path

log = logging.getLogger(__name__)

MAX_STARTS = 3
STARTS_WITHIN_S = 600.0
"""A model on trial is given up after so many starts within this time that did not end cleanly."""
_MEMBER = "model.edgeasd"
_STATE = "state.json"
_MAX_STATE_BYTES = 1 << 20
_MAX_PASSED_OVER = 16


class Trial(BaseModel):
    """A bundle that has not yet run for an hour since it replaced another."""

    model_config = ConfigDict(extra="forbid")

    sha256: str
    starts_utc_s: list[float] = []
    """Starts that have not ended cleanly, oldest first."""


class Memory(BaseModel):
    """What the store remembers beside the bundles."""

    model_config = ConfigDict(extra="forbid")

    highest: dict[str, int] = {}
    """The highest version that this node has run, by the name of the bundle."""
    passed_over: list[str] = []
    """Digests of bundles that were rolled back, or that an operator went back from: not to be run though newer."""
    trial: Trial | None = None


class ModelStore:
    """The bundles of one state directory; any number of processes may use it."""

    def __init__(self, state_dir: Path) -> None:
        self.directory = state_dir / "models"
        self._state_dir = state_dir

    @property
    def current(self) -> Path | None:
        """Return the installed bundle, None where none is."""
        return self._linked("current")

    @property
    def previous(self) -> Path | None:
        """Return the bundle before the installed one."""
        return self._linked("previous")

    def recall(self) -> Memory:
        """Return what is remembered; nothing, with a warning, when it cannot be read."""
        try:
            return Memory.model_validate_json(read_small(self.directory / _STATE, max_bytes=_MAX_STATE_BYTES))
        except FileNotFoundError:
            return Memory()
        except (OSError, ValidationError) as exc:
            log.warning("%s cannot be read: versions and trials are forgotten (%s)", self.directory / _STATE, exc)
            return Memory()

    def install(self, bundle: Bundle, *, before: Bundle | None = None, lower: bool = False) -> None:
        """Make a verified bundle the current one, and `before`, or else the present one, the one to go back to.

        `lower` forgets that newer versions have run. CannotWriteError, TemporaryError when another process installs.
        """
        self._make_directory()
        with self._locked("install.lock", wait=False):
            for one in (bundle, before):
                if one is not None:
                    self._put(one)
            with self.remembering() as memory:
                memory.trial = Trial(sha256=bundle.sha256)
                if lower:
                    memory.highest[bundle.manifest.name] = bundle.manifest.version
                    if before is not None:
                        memory.passed_over.append(before.sha256)
                memory.passed_over = [one for one in memory.passed_over if one != bundle.sha256][-_MAX_PASSED_OVER:]
            self._switch(bundle, before)
            self._prune()

    def roll_back(self, sha256: str) -> None:
        """Never run the bundle `sha256` again unless it is installed again; return to the one before it, if any."""
        self._make_directory()
        with self.remembering() as memory:
            memory.passed_over = [*memory.passed_over, sha256][-_MAX_PASSED_OVER:]
            memory.trial = None
            if _digest_of(self.current) == sha256:
                before = _digest_of(self.previous)
                if before is None or before == sha256:
                    (self.directory / "current").unlink(missing_ok=True)
                else:
                    self._link("current", before)

    def count_start(self, sha256: str, *, now_utc_s: float) -> None:
        """Take note that a bundle begins to run, if it is on trial; `end_cleanly` takes it back."""
        trial = self.recall().trial
        if trial is not None and trial.sha256 == sha256:
            with self.remembering() as memory:
                if memory.trial is not None:
                    recent = _recent(memory.trial, now_utc_s)
                    memory.trial.starts_utc_s = [*recent, now_utc_s][-MAX_STARTS:]

    def crash_loops(self, *, now_utc_s: float) -> str | None:
        """Return the digest of the bundle on trial when it has had its last start; None when all is well."""
        trial = self.recall().trial
        return None if trial is None or len(_recent(trial, now_utc_s)) < MAX_STARTS else trial.sha256

    def end_cleanly(self, *, since_utc_s: float) -> None:
        """Forget the starts since then: they have ended for a reason that has nothing to do with the model."""
        trial = self.recall().trial
        if trial is not None and any(start >= since_utc_s for start in trial.starts_utc_s):
            with self.remembering() as memory:
                if memory.trial is not None:
                    memory.trial.starts_utc_s = [start for start in memory.trial.starts_utc_s if start < since_utc_s]

    def proven(self, bundle: Bundle) -> None:
        """Take note that a bundle runs well: nothing older of its name is run from now on, and its trial is over."""
        name, version = bundle.manifest.name, bundle.manifest.version
        known = self.recall()
        on_trial = known.trial is not None and known.trial.sha256 == bundle.sha256
        if on_trial or known.highest.get(name, 0) < version:
            self._make_directory()
            with self.remembering() as memory:
                memory.highest[name] = max(version, memory.highest.get(name, 0))
                memory.trial = None if on_trial else memory.trial

    @contextmanager
    def remembering(self) -> Iterator[Memory]:
        """Change what is remembered, on the medium when this is left; other processes wait."""
        with self._locked("lock", wait=True):
            memory = self.recall()
            yield memory
            replace_file(self.directory / _STATE, memory.model_dump_json(indent=1).encode())
            self._own(self.directory / _STATE)

    def _linked(self, name: str) -> Path | None:
        link = self.directory / name
        return link.parent / link.readlink() / _MEMBER if link.is_symlink() else None

    def _make_directory(self) -> None:
        try:
            self._state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.directory.mkdir(mode=0o755, exist_ok=True)
            self._own(self.directory)
        except OSError as exc:
            raise CannotWriteError(f"{self.directory}: cannot be made: {exc.strerror}") from exc

    def _put(self, bundle: Bundle) -> None:
        """Copy a bundle with its signature into its place, all of it or nothing."""
        place = self.directory / bundle.sha256
        try:
            if place.exists():
                if hashlib.sha256((place / _MEMBER).read_bytes()).hexdigest() == bundle.sha256:
                    return
                shutil.rmtree(place)  # damaged since; whoever runs it holds it in memory
            data = bundle.path.read_bytes()
            if hashlib.sha256(data).hexdigest() != bundle.sha256:
                raise BundleError(f"{bundle.path}: was changed meanwhile")
            fresh = Path(tempfile.mkdtemp(dir=self.directory, prefix=".new-"))
            fresh.chmod(0o755)
            replace_file(fresh / _MEMBER, data)
            if (signature := read_signature(bundle.path)) is not None:
                replace_file(signature_path(fresh / _MEMBER), signature)
            for path in (fresh, *fresh.iterdir()):
                self._own(path)
            fresh.rename(place)
            sync_directory(self.directory)
        except OSError as exc:
            raise CannotWriteError(f"{place}: cannot be written: {exc.strerror}") from exc

    def _switch(self, bundle: Bundle, before: Bundle | None) -> None:
        previous = _digest_of(self.current) if before is None else before.sha256
        if previous is not None and previous != bundle.sha256:
            self._link("previous", previous)
        self._link("current", bundle.sha256)

    def _link(self, name: str, sha256: str) -> None:
        fresh = self.directory / f".{name}.new"
        try:
            fresh.unlink(missing_ok=True)
            fresh.symlink_to(sha256)
            fresh.rename(self.directory / name)
            self._own(self.directory / name)
            sync_directory(self.directory)
        except OSError as exc:
            raise CannotWriteError(f"{self.directory / name}: cannot be written: {exc.strerror}") from exc

    def _prune(self) -> None:
        """Remove what neither link leads to, and what a killed process left half-done."""
        kept = {_digest_of(self.current), _digest_of(self.previous)}
        for path in self.directory.iterdir():
            if path.is_dir() and not path.is_symlink() and path.name not in kept:
                shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def _locked(self, name: str, *, wait: bool) -> Iterator[None]:
        path = self.directory / name
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise CannotWriteError(f"{path}: cannot be written: {exc.strerror}") from exc
        try:
            self._own(path)
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            yield
        except BlockingIOError as exc:
            raise TemporaryError(f"{self.directory}: another process is installing a bundle") from exc
        finally:
            os.close(descriptor)

    def _own(self, path: Path) -> None:
        """Leave what root installs to the user whose state directory it is: the node must be able to roll back."""
        if os.geteuid() == 0:
            owner = self._state_dir.stat()
            with suppress(FileNotFoundError):  # renamed meanwhile by whoever owns it
                os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


def _recent(trial: Trial, now_utc_s: float) -> list[float]:
    """Return the starts of the last ten minutes; a clock that was set back or ahead makes none of them younger."""
    return [start for start in trial.starts_utc_s if abs(now_utc_s - start) <= STARTS_WITHIN_S]


def _digest_of(model: Path | None) -> str | None:
    return None if model is None else model.parent.name
