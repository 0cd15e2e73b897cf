"""Checks of the machine: libraries, state directory, disk, clock."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from edgeasd.commands.checks import Finding, Reporter
from edgeasd.commands.version import libraries
from edgeasd.errors import CannotWriteError, UnavailableError

if TYPE_CHECKING:
    from edgeasd.settings import Settings

_MODULES = {
    "numpy": "numpy",
    "scipy": "scipy.fft",
    "onnxruntime": "onnxruntime",
    "sounddevice": "sounddevice",
    "soundfile": "soundfile",
    "soxr": "soxr",
    "paho-mqtt": "paho.mqtt.client",
}
_SYNC_FLAG = Path("/run/systemd/timesync/synchronized")
_LEAST_FREE_MB = 100

_say = Reporter("node")


def check_node(settings: Settings) -> Iterator[Finding]:
    """Yield findings about this machine."""
    yield _say.ok("python", f"{platform.python_version()} on {platform.machine()}")
    yield from _check_libraries()
    yield _check_state_dir(settings.state_dir)
    yield _check_disk(settings)
    yield _check_clock()


def _check_libraries() -> Iterator[Finding]:
    versions, broken = libraries(), False
    for name, module in _MODULES.items():
        try:
            importlib.import_module(module)
        except (ImportError, OSError) as exc:  # sounddevice raises OSError when PortAudio itself is missing
            broken = True
            portaudio = name == "sounddevice" and isinstance(exc, OSError)
            fix = "apt-get install libportaudio2" if portaudio else f"pip install {name}"
            yield _say.fail("libraries", f"{name}: {exc}", fix=fix, exit_code=UnavailableError.exit_code)
    if not broken:
        yield _say.ok("libraries", ", ".join(f"{name} {versions[name]}" for name in _MODULES))


def _nearest(path: Path) -> Path:
    """Return the path, or the closest directory above it that exists."""
    return next(candidate for candidate in (path.absolute(), *path.absolute().parents) if candidate.exists())


def _check_state_dir(path: Path) -> Finding:
    there = _nearest(path)
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return _say.ok("state directory", f"{path}" + ("" if there == path.absolute() else " (will be made)"))
    return _say.fail(
        "state directory",
        f"{path} cannot be written",
        fix=f"make it writable for uid {os.getuid()}, or set state_dir",
        exit_code=CannotWriteError.exit_code,
    )


def _check_disk(settings: Settings) -> Finding:
    free_mb = shutil.disk_usage(_nearest(settings.state_dir)).free // 1_000_000
    wanted_mb = settings.outbox.max_mb + _LEAST_FREE_MB
    detail = f"{free_mb} MB free at {settings.state_dir}"
    if free_mb >= wanted_mb:
        return _say.ok("disk", detail)
    return _say.warn(
        "disk", f"{detail}, the outbox may need {settings.outbox.max_mb}", fix="free space or lower outbox.max_mb"
    )


def _check_clock() -> Finding:
    if _SYNC_FLAG.exists():
        return _say.ok("clock", "synchronised")
    return _say.warn(
        "clock",
        "not known to be synchronised (systemd-timesyncd has not said so)",
        fix="timedatectl set-ntp true, unless chrony or a host keeps this clock",
    )
