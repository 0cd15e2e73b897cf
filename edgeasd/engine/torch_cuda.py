"""A torch program on a CUDA device: one launch for a whole batch, and memory that is allocated once.

Written against torch's documented interface; not yet run on hardware.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeasd.records import FloatArray

if TYPE_CHECKING:
    from edgeasd.engine.torch import Computation

LARGEST_GRAPH = 64
"""Windows; in larger batches the kernels outlast their launches, and nothing is gained by recording them."""
_WARM_UPS = 3
"""Runs before a recording, as torch has it: libraries set themselves up and choose their kernels."""


class CudaRunner:
    """Runs batches on a stream of its own.

    For batches of 1, 2, 4 .. 64 windows the launches are recorded as a CUDA graph when first needed; any smaller batch
    takes the next larger graph, the rows left over computing what nobody reads. Larger batches are launched operator by
    operator.
    """

    def __init__(self, compute: Computation, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Take a computation on the current CUDA device, and the shape of one window of each input."""
        torch: Any = importlib.import_module("torch")  # its type hints lack half of what is used here
        torch.backends.cuda.matmul.fp32_precision = "ieee"  # TF32 has a mantissa of 10 bits: it misses the golden test
        torch.backends.cudnn.conv.fp32_precision = "ieee"
        self._torch = torch
        self._compute = compute
        self._shapes = shapes
        self._stream: Any = torch.cuda.Stream()
        self._pool: Any = torch.cuda.graph_pool_handle()  # shared: only one graph runs at a time
        self._graphs: dict[int, _Graph] = {}

    def run(self, inputs: Mapping[str, FloatArray], wanted: Sequence[int]) -> list[FloatArray]:
        """Return those of the program's outputs whose numbers are `wanted`."""
        n_windows = len(next(iter(inputs.values())))
        with self._torch.inference_mode(), self._torch.cuda.stream(self._stream):
            if n_windows > LARGEST_GRAPH:
                return self._at_once(inputs, wanted)
            n_rows = 1 << (n_windows - 1).bit_length()
            if n_rows not in self._graphs:
                self._graphs[n_rows] = self._record(n_rows)
            return self._graphs[n_rows].run(inputs, n_windows, wanted)

    def _at_once(self, inputs: Mapping[str, FloatArray], wanted: Sequence[int]) -> list[FloatArray]:
        on_host = {name: self._torch.from_numpy(_writable(array)).pin_memory() for name, array in inputs.items()}
        answers = self._compute({name: tensor.to("cuda", non_blocking=True) for name, tensor in on_host.items()})
        return [answers[i].cpu().numpy() for i in wanted]  # waits for the stream

    def _record(self, n_rows: int) -> _Graph:
        torch = self._torch
        on_host = {name: torch.zeros((n_rows, *shape), pin_memory=True) for name, shape in self._shapes.items()}
        on_device = {name: torch.zeros_like(tensor, device="cuda") for name, tensor in on_host.items()}
        for _ in range(_WARM_UPS):
            self._compute(on_device)
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            answers = self._compute(on_device)
        return _Graph(torch, graph, (on_host, on_device, answers), self._stream)


class _Graph:
    """A recorded batch, with the memory it reads and writes: pinned on the host, fixed on the device."""

    def __init__(
        self, torch: Any, graph: Any, tensors: tuple[dict[str, Any], dict[str, Any], list[Any]], stream: Any
    ) -> None:
        self._graph, self._stream = graph, stream
        self._host_inputs, self._inputs, self._outputs = tensors
        self._host_outputs = [torch.empty(out.shape, dtype=out.dtype, pin_memory=True) for out in self._outputs]

    def run(self, inputs: Mapping[str, FloatArray], n_windows: int, wanted: Sequence[int]) -> list[FloatArray]:
        """Return outputs of the first `n_windows` rows."""
        for name, array in inputs.items():
            np.copyto(self._host_inputs[name].numpy()[:n_windows], array)
            self._inputs[name][:n_windows].copy_(self._host_inputs[name][:n_windows], non_blocking=True)
        self._graph.replay()
        for i in wanted:
            self._host_outputs[i][:n_windows].copy_(self._outputs[i][:n_windows], non_blocking=True)
        self._stream.synchronize()
        return [self._host_outputs[i][:n_windows].numpy().copy() for i in wanted]


def _writable(array: FloatArray) -> FloatArray:
    return np.require(array, np.float32, ("C_CONTIGUOUS", "WRITEABLE"))
