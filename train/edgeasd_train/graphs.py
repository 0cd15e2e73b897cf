"""ONNX graphs as the workshop handles them: what is heavy in one, and the bytes that ship."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx

HEAVY = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


def load(model_onnx: bytes) -> onnx.ModelProto:
    """Return the model that the bytes hold."""
    return onnx.load_from_string(model_onnx)


def pack(model: onnx.ModelProto) -> bytes:
    """Return the bytes that ship, the same for the same model."""
    strip(model)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def strip(model: onnx.ModelProto) -> None:
    """Remove what no runtime reads: exporters note the paths of source files and stack traces on every node."""
    graph = model.graph
    graph.ClearField("value_info")
    messages: Sequence[Any] = (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer)
    for message in messages:
        for name in ("doc_string", "metadata_props"):
            if any(field.name == name for field in message.DESCRIPTOR.fields):
                message.ClearField(name)


def heavy_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return, in order, the products with weights of the model that come before any reduction.

    What comes after one is no longer a network that draws but the arithmetic of a score, such as the quadratic form
    of a Mahalanobis distance.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    reduced: set[str] = set()
    heavy = []
    for node in model.graph.node:
        if node.op_type.startswith("Reduce") or not reduced.isdisjoint(node.input):
            reduced.update(node.output)
        elif node.op_type in HEAVY and node.input[1] in constants:
            heavy.append(node)
    return heavy
