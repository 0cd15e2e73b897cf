"""The same graph in fewer bits: float16 for machines that are fast in it, int8 for those with integer units.

Only products with weights change (`heavy_nodes`), and what merely moves their numbers on. Normalisation before them and
all that follows them up to the score stay in float32: a squared level or a softmax has no room in fewer bits. Inputs
and outputs are float32 as before. TensorRT takes the types of a graph by their word, so every change of type is written
down: as Cast, or as QuantizeLinear and DequantizeLinear, symmetric, with zero points of 0.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeasd.records import FloatArray
from edgeasd_train.graphs import heavy_nodes, load, pack
from edgeasd_train.quiet import quiet

Reduced = Literal["fp16", "int8"]

_CARRIERS = frozenset(
    {"Flatten", "Identity", "LeakyRelu", "MaxPool", "Relu", "Reshape", "Resize", "Squeeze", "Transpose", "Unsqueeze"}
)
"""They move numbers or drop them, and lose nothing in float16 that was not lost before."""
_INTEGER = frozenset({"Conv", "Gemm", "MatMul"})
"""ONNX Runtime has no integer kernel for ConvTranspose: quantised it is slower than it was."""


def to_fp16(model_onnx: bytes) -> bytes | None:
    """Return the graph with its heavy parts in float16; None where there are none.

    Converters at hand (onnxconverter-common, onnxruntime.transformers) round every number to float16 that passes from
    one node left in float32 to the next, and give two casts of a shared input the same name.
    """
    model = load(model_onnx)
    if not heavy_nodes(model):
        return None
    _Halves(model).convert()
    return pack(model)


def largest(model_onnx: bytes, inputs: Mapping[str, FloatArray]) -> float:
    """Return the largest magnitude that a heavy part of the graph reads or gives: it must fit into float16."""
    import onnxruntime  # noqa: PLC0415  # read at import by the engine: its environment comes first

    model = load(model_onnx)
    heavy = {name for node in heavy_nodes(model) for name in (node.input[0], node.output[0])} - inputs.keys()
    given = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(heavy - given))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(sorted(heavy), dict(inputs)) if heavy else []
    return max((float(np.max(np.abs(values))) for values in (*found, *inputs.values())), default=0.0)


class _Halves:
    """One conversion to float16."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._graph = model.graph
        self._heavy = {node.output[0] for node in heavy_nodes(model)}
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._outputs = {value.name for value in model.graph.output}
        self._halves: set[str] = set()
        self._nodes: list[onnx.NodeProto] = []
        self._casts: dict[tuple[str, int], str] = {}

    def convert(self) -> None:
        """Rewrite the graph in place."""
        for node in list(self._graph.node):
            if node.output[0] in self._heavy or self._carries_halves(node):
                self._halve(node)
            else:
                node.input[:] = [
                    self._cast(name, TensorProto.FLOAT) if name in self._halves else name for name in node.input
                ]
                self._nodes.append(node)
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)
        used = {name for node in self._nodes for name in node.input}
        kept = [tensor for tensor in self._graph.initializer if tensor.name in used]
        del self._graph.initializer[:]
        self._graph.initializer.extend(kept)

    def _carries_halves(self, node: onnx.NodeProto) -> bool:
        return node.op_type in _CARRIERS and node.input[0] in self._halves

    def _halve(self, node: onnx.NodeProto) -> None:
        """Let a node compute in float16; its first output is what it gives."""
        n_halved = len(node.input) if node.op_type not in _CARRIERS else 1  # the rest are sizes, axes, scales
        for i, name in enumerate(node.input[:n_halved]):
            node.input[i] = self._half(name)
        self._nodes.append(node)
        (given,) = node.output
        if given not in self._outputs:
            self._halves.add(given)
            return
        node.output[0] = f"{given}.fp16"
        self._nodes.append(helper.make_node("Cast", [node.output[0]], [given], to=TensorProto.FLOAT))

    def _half(self, name: str) -> str:
        if name in self._halves or not name:
            return name
        if name not in self._constants:
            return self._cast(name, TensorProto.FLOAT16)
        half = f"{name}.fp16"
        if half not in self._constants:
            tensor = numpy_helper.from_array(numpy_helper.to_array(self._constants[name]).astype(np.float16), half)
            self._constants[half] = tensor
            self._graph.initializer.append(tensor)
        return half

    def _cast(self, name: str, element_type: int) -> str:
        key = name, element_type
        if key not in self._casts:
            self._casts[key] = f"{name}.fp{16 if element_type == TensorProto.FLOAT16 else 32}"
            self._nodes.append(helper.make_node("Cast", [name], [self._casts[key]], to=element_type))
        return self._casts[key]


