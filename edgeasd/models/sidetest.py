"""Trying a bundle in a process of its own, so that one that crashes, hangs or swells takes nothing with it."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edgeasd.bundle import MIB, Bundle
from edgeasd.engine import EngineKind, PrecisionWish
from edgeasd.engine.machine import gpu_name
from edgeasd.errors import BundleError

_NICE = 10
_MEMORY_PER_MODEL_BYTE = 4
"""The file, the model in it, the runtime's own copy of its weights, and those rearranged."""


@dataclass(frozen=True, slots=True)
class _Limits:
    """What a test may take."""

    timeout_s: float
    cpu_s: int
    memory_bytes: int


_ONNX = _Limits(timeout_s=120.0, cpu_s=60, memory_bytes=384 * MIB)
_BUILDING = _Limits(timeout_s=1800.0, cpu_s=1800, memory_bytes=16 << 30)
"""For engines that compile, and for CUDA, which maps many times the memory that it uses."""


def side_test(
    bundle: Bundle, *, engine: EngineKind, precision: PrecisionWish = "fp32", cache_dir: Path | None = None
) -> None:
    """Run the golden test of a verified bundle in another process of the installed command.

    What the engine builds is kept in `cache_dir`. BundleError when the test fails there, dies, or takes longer or more
    memory than a model of its size needs.
    """
    command = [sys.executable, "-P", "-m", "edgeasd.cli", "bundle", "try", str(bundle.path)]
    command += ["--engine", engine, "--precision", precision]
    command += [] if cache_dir is None else ["--cache-dir", str(cache_dir)]
    timeout_s = _limits(engine).timeout_s
    try:
        done = subprocess.run(  # noqa: S603  # our own command; the path is one argument
            command, capture_output=True, text=True, check=False, timeout=timeout_s, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired as exc:
        raise BundleError(f"{bundle.path}: its test took longer than {timeout_s:g} s") from exc
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


def limit_this_process(bundle: Path, *, engine: EngineKind) -> None:
    """Bound memory and computing time of this process by the size of a file; going beyond is refused, or the end."""
    limits = _limits(engine)
    model_bytes = bundle.stat().st_size if bundle.exists() else 0
    memory_bytes = limits.memory_bytes + _MEMORY_PER_MODEL_BYTE * model_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (limits.cpu_s, limits.cpu_s + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):  # a sandbox may not let us
        os.nice(_NICE)


def _limits(engine: EngineKind) -> _Limits:
    """Return narrow limits where only ONNX Runtime on a CPU can run, which is where most nodes are."""
    return _ONNX if engine in ("auto", "onnx") and gpu_name() is None else _BUILDING
