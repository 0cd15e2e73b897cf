"""The strict reader of ONNX's bytes sees what the onnx package sees."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgeasd.errors import BundleError
from edgeasd.onnxgraph import ALLOWED_OPS, MAX_FIELDS, OPSETS, read_graph
from tests.small_bundle import small_graph


def names_and_dims(values: object) -> list[tuple[str, int, tuple[int | str, ...]]]:
    return [
        (
            value.name,
            value.type.tensor_type.elem_type,
            tuple(dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim),
        )
        for value in values  # type: ignore[attr-defined]
    ]


def test_inputs_outputs_operators_and_opset_are_those_the_onnx_package_reads() -> None:
    model = small_graph()
    info = read_graph(model.SerializeToString())
    assert info.opset == 20
    assert info.ops == {node.op_type for node in model.graph.node}
    assert [(v.name, v.element_type, v.dims) for v in info.inputs] == names_and_dims(model.graph.input)
    assert [(v.name, v.element_type, v.dims) for v in info.outputs] == names_and_dims(model.graph.output)


def test_every_allowed_operator_exists_in_onnx() -> None:
    known = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    assert known >= ALLOWED_OPS
    assert not ALLOWED_OPS & {"Loop", "If", "Scan", "SequenceMap", "ConstantOfShape", "Range", "Expand", "Tile"}


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, np.int64, np.int32, np.int8, np.uint8, np.bool_])
def test_initializers_of_every_numeric_type_pass_raw_and_typed(dtype: type) -> None:
    model = small_graph()
    values: NDArray[Any] = np.arange(24).reshape(2, 3, 4).astype(dtype)
    model.graph.initializer.append(numpy_helper.from_array(values, "raw"))
    typed = helper.make_tensor(
        "typed", helper.np_dtype_to_tensor_dtype(values.dtype), (2, 3, 4), values.ravel().tolist()
    )
    model.graph.initializer.append(typed)
    assert read_graph(model.SerializeToString()).opset == 20


def test_strings_and_unknown_element_types_are_refused() -> None:
    for data_type in (TensorProto.STRING, TensorProto.COMPLEX64, TensorProto.UNDEFINED, 99):
        model = small_graph()
        model.graph.initializer.append(TensorProto(name="odd", dims=[0], data_type=data_type))
        with pytest.raises(BundleError, match="element type"):
            read_graph(model.SerializeToString())


def test_a_graph_of_six_hundred_nodes_stays_within_the_bound() -> None:
    model = small_graph()
    for i in range(600):
        node = helper.make_node(
            "Conv", ["power", "w", "b"], [f"c{i}"], kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2]
        )
        model.graph.node.append(node)
    assert read_graph(model.SerializeToString()).ops >= {"Conv"}
    assert MAX_FIELDS == 20_000


def test_random_bytes_never_raise_anything_but_a_bundle_error() -> None:
    random = np.random.default_rng(5)
    whole = small_graph().SerializeToString()
    for _ in range(500):
        data = bytearray(whole)
        for position in random.integers(0, len(whole), 3):
            data[position] = random.integers(256)
        with contextlib.suppress(BundleError):
            assert read_graph(bytes(data)).opset in OPSETS