def to_int8(model_onnx: bytes, batches: Iterable[Mapping[str, FloatArray]]) -> bytes | None:
    """Return the graph with what it can compute in int8, ranges as `batches` of normal sound have them.

    None where there is nothing of that kind. Weights have a scale for each output channel, and seven bits: then no sum
    of two products leaves 16 bits, in which AVX2 without VNNI adds them up. With eight it would saturate, and a bundle
    answer otherwise there than elsewhere.
    """
    from onnxruntime import quantization as q  # noqa: PLC0415  # slow to import, and for this alone

    nodes = _integer_nodes(load(model_onnx))
    if not nodes:
        return None
    with tempfile.TemporaryDirectory() as directory, quiet("root"):
        source, target = Path(directory, "model.onnx"), Path(directory, "model.int8.onnx")
        source.write_bytes(model_onnx)
        q.quantize_static(
            source,
            target,
            _Reader(iter(batches)),
            quant_format=q.QuantFormat.QDQ,
            calibrate_method=q.CalibrationMethod.MinMax,
            activation_type=q.QuantType.QInt8,
            weight_type=q.QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
            nodes_to_quantize=nodes,
            extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
        )
        model = load(target.read_bytes())
    own = [entry for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    del model.opset_import[:]
    model.opset_import.extend(own)  # it names its maker's own operators, and uses none
    return pack(model)


def _integer_nodes(model: onnx.ModelProto) -> list[str]:
    """Return the names of the nodes to compute in int8, and of those between them that pass int8 on.

    A product is one of them where nothing else reads what it reads, nor what it gives: an integer kernel rounds both.
    """
    readers = _readers(model)
    products = {node.output[0] for node in heavy_nodes(model) if node.op_type in _INTEGER}
    names, passed = [], set[str]()
    for node in model.graph.node:
        (given, *_) = node.output
        if given in products:
            chosen = _for_products_only(node.input[0], readers) and _for_products_only(given, readers)
        else:
            chosen = node.op_type in _CARRIERS and node.input[0] in passed
        if chosen:
            names.append(node.name)
            passed.add(given)
    return names


def _readers(model: onnx.ModelProto) -> dict[str, list[onnx.NodeProto | None]]:
    """Return who reads each tensor; None stands for whoever reads the outputs of the graph."""
    readers: dict[str, list[onnx.NodeProto | None]] = {value.name: [None] for value in model.graph.output}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return readers


def _for_products_only(name: str, readers: Mapping[str, list[onnx.NodeProto | None]]) -> bool:
    """Return whether nothing reads a tensor, carried on or not, but products that have an integer kernel."""
    for node in readers.get(name, []):
        if node is None or node.op_type not in _INTEGER | _CARRIERS:
            return False
        if node.op_type in _CARRIERS and not _for_products_only(node.output[0], readers):
            return False
    return True


class _Reader:
    """Batches as ONNX Runtime's calibration asks for them."""

    def __init__(self, batches: Iterator[Mapping[str, FloatArray]]) -> None:
        self._batches = batches

    def get_next(self) -> dict[str, FloatArray] | None:
        """Return the next batch, None after the last."""
        batch = next(self._batches, None)
        return None if batch is None else dict(batch)
