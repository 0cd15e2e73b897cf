"""The tensorrt engine on a GPU: it answers as the reference does in every precision, and keeps only plans that hold."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeasd.bundle import Bundle, Golden, read_bundle
from edgeasd.engine import golden_tolerance
from edgeasd.engine.machine import gpu_name, has_module
from edgeasd.engine.onnx import OnnxEngine
from edgeasd.engine.plans import PlanCache
from edgeasd.engine.tensorrt import TensorRtEngine
from edgeasd.errors import BundleError, SelfTestError
from edgeasd.manifest import Precision
from tests.small_bundle import N_FRAMES, N_ROWS, small_inputs, write_full_bundle

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(600),
    pytest.mark.skipif(gpu_name() is None, reason="no CUDA device"),
    pytest.mark.skipif(not has_module("tensorrt"), reason="TensorRT is not installed"),
]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return read_bundle(write_full_bundle(tmp_path_factory.mktemp("bundle") / "small.edgeasd"))


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all tests but those that spoil it: a plan takes a while to build."""
    return tmp_path_factory.mktemp("state") / "engine"


@pytest.fixture(scope="module", params=PRECISIONS)
def engine(request: pytest.FixtureRequest, bundle: Bundle, cache_dir: Path) -> Iterator[TensorRtEngine]:
    engine = TensorRtEngine(bundle, precision=request.param, cache_dir=cache_dir)
    yield engine
    engine.close()


def _reference(bundle: Bundle, engine: TensorRtEngine) -> OnnxEngine:
    return OnnxEngine(bundle.graph(engine.precision), precision=engine.precision)


def test_it_says_where_it_computes(engine: TensorRtEngine) -> None:
    assert (engine.name, engine.device) == ("tensorrt", gpu_name())


