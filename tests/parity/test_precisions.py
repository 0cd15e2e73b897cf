"""The same graph in fewer bits: what it computes, in which types, and that it says the same of sound."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from scipy import stats

from edgeasd.bundle import Golden
from edgeasd.engine.onnx import OnnxEngine
from edgeasd.manifest import MAX_GOLDEN_TOLERANCE
from edgeasd.onnxgraph import FLOAT32, read_graph
from edgeasd.records import FloatArray
from edgeasd_train.detectors.mahalanobis import Mahalanobis, MahalanobisOptions
from edgeasd_train.detectors.options import Shapes
from edgeasd_train.export import export_onnx
from edgeasd_train.golden import deviation
from edgeasd_train.graphs import heavy_nodes
from edgeasd_train.precisions import largest, to_fp16, to_int8
from edgeasd_train.reducing import MARGINS
from tests.parity.test_export import prepared

SYSTEMS = {
    "bird-ae": ("bird-ae", []),
    "dense-ae": ("dense-ae", ["detector.options.score=mahalanobis", "data.window_s=0.192", "features.n_mels=40"]),
}
DELICATE = ("Reduce", "Softmax", "Sqrt", "Exp", "Log", "Pow", "Div", "Sub", "TopK", "Sigmoid", "Clip")


@functools.cache
def exported(system: str) -> tuple[bytes, Golden, FloatArray]:
    """Return a graph, its golden vectors, and windows like those it knows."""
    detector, _, log_mel = prepared(*SYSTEMS[system])
    more = np.concatenate([log_mel + offset for offset in np.linspace(-6.0, 6.0, 12, dtype=np.float32)])
    return *export_onnx(detector, {"log_mel": log_mel[:2]}), more.astype(np.float32)


@functools.cache
def reduced(system: str, precision: str) -> bytes:
    model_onnx, _, windows = exported(system)
    graph = to_fp16(model_onnx) if precision == "fp16" else to_int8(model_onnx, batches(windows))
    assert graph is not None
    return graph


def batches(windows: FloatArray) -> Iterator[dict[str, FloatArray]]:
    for first in range(0, len(windows), 12):
        yield {"log_mel": windows[first : first + 12]}


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    """Return the element type of every tensor."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    values = {v.name: v.type.tensor_type.elem_type for v in (*inferred.value_info, *inferred.input, *inferred.output)}
    return values | {tensor.name: tensor.data_type for tensor in inferred.initializer}


def scores_of(graph: bytes, windows: FloatArray) -> FloatArray:
    engine = OnnxEngine(graph)
    try:
        return engine.score({"log_mel": windows}).score
    finally:
        engine.close()


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("system", SYSTEMS)
def test_a_graph_in_fewer_bits_keeps_its_contract_and_the_order_of_scores(system: str, precision: str) -> None:
    model_onnx, golden, windows = exported(system)
    graph = reduced(system, precision)
    onnx.checker.check_model(onnx.load_from_string(graph), full_check=True)
    before, after = read_graph(model_onnx), read_graph(graph)
    assert (after.inputs, after.outputs, after.opset) == (before.inputs, before.outputs, before.opset)
    assert {value.element_type for value in (*after.inputs, *after.outputs)} == {FLOAT32}
    assert len(graph) < 0.75 * len(model_onnx)
    assert 0.0 < deviation(graph, golden) < 0.02
    agreement = stats.spearmanr(scores_of(graph, windows), scores_of(model_onnx, windows)).statistic
    assert agreement > 0.99


@pytest.mark.parametrize("system", SYSTEMS)
def test_float16_is_for_products_and_what_moves_their_numbers_on(system: str) -> None:
    model = onnx.load_from_string(reduced(system, "fp16"))
    types = types_of(model)
    halved = [node for node in model.graph.node if types[node.output[0]] == TensorProto.FLOAT16]
    assert {node.op_type for node in halved} <= {"Cast", "Conv", "ConvTranspose", "Gemm", "Relu", "Reshape", "Squeeze"}
    products = [node for node in model.graph.node if node.op_type in ("Conv", "ConvTranspose", "Gemm")]
    assert len(products) == len(heavy_nodes(onnx.load_from_string(exported(system)[0])))
    assert all({types[name] for name in node.input} == {TensorProto.FLOAT16} for node in products)
    for node in model.graph.node:
        if node.op_type.startswith(DELICATE) or node.op_type == "MatMul":  # that of the Mahalanobis distance
            assert TensorProto.FLOAT16 not in {types[name] for name in (*node.input, *node.output)}
    names = [name for node in model.graph.node for name in node.output]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("system", SYSTEMS)
def test_int8_is_symmetric_by_channel_and_cannot_saturate_sixteen_bits(system: str) -> None:
    model = onnx.load_from_string(reduced(system, "int8"))
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    quantisers = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert {constants[node.input[2]].dtype.name for node in quantisers} == {"int8"}
    assert not any(constants[node.input[2]].any() for node in quantisers)
    weights = [node for node in quantisers if node.input[0] in constants]
    assert weights
    for node in weights:
        values, scales = constants[node.input[0]], constants[node.input[1]]
        axis = next(attribute.i for attribute in node.attribute if attribute.name == "axis")
        assert scales.shape == (values.shape[axis],)
        assert np.abs(values.astype(np.int64)).max() <= 64  # 2 * 64 * 255 is below 2 ** 15
    dequantised = {node.output[0] for node in weights}
    for node in model.graph.node:
        if node.op_type.startswith(DELICATE):
            assert dequantised.isdisjoint(node.input)
    outputs = {value.name for value in model.graph.output}
    assert outputs.isdisjoint(name for node in quantisers for name in (*node.input, *node.output))


def test_a_machine_that_rounds_every_number_to_float16_is_within_the_margin() -> None:
    _, golden, _ = exported("bird-ae")
    graph = reduced("bird-ae", "fp16")
    evaluator = ReferenceEvaluator(onnx.load_from_string(graph))
    tolerance = MARGINS["fp16"] * deviation(graph, golden)
    one = {name: array[:1] for name, array in golden.inputs.items()}
    for name, answer in zip(evaluator.output_names, evaluator.run(None, one), strict=True):
        expected = golden.outputs[name][:1]
        assert answer.dtype == np.float32
        assert np.max(np.abs(answer - expected)) <= tolerance * (1.0 + np.max(np.abs(expected)))
    assert tolerance < MAX_GOLDEN_TOLERANCE


def test_integer_kernels_compute_what_the_graph_says() -> None:
    _, golden, _ = exported("bird-ae")
    evaluator = ReferenceEvaluator(onnx.load_from_string(reduced("bird-ae", "int8")))
    one = golden.inputs["log_mel"][:1]
    (score,) = evaluator.run(["score"], {"log_mel": one})
    assert scores_of(reduced("bird-ae", "int8"), one) == pytest.approx(score, rel=2e-3)


def test_the_arithmetic_of_a_distance_is_left_alone() -> None:
    shapes = Shapes(n_rows=8, n_frames=5, window_frames=512, sample_rate_hz=8000)
    model_onnx = Mahalanobis(shapes, MahalanobisOptions()).model_onnx()
    assert to_fp16(model_onnx) is None
    assert to_int8(model_onnx, []) is None


def test_the_largest_number_is_found_where_float16_would_have_to_hold_it() -> None:
    model_onnx, _, windows = exported("bird-ae")
    assert largest(model_onnx, {"log_mel": windows * 1e4}) > 65_504.0
    assert largest(model_onnx, {"log_mel": windows}) < 1_000.0
