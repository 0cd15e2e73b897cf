"""Hostile ONNX models by name: what makes each, and the refusal it earns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from onnx import SparseTensorProto, TensorProto, helper

from edgeasd.onnxgraph import MAX_FIELDS
from tests.small_bundle import N_ROWS, small_graph


def _changed(change: Callable[[Any], object]) -> Callable[[], Any]:
    def make() -> Any:
        model = small_graph()
        change(model)
        return model

    return make


def _external(location: str) -> Callable[[], Any]:
    """Let a tensor lie in a file; where that is, and whether it is a link of any kind, plays no part."""

    def change(model: Any) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)

    return _changed(change)


def _node(op: str, *, domain: str = "", **attributes: Any) -> Callable[[], Any]:
    node = helper.make_node(op, ["power"], ["unused"], domain=domain, **attributes)
    return _changed(lambda model: model.graph.node.append(node))


def _loop_body() -> Any:
    return helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("go_on", TensorProto.BOOL, [])],
    )


def _subgraph() -> Any:
    return helper.make_graph([], "g", [], [])


def _opset(version: int, domain: str = "") -> Callable[[], Any]:
    def change(model: Any) -> None:
        model.opset_import[0].version, model.opset_import[0].domain = version, domain

    return _changed(change)


def _rename_input(model: Any) -> None:
    model.graph.input[0].name = "mel"
    model.graph.node[0].input[0] = "mel"


def _dimension(model: Any, index: int, value: int) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[index].dim_value = value


def _sparse(model: Any) -> None:
    values = helper.make_tensor("v", TensorProto.FLOAT, [1], [1.0])
    indices = helper.make_tensor("i", TensorProto.INT64, [1], [0])
    model.graph.sparse_initializer.append(SparseTensorProto(values=values, indices=indices, dims=[1 << 40]))


def _tensor(**fields: Any) -> Callable[[], Any]:
    return _changed(lambda model: model.graph.initializer.append(TensorProto(name="odd", **fields)))


def _many_fields() -> bytes:
    """Return a model of a million empty nodes in two megabytes."""
    nodes = b"\x0a\x00" * (1 << 20)
    length = b"\x80\x80\x80\x01"  # 2 MiB as a varint
    return b"\x08\x09\x42\x02\x10\x14\x3a" + length + nodes


_FUNCTION = helper.make_function("", "Trick", ["x"], ["y"], [], [helper.make_opsetid("", 20)])
_EXTRA_OUTPUT = helper.make_tensor_value_info("power", TensorProto.FLOAT, ["batch", 8, 5])
_HUGE_CONSTANT = TensorProto(name="c", dims=[1 << 40], data_type=TensorProto.FLOAT)

HOSTILE_MODELS: dict[str, tuple[Callable[[], Any], str]] = {
    "empty": (lambda: b"", "IR version 0"),
    "no_graph": (lambda: b"\x08\x09\x42\x02\x10\x14", "holds no graph"),
    "endless_varint": (lambda: b"\x80" * 64, "malformed or cut short"),
    "cut": (lambda: small_graph().SerializeToString()[:-7], "malformed or cut short|not allowed|malformed"),
    "program": (lambda: b"MZ" + bytes(4000), "not allowed|malformed"),
    "ir_version_99": (_changed(lambda model: setattr(model, "ir_version", 99)), "IR version 99"),
    **{
        f"external_{name}": (_external(location), "not allowed|outside the file")
        for name, location in {"upwards": "../../etc/passwd", "absolute": "/etc/passwd", "beside": "w.bin"}.items()
    },
    "loop": (_node("Loop", body=_loop_body()), "operator Loop is not allowed"),
    "if": (_node("If", then_branch=_subgraph(), else_branch=_subgraph()), "operator If is not allowed"),
    "scan": (_node("Scan", body=_loop_body(), num_scan_inputs=1), "operator Scan is not allowed"),
    "makes_tensors": (_node("ConstantOfShape"), "operator ConstantOfShape is not allowed"),
    "custom_op": (_node("Shell", domain="com.evil"), "operator com.evil.Shell is not allowed"),
    "python_op": (_node("PyOp", domain="ai.onnx.contrib"), "operator ai.onnx.contrib.PyOp is not allowed"),
    "compiled_context": (_node("EPContext", domain="com.microsoft"), "com.microsoft.EPContext is not allowed"),
    "hidden_subgraph": (_node("Identity", body=_subgraph()), "attribute field 6 is not allowed"),
    "hidden_subgraphs": (_node("Identity", bodies=[_subgraph()]), "attribute field 11 is not allowed"),
    "sparse_attribute": (
        _node("Constant", sparse_value=SparseTensorProto(dims=[1 << 40])),
        "attribute field 22 is not allowed",
    ),
    "function": (_changed(lambda model: model.functions.append(_FUNCTION)), "model field 25 is not allowed"),
    "training": (_changed(lambda model: model.training_info.add()), "model field 20 is not allowed"),
    "sparse_tensor": (_changed(_sparse), "graph field 15 is not allowed"),
    "huge_initializer": (_tensor(dims=[1 << 20, 1 << 20], data_type=TensorProto.FLOAT), "claims 1099511627776"),
    "huge_constant": (_node("Constant", value=_HUGE_CONSTANT), "claims 1099511627776 values"),
    "overflowing_dims": (_tensor(dims=[1 << 62, 1 << 62], data_type=TensorProto.FLOAT), "claims"),
    "negative_dims": (_tensor(dims=[-1, 4], data_type=TensorProto.FLOAT, raw_data=bytes(16)), "claims"),
    "strings": (_tensor(dims=[1], data_type=TensorProto.STRING, string_data=[b"x"]), "not allowed|element type"),
    **{f"opset_{version}": (_opset(version), f"opset {version}") for version in (0, 7, 99, 999)},
    "opset_of_others": (_opset(20, "com.evil"), "other operator sets"),
    "second_opset": (
        _changed(lambda model: model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))),
        "other operator sets",
    ),
    "other_input": (_changed(_rename_input), "takes \\['mel'\\]"),
    "fixed_batch": (_changed(lambda model: _dimension(model, 0, 1)), "log_mel is not float32"),
    "wrong_rows": (_changed(lambda model: _dimension(model, 1, N_ROWS + 1)), "log_mel is not float32"),
    "doubles": (
        _changed(lambda model: setattr(model.graph.output[0].type.tensor_type, "elem_type", TensorProto.DOUBLE)),
        "score is not float32",
    ),
    "extra_output": (_changed(lambda model: model.graph.output.append(_EXTRA_OUTPUT)), "gives"),
    "no_output": (_changed(lambda model: model.graph.ClearField("output")), "gives"),
    "a_million_nodes": (_many_fields, f"more than {MAX_FIELDS} fields"),
}
