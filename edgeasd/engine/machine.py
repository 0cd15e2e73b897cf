"""What this machine and its installation offer to engines, found out without loading any of it."""

from __future__ import annotations

import ctypes
import functools
import importlib.util

DISTRIBUTIONS = (
    "onnxruntime",
    "onnxruntime-gpu",
    "torch",
    "tensorrt",
    "tensorrt-cu12",
    "tensorrt-cu13",
    "cuda-bindings",
)
"""What engines are made of, as package registries call it."""
_NAME_BYTES = 256


@functools.cache
def gpu_name() -> str | None:
    """Return the name of the first CUDA device, None where none can be used.

    Asks the driver: where it is not installed, this costs nothing, and CUDA_VISIBLE_DEVICES counts.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    count, device, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(_NAME_BYTES)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or count.value < 1:
        return None
    if driver.cuDeviceGet(ctypes.byref(device), 0) or driver.cuDeviceGetName(name, _NAME_BYTES, device):
        return None
    return name.value.decode("utf-8", errors="replace")


def versions() -> dict[str, str]:
    """Return the versions of what is installed of `DISTRIBUTIONS`."""
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415  # only where there is a choice

    found: dict[str, str] = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def has_module(name: str) -> bool:
    """Return whether a module could be imported; it is not."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # an import hook that forbids it
        return False
