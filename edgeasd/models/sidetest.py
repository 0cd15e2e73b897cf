"""Trying a bundle in a process of its own, so that one that crashes, hangs or swells takes nothing with it."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from edgeasd.bundle import MIB, Bundle
from edgeasd.errors import BundleError

_TIMEOUT_S = 120.0
_CPU_S = 60
_NICE = 10
_MEMORY_BYTES = 384 * MIB
_MEMORY_PER_MODEL_BYTE = 4
"""The file, the model in it, the runtime's own copy of its weights, and those rearranged."""


def side_test(bundle: Bundle, *, engine: str) -> None:
    """Run the golden test of a verified bundle in another process of the installed command.

    BundleError when it fails there, dies, takes longer than two minutes, or more memory than a model of its size needs.
    """
    command = [sys.executable, "-P", "-m", "edgeasd.cli", "bundle", "try", str(bundle.path), "--engine", engine]
    try:
        done = subprocess.run(  # noqa: S603  # our own command; the path is one argument
            command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired as exc:
        raise BundleError(f"{bundle.path}: its test took longer than {_TIMEOUT_S:g} s") from exc
    except OSError as exc:
        raise BundleError(f"{bundle.path}: its test could not be started: {exc.strerror}") from exc
    if done.returncode < 0:
        raise BundleError(f"{bundle.path}: its test died of signal {-done.returncode}")
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["without a word"])[-1].removeprefix("edgeasd: ")
        known = done.returncode == BundleError.exit_code  # else it is what Python says of memory that it did not get
        raise BundleError(said if known else f"{bundle.path}: its test failed: {said}")
    if done.stdout.strip() != bundle.sha256:
        raise BundleError(f"{bundle.path}: was changed meanwhile")


def limit_this_process(bundle: Path) -> None:
    """Bound memory and computing time of this process by the size of a file; going beyond is refused, or the end."""
    model_bytes = bundle.stat().st_size if bundle.exists() else 0
    memory_bytes = _MEMORY_BYTES + _MEMORY_PER_MODEL_BYTE * model_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_S, _CPU_S + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):  # a sandbox may not let us
        os.nice(_NICE)
