"""How much work a model is for one window: multiplications with addition, and bytes moved, counted from its graph."""

from __future__ import annotations

import math

import onnx
from onnx import helper, shape_inference

_COUNTED = {"Conv", "ConvTranspose", "Gemm", "MatMul"}


def count_macs(model_onnx: bytes) -> int:
    """Return the multiplications with addition of convolutions and matrix products, for a batch of one.

    Taps that fall on padding count, as in every table of models; activations and sums do not.
    """
    nodes, shapes = _counted(model_onnx)
    return sum(_macs(node, shapes) for node in nodes)


def count_bytes(model_onnx: bytes) -> tuple[int, int]:
    """Return the bytes that pass between the memory and the nodes of `count_macs`: of one window, and of the weights.

    Each reads its input and writes its output once, in float32; what lies between two of them is fused for nothing.
    """
    nodes, shapes = _counted(model_onnx)
    moved = sum(math.prod(shapes[node.input[0]]) + math.prod(shapes[node.output[0]]) for node in nodes)
    return 4 * moved, 4 * sum(math.prod(shapes[node.input[1]]) for node in nodes)


def _counted(model_onnx: bytes) -> tuple[list[onnx.NodeProto], dict[str, tuple[int, ...]]]:
    """Return the nodes that count, and the shapes of all values for a batch of one."""
    model = onnx.load_from_string(model_onnx)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    graph = shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {value.name: _shape(value) for value in (*graph.input, *graph.value_info, *graph.output)}
    shapes |= {constant.name: tuple(constant.dims) for constant in graph.initializer}
    return [node for node in graph.node if node.op_type in _COUNTED], shapes


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)


def _macs(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]]) -> int:
    first, second, out = shapes[node.input[0]], shapes[node.input[1]], shapes[node.output[0]]
    attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    if node.op_type == "Conv":  # second: (C_out, C_in / groups, kernel ..)
        macs = math.prod(out) * math.prod(second[1:])
    elif node.op_type == "ConvTranspose":  # second: (C_in, C_out / groups, kernel ..)
        macs = math.prod(first) * math.prod(second[1:])
    else:
        n_inner = first[0] if attributes.get("transA") else first[-1]
        macs = math.prod(out) * n_inner
    if macs == 0:
        raise ValueError(f"{node.op_type} {node.output[0]}: a size is not known")
    return macs