def test_every_batch_of_1_to_65_and_a_large_one_gets_the_answers_of_onnx_runtime(
    engine: TensorRtEngine, bundle: Bundle
) -> None:
    reference = _reference(bundle, engine)
    tolerance = golden_tolerance(bundle, engine.precision)
    for n_windows in (*range(1, 66), 200):
        inputs = {"log_mel": small_inputs(n_windows, seed=n_windows)}
        found, expected = engine.score(inputs), reference.score(inputs)
        assert found.score.shape == (n_windows,)
        assert found.residual is not None
        assert expected.residual is not None
        np.testing.assert_allclose(found.score, expected.score, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(found.residual, expected.residual, rtol=tolerance, atol=tolerance)


def test_only_what_is_wanted_is_copied_back(engine: TensorRtEngine) -> None:
    assert engine.score({"log_mel": small_inputs(2)}, wanted=()).residual is None


def test_its_answers_are_not_overwritten_by_the_next_ones(engine: TensorRtEngine) -> None:
    first = engine.score({"log_mel": small_inputs(2, seed=1)}).score
    kept = first.copy()
    engine.score({"log_mel": small_inputs(2, seed=2)})
    np.testing.assert_array_equal(first, kept)


def test_a_window_scores_the_same_wherever_it_lies_in_a_batch(engine: TensorRtEngine) -> None:
    log_mel = np.repeat(small_inputs(1), 65, axis=0)
    score = engine.score({"log_mel": log_mel}).score
    np.testing.assert_allclose(score, score[0], rtol=1e-5)


def test_another_thread_than_the_one_that_opened_it_may_ask(engine: TensorRtEngine) -> None:
    inputs = {"log_mel": small_inputs(3)}
    answers: list[np.ndarray] = []
    asking = threading.Thread(target=lambda: answers.append(engine.score(inputs).score))
    asking.start()
    asking.join()
    np.testing.assert_array_equal(answers[0], engine.score(inputs).score)


@pytest.mark.parametrize("poison", [np.nan, 3e38])
def test_a_score_that_is_not_finite_is_an_error_and_the_next_is_fine(
    bundle: Bundle, cache_dir: Path, poison: float
) -> None:
    engine = TensorRtEngine(bundle, cache_dir=cache_dir)
    log_mel = small_inputs(3)
    log_mel[1, 2, 3] = poison
    with pytest.raises(SelfTestError, match="not finite"):
        engine.score({"log_mel": log_mel})
    assert np.isfinite(engine.score({"log_mel": small_inputs(3)}).score).all()
    engine.close()


def test_the_second_start_takes_the_plan_of_the_first_and_answers_alike(bundle: Bundle, tmp_path: Path) -> None:
    inputs = {"log_mel": small_inputs(5)}
    answers = []
    for expected in (False, True):
        engine = TensorRtEngine(bundle, cache_dir=tmp_path / "engine")
        assert engine.from_cache is expected
        answers.append(engine.score(inputs).score)
        engine.close()
    np.testing.assert_array_equal(answers[0], answers[1])
    assert sorted(entry.key.kind for entry in PlanCache(tmp_path / "engine").entries()) == [
        "tensorrt-plan",
        "tensorrt-timing",
    ]


def test_a_tampered_plan_is_built_anew_and_never_loaded(
    bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    TensorRtEngine(bundle, cache_dir=tmp_path / "engine").close()
    for path in (tmp_path / "engine" / "built").iterdir():
        sealed = bytearray(path.read_bytes())
        sealed[-1] ^= 1
        path.write_bytes(sealed)
    with caplog.at_level(logging.WARNING):
        engine = TensorRtEngine(bundle, cache_dir=tmp_path / "engine")
    assert engine.from_cache is False
    assert caplog.text.count("has been changed since; it is built anew") == 2
    engine.close()


def test_a_plan_that_misses_the_golden_test_is_refused_and_not_kept(bundle: Bundle, tmp_path: Path) -> None:
    outputs = {name: array.copy() for name, array in bundle.golden.outputs.items()}
    outputs["score"].flat[0] *= 1.01
    with pytest.raises(BundleError, match="golden test of the tensorrt engine: score is off by"):
        TensorRtEngine(replace(bundle, golden=Golden(bundle.golden.inputs, outputs)), cache_dir=tmp_path / "engine")
    assert [entry.key.kind for entry in PlanCache(tmp_path / "engine").entries()] == ["tensorrt-timing"]


@pytest.mark.parametrize("graph", [b"nonsense", b""])
def test_a_graph_that_the_parser_refuses_is_refused_in_one_line(bundle: Bundle, graph: bytes) -> None:
    with pytest.raises(BundleError, match="TensorRT refuses the graph") as caught:
        TensorRtEngine(replace(bundle, model_onnx=graph))
    assert "\n" not in str(caught.value)


def test_without_a_folder_it_runs_all_the_same(bundle: Bundle) -> None:
    engine = TensorRtEngine(bundle)
    assert engine.from_cache is False
    engine.close()


def _product_graph() -> bytes:
    """Return a graph that gives long products, in which fewer bits would show, as its embedding."""
    random = np.random.default_rng(3)
    n_values = N_ROWS * N_FRAMES
    weights = numpy_helper.from_array(random.normal(0, 1, (n_values, 256)).astype(np.float32), "weights")
    shape = numpy_helper.from_array(np.array([-1, n_values], np.int64), "shape")
    axes = numpy_helper.from_array(np.array([1], np.int64), "axes")
    nodes = [
        helper.make_node("Reshape", ["log_mel", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["embedding"]),
        helper.make_node("Abs", ["embedding"], ["magnitudes"]),
        helper.make_node("ReduceMean", ["magnitudes", "axes"], ["score"], keepdims=0),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "products",
        [value("log_mel", TensorProto.FLOAT, ["batch", N_ROWS, N_FRAMES])],
        [value("score", TensorProto.FLOAT, ["batch"]), value("embedding", TensorProto.FLOAT, ["batch", 256])],
        initializer=[weights, shape, axes],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return bytes(model.SerializeToString())


def test_float32_is_float32(bundle: Bundle) -> None:
    """Rounding factors to the 10 bits of TF32 is off by some 1e-4 of the largest product: the test sees it."""
    graph = _product_graph()
    inputs = {"log_mel": small_inputs(9)}
    expected = OnnxEngine(graph).score(inputs)
    assert expected.embedding is not None
    golden = Golden(inputs, {"score": expected.score})
    engine = TensorRtEngine(replace(bundle, model_onnx=graph, golden=golden))
    products = engine.score(inputs).embedding
    assert products is not None
    largest = np.abs(expected.embedding).max()
    np.testing.assert_allclose(products, expected.embedding, rtol=0, atol=5e-6 * largest)
    engine.close()
