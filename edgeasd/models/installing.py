"""Installing a bundle on a node, running or not."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

from edgeasd.bundle import Bundle, read_bundle
from edgeasd.errors import BundleError, UsageError
from edgeasd.models.choosing import Choice, choose, trust_of
from edgeasd.models.sidetest import side_test
from edgeasd.models.store import ModelStore
from edgeasd.settings import Settings

_LOCK_FILE = "lock"


def install_bundle(settings: Settings, file: Path, *, allow_older: bool) -> Bundle:
    """Verify a bundle, try it in a process of its own, and put it where the node takes it from.

    BundleError, and nothing changed, when it is refused, or older than what this node has run and not allowed to be;
    UsageError when the settings name another model, so that it would never run.
    """
    bundle = read_bundle(file, trust=trust_of(settings))
    present = _present(settings)
    _check_name(settings, bundle, present)
    if not allow_older:
        _check_version(settings, bundle, present)
    side_test(bundle, engine=settings.engine, precision=settings.precision)  # root installs, the cache is the node's
    before = None if present is None else present.bundle
    ModelStore(settings.state_dir).install(bundle, before=before, lower=allow_older)
    return bundle


def wake_node(state_dir: Path) -> int | None:
    """Tell the node of this state directory to look for its bundle; None when none runs that listens."""
    lock = state_dir / _LOCK_FILE
    try:
        pid = int(lock.read_text(encoding="ascii"))
        if not (_holds(pid, lock) and _heeds_hangup(pid)):
            return None
        os.kill(pid, signal.SIGHUP)
    except (OSError, ValueError):
        return None
    return pid


def _present(settings: Settings) -> Choice | None:
    """Return what would run without the new bundle; None where that is refused: it needs a new one."""
    try:
        return choose(settings)
    except BundleError:
        return None


def _check_name(settings: Settings, bundle: Bundle, present: Choice | None) -> None:
    if settings.bundle is None or present is None:
        return
    there, here = present.bundle.manifest, bundle.manifest
    if there.name != here.name:
        raise UsageError(f"{bundle.path}: is {here.name}, and the settings name {there.name}: change `bundle` there")


def _check_version(settings: Settings, bundle: Bundle, present: Choice | None) -> None:
    name, version = bundle.manifest.name, bundle.manifest.version
    highest = ModelStore(settings.state_dir).recall().highest.get(name, 0)
    if present is not None and present.bundle.manifest.name == name:
        highest = max(highest, present.bundle.manifest.version)
    if version < highest:
        raise BundleError(
            f"{bundle.path}: is version {version}, and this node has run version {highest}; to go back: --allow-older"
        )


def _holds(pid: int, lock: Path) -> bool:
    """Return whether a process has the lock file open: the number in it may be that of a node long gone."""
    wanted = lock.stat()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            if os.path.samestat(entry.stat(), wanted):
                return True
    return False


def _heeds_hangup(pid: int) -> bool:
    """Return whether SIGHUP has a handler there; it would end a process that is only starting."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (signal.SIGHUP - 1) & 1)
    return False
