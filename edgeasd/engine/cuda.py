"""The CUDA runtime, as far as an engine needs it: which GPU there is, a queue of work, and memory on both sides."""

from __future__ import annotations

import ctypes
from contextlib import ExitStack
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from edgeasd.engine.machine import gpu_name
from edgeasd.errors import SelfTestError, UnavailableError
from edgeasd.records import FloatArray


@dataclass(frozen=True, slots=True)
class Gpu:
    """The first CUDA device, and what else a plan built for it depends on."""

    name: str
    capability: str
    """Compute capability, such as "8.7"."""
    driver: str
    """The newest CUDA that its driver knows, such as "13.0"."""


@dataclass(frozen=True, slots=True)
class Buffer:
    """Memory for one tensor on the GPU, and as much of the host's, locked in place so that copying need not wait."""

    host: FloatArray
    """Shape (largest batch, ..)."""
    device: int
    """Its address on the GPU."""

    def n_bytes(self, n_windows: int) -> int:
        """Return the size of the first windows."""
        return n_windows * int(self.host[0].nbytes)


class Stream:
    """A queue of work for the GPU beside all others, and the memory that goes with it."""

    def __init__(self) -> None:
        """Make the queue; SelfTestError when CUDA does not."""
        self._runtime = _runtime()
        self._held = ExitStack()
        self._stream = checked(self._runtime.cudaStreamCreateWithFlags(self._runtime.cudaStreamNonBlocking))
        self._held.callback(self._runtime.cudaStreamDestroy, self._stream)
        self.handle = int(self._stream)

    def make_current(self) -> None:
        """Let the calling thread work on the GPU: each has its own notion of which one."""
        checked(self._runtime.cudaSetDevice(0))

    def allocate(self, shape: tuple[int, ...]) -> Buffer:
        """Return memory for float32 of a shape, until the stream is closed."""
        n_values = int(np.prod(shape))
        n_bytes = n_values * np.dtype(np.float32).itemsize
        device = checked(self._runtime.cudaMalloc(n_bytes))
        self._held.callback(self._runtime.cudaFree, device)
        address = checked(self._runtime.cudaHostAlloc(n_bytes, self._runtime.cudaHostAllocDefault))
        self._held.callback(self._runtime.cudaFreeHost, address)
        host = np.ctypeslib.as_array((ctypes.c_float * n_values).from_address(address)).reshape(shape)
        return Buffer(host, device)

    def upload(self, buffer: Buffer, n_windows: int) -> None:
        """Queue a copy of the first windows to the GPU."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        source, n_bytes = buffer.host.ctypes.data, buffer.n_bytes(n_windows)
        checked(self._runtime.cudaMemcpyAsync(buffer.device, source, n_bytes, kind, self._stream))

    def download(self, buffer: Buffer, n_windows: int) -> None:
        """Queue a copy of the first windows from the GPU."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        target, n_bytes = buffer.host.ctypes.data, buffer.n_bytes(n_windows)
        checked(self._runtime.cudaMemcpyAsync(target, buffer.device, n_bytes, kind, self._stream))

    def wait(self) -> None:
        """Return when all that was queued is done."""
        checked(self._runtime.cudaStreamSynchronize(self._stream))

    def close(self) -> None:
        """Give back the memory, which no array may be looked at after, and the queue."""
        self._held.close()  # what CUDA answers is not looked at: after an error it frees nothing, and the process ends


def find_gpu() -> Gpu:
    """Return the first CUDA device; UnavailableError when none can be used."""
    name = gpu_name()
    if name is None:
        raise UnavailableError("engine tensorrt: no CUDA device can be used here; edgeasd[tensorrt] needs one")
    runtime = _runtime()
    attribute = runtime.cudaDeviceAttr
    try:
        major = checked(runtime.cudaDeviceGetAttribute(attribute.cudaDevAttrComputeCapabilityMajor, 0))
        minor = checked(runtime.cudaDeviceGetAttribute(attribute.cudaDevAttrComputeCapabilityMinor, 0))
        driver = checked(runtime.cudaDriverGetVersion())
    except SelfTestError as exc:
        raise UnavailableError(f"engine tensorrt: {name} cannot be used: {exc}") from exc
    return Gpu(name, f"{major}.{minor}", f"{driver // 1000}.{driver % 1000 // 10}")


def checked(answer: tuple[Any, ...]) -> Any:
    """Return what a call to the CUDA runtime gave besides its error code; SelfTestError when that is not success."""
    error, *values = answer
    if int(error) != 0:
        raise SelfTestError(f"CUDA: {error.name}")
    return values[0] if values else None


def _runtime() -> ModuleType:
    try:
        from cuda.bindings import runtime
    except ImportError as exc:
        raise UnavailableError(
            "engine tensorrt: cuda-bindings is not installed: pip install 'edgeasd[tensorrt]'"
        ) from exc
    module: ModuleType = runtime
    return module
