"""What every benchmark says first: when, and on which machine."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path


def machine_line() -> str:
    """Return date, processor, cores, system and the versions that matter, on one line."""
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    models = [line.partition(":")[2].strip() for line in cpuinfo.splitlines() if line.startswith("model name")]
    libraries = ", ".join(f"{name} {version(name)}" for name in ("numpy", "scipy", "onnxruntime"))
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {models[0] if models else platform.processor()}, {os.cpu_count()} cores, "
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}, {libraries}"
    )


def one_thread(environment: dict[str, str] | None = None) -> dict[str, str]:
    """Return an environment in which numeric libraries use one thread each."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return {**os.environ, **dict.fromkeys(names, "1"), **(environment or {})}
