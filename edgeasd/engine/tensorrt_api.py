"""All that edgeasd says to TensorRT: building a plan, and running one.

Written against the documented Python API that 10.3 and 11.x share.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Collection, Mapping
from types import ModuleType
from typing import Any

import numpy as np

from edgeasd.engine.cuda import Stream
from edgeasd.errors import BundleError, SelfTestError, UnavailableError
from edgeasd.records import FloatArray

log = logging.getLogger(__name__)

MAX_BATCH = 64
TYPICAL_BATCH = 8
"""What kernels are chosen for: a few sources, or a replay that keeps up with its files."""
WORKSPACE_BYTES = 256 << 20
"""The most scratch memory that a kernel may want; TensorRT's own limit is all the GPU has, which a Jetson shares."""
_NO_REASON = "it does not say why"


def import_tensorrt() -> ModuleType:
    """Return the library; UnavailableError where it is not installed or does not load."""
    try:
        import tensorrt
    except ModuleNotFoundError as exc:
        raise UnavailableError(
            f"engine tensorrt: {exc.name} is not installed: pip install 'edgeasd[tensorrt]'"
        ) from exc
    except (ImportError, OSError) as exc:
        raise UnavailableError(f"engine tensorrt: edgeasd[tensorrt] is installed, but does not load: {exc}") from exc
    module: ModuleType = tensorrt
    return module


def build_plan(graph: bytes, *, timing: bytes) -> tuple[bytes, bytes]:
    """Return the plan of an ONNX graph for the GPU at hand, and what was learnt about the time its kernels take.

    `timing` is what was learnt before, or nothing. BundleError when the graph is refused, UnavailableError when no plan
    can be made of it here.
    """
    trt, logger = import_tensorrt(), _logger()
    logger.last_error = _NO_REASON
    builder = trt.Builder(logger)
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, logger)  # the network's weights are the parser's: it stays until the plan is built
    if not parser.parse(graph):
        faults = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        raise BundleError(f"TensorRT refuses the graph: {one_line('; '.join(faults) or logger.last_error)}")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # its mantissa of 10 bits misses the golden test
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    if config.add_optimization_profile(_profile(builder, network)) < 0:
        raise BundleError(f"TensorRT refuses batches of 1 to {MAX_BATCH}: {logger.last_error}")
    timings = config.create_timing_cache(timing)
    if not config.set_timing_cache(timings, ignore_mismatch=False):  # of another driver, say
        timings = config.create_timing_cache(b"")
        config.set_timing_cache(timings, ignore_mismatch=False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise UnavailableError(f"engine tensorrt: no plan could be built: {logger.last_error}")
    return bytes(plan), bytes(timings.serialize())


class Session:
    """A plan on the GPU, ready to run batches of up to `MAX_BATCH` windows; all its memory is there from the start."""

    def __init__(self, plan: bytes) -> None:
        """Load a plan that this node has built: loading one from elsewhere would be running somebody's code."""
        trt, self._logger = import_tensorrt(), _logger()
        self._logger.last_error = _NO_REASON
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._must(self._runtime.deserialize_cuda_engine(plan), "load the plan")
        self._context = self._must(self._engine.create_execution_context(), "run the plan")
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        is_input = {name: self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT for name in names}
        self.inputs = {name: tuple(self._engine.get_tensor_shape(name))[1:] for name in names if is_input[name]}
        """The shape of a window, by input."""
        self.outputs = [name for name in names if not is_input[name]]
        if any(self._engine.get_tensor_dtype(name) != trt.DataType.FLOAT for name in names):
            raise BundleError("the plan has an input or output that is not float32")
        self._set_batch(MAX_BATCH)
        shapes = {name: tuple(self._context.get_tensor_shape(name)) for name in names}
        self._stream = Stream()
        try:
            self._buffers = {name: self._stream.allocate(shape) for name, shape in shapes.items()}
            for name, buffer in self._buffers.items():
                self._must(self._context.set_tensor_address(name, buffer.device), f"take memory for {name}")
        except BaseException:
            self.close()
            raise

    def run(self, inputs: Mapping[str, FloatArray], wanted: Collection[str]) -> dict[str, FloatArray]:
        """Return the wanted outputs of 1 to `MAX_BATCH` windows, as arrays of the caller's own."""
        n_windows = len(next(iter(inputs.values())))
        self._stream.make_current()
        for name in self.inputs:
            np.copyto(self._buffers[name].host[:n_windows], inputs[name])
            self._stream.upload(self._buffers[name], n_windows)
        if n_windows != self._n_windows:
            self._set_batch(n_windows)
        self._must(self._context.execute_async_v3(self._stream.handle), "run the plan")
        for name in wanted:
            self._stream.download(self._buffers[name], n_windows)
        self._stream.wait()
        return {name: self._buffers[name].host[:n_windows].copy() for name in wanted}

    def close(self) -> None:
        """Give back the memory, and the plan with it."""
        self._stream.close()
        self._buffers = {}
        self._context = self._engine = self._runtime = None  # in this order: each needs the next

    def _set_batch(self, n_windows: int) -> None:
        for name, shape in self.inputs.items():
            self._must(self._context.set_input_shape(name, (n_windows, *shape)), f"take {n_windows} windows")
        self._n_windows = n_windows

    def _must(self, answer: Any, what: str) -> Any:
        """Return an answer that is neither None nor False."""
        if answer is None or answer is False:
            raise SelfTestError(f"TensorRT does not {what}: {self._logger.last_error}")
        return answer


def one_line(text: str, *, max_chars: int = 300) -> str:
    """Return what a library has said in lines as one line that a person will read to its end."""
    words = " ".join(text.split())
    return words if len(words) <= max_chars else words[:max_chars] + ".."


def _network_flags(trt: Any) -> int:
    """Return the flag that asks for a strongly typed network; from 11 there is no other, and it may go."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _profile(builder: Any, network: Any) -> Any:
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        window = tuple(tensor.shape)[1:]
        profile.set_shape(tensor.name, (1, *window), (TYPICAL_BATCH, *window), (MAX_BATCH, *window))
    return profile


@functools.cache
def _logger() -> Any:
    """Return the one logger that TensorRT takes in the life of a process: it warns of any second one."""
    trt: Any = import_tensorrt()
    severity = trt.ILogger.Severity
    faults = (severity.INTERNAL_ERROR, severity.ERROR)

    class Logger(trt.ILogger):  # type: ignore[misc]  # the library has no types
        """Keeps the last error for the exception that comes of it; the rest is for who debugs."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last_error = _NO_REASON

        def log(self, severity: Any, msg: str) -> None:
            if severity in faults:
                self.last_error = one_line(msg)
            log.debug("TensorRT: %s", msg)

    return Logger()
