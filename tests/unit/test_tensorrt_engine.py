"""What the tensorrt engine does with plans and sessions; the sessions here compute in numpy, TensorRT is not asked."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest

from edgeasd.bundle import Bundle, read_bundle
from edgeasd.engine import tensorrt
from edgeasd.engine.cuda import Gpu
from edgeasd.engine.plans import PlanCache
from edgeasd.engine.tensorrt import TensorRtEngine
from edgeasd.engine.tensorrt_api import MAX_BATCH
from edgeasd.errors import BundleError, SelfTestError, UnavailableError
from edgeasd.records import FloatArray
from tests.small_bundle import N_FRAMES, N_ROWS, small_answers, small_inputs, write_full_bundle, write_small_bundle


class Builder:
    """Stands where plans are built; counts them and says what it was told of kernels."""

    def __init__(self) -> None:
        self.timings: list[bytes] = []

    def __call__(self, graph: bytes, *, timing: bytes) -> tuple[bytes, bytes]:
        self.timings.append(timing)
        return b"plan of " + graph, b"learnt"


class Session:
    """Stands where a plan runs: takes at most what a plan takes, and nothing once it is closed."""

    open_ones: ClassVar[int] = 0
    batches: ClassVar[list[int]] = []
    off_by: ClassVar[float] = 0.0
    outputs: ClassVar[list[str]] = ["residual", "score"]
    inputs: ClassVar[dict[str, tuple[int, ...]]] = {"log_mel": (N_ROWS, N_FRAMES)}

    def __init__(self, plan: bytes) -> None:
        if not plan.startswith(b"plan of "):
            raise RuntimeError("Magic tag does not match\nplease rebuild")
        self.closed = False
        self.error = 1.0 if plan == b"plan of something else" else self.off_by
        type(self).open_ones += 1

    def run(self, inputs: Mapping[str, FloatArray], wanted: Collection[str]) -> dict[str, FloatArray]:
        log_mel = inputs["log_mel"]
        assert not self.closed
        assert 1 <= len(log_mel) <= MAX_BATCH
        self.batches.append(len(log_mel))
        answers = small_answers(log_mel)
        answers["score"] = answers["score"] + np.float32(self.error)
        return {name: answers[name] for name in wanted}

    def close(self) -> None:
        assert not self.closed
        self.closed = True
        type(self).open_ones -= 1


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return read_bundle(write_small_bundle(tmp_path / "small.edgeasd"))


@pytest.fixture(autouse=True)
def builder(monkeypatch: pytest.MonkeyPatch) -> Builder:
    for name, value in (("open_ones", 0), ("batches", []), ("off_by", 0.0)):
        monkeypatch.setattr(Session, name, value)
    built = Builder()
    monkeypatch.setattr(tensorrt, "import_tensorrt", lambda: SimpleNamespace(__version__="10.3.0"))
    monkeypatch.setattr(tensorrt, "find_gpu", lambda: Gpu("Orin", "8.7", "13.0"))
    monkeypatch.setattr(tensorrt, "build_plan", built)
    monkeypatch.setattr(tensorrt, "Session", Session)
    return built


def test_a_large_batch_goes_in_pieces_and_comes_back_in_order(bundle: Bundle) -> None:
    engine = TensorRtEngine(bundle)
    Session.batches.clear()
    log_mel = small_inputs(2 * MAX_BATCH + 1)
    outputs = engine.score({"log_mel": log_mel})
    assert Session.batches == [43, 43, 43]
    expected = small_answers(log_mel)
    np.testing.assert_array_equal(outputs.score, expected["score"])
    assert outputs.residual is not None
    np.testing.assert_array_equal(outputs.residual, expected["residual"])
    assert engine.score({"log_mel": log_mel}, wanted=()).residual is None


def test_a_score_that_is_not_finite_is_an_error_wherever_it_is(bundle: Bundle) -> None:
    engine = TensorRtEngine(bundle)
    log_mel = small_inputs(MAX_BATCH + 1)
    log_mel[-1] = np.nan
    with pytest.raises(SelfTestError, match="not finite"):
        engine.score({"log_mel": log_mel})


def test_what_the_bindings_raise_in_a_call_becomes_one_line(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Session, inputs: object, wanted: object) -> None:
        raise RuntimeError("Unable to cast\n  Python instance")

    engine = TensorRtEngine(bundle)
    monkeypatch.setattr(Session, "run", fail)
    with pytest.raises(SelfTestError, match="the tensorrt engine failed: Unable to cast Python instance"):
        engine.score({"log_mel": small_inputs(1)})


def test_a_plan_and_what_was_learnt_are_built_once_and_kept(bundle: Bundle, tmp_path: Path, builder: Builder) -> None:
    for was_there in (False, True):
        engine = TensorRtEngine(bundle, cache_dir=tmp_path / "engine")
        assert engine.from_cache is was_there
        assert engine.device == "Orin"
        engine.close()
    assert builder.timings == [b""]
    altered = dataclasses.replace(bundle, model_onnx=bundle.model_onnx + b"\0")
    TensorRtEngine(altered, cache_dir=tmp_path / "engine").close()
    assert builder.timings == [b"", b"learnt"]  # another graph is another plan, and its build knows of the first
    assert Session.open_ones == 0


def test_a_new_plan_that_answers_otherwise_is_refused_and_nothing_stays_open_or_kept(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Session, "off_by", 1.0)
    with pytest.raises(BundleError, match="golden test of the tensorrt engine: score is off by"):
        TensorRtEngine(bundle, cache_dir=tmp_path / "engine")
    assert Session.open_ones == 0
    assert [entry.key.kind for entry in PlanCache(tmp_path / "engine").entries()] == ["tensorrt-timing"]


@pytest.mark.parametrize("kept", [b"of another driver", b"plan of something else"])
def test_a_kept_plan_that_does_not_load_or_answer_is_built_anew(
    bundle: Bundle, tmp_path: Path, builder: Builder, kept: bytes
) -> None:
    TensorRtEngine(bundle, cache_dir=tmp_path / "engine").close()
    cache = PlanCache(tmp_path / "engine")
    [key] = [entry.key for entry in cache.entries() if entry.key.kind == "tensorrt-plan"]
    cache.put(key, kept)
    engine = TensorRtEngine(bundle, cache_dir=tmp_path / "engine")
    assert engine.from_cache is False
    assert len(builder.timings) == 2
    assert cache.get(key) == b"plan of " + bundle.model_onnx
    assert Session.open_ones == 1


def test_what_the_bindings_raise_in_a_build_is_that_no_plan_can_be_had(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(graph: bytes, *, timing: bytes) -> tuple[bytes, bytes]:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(tensorrt, "build_plan", fail)
    with pytest.raises(UnavailableError, match="no plan could be built: pybind11"):
        TensorRtEngine(bundle)


def test_each_precision_has_its_own_graph_and_tolerance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = read_bundle(write_full_bundle(tmp_path / "full.edgeasd"))
    monkeypatch.setattr(Session, "off_by", 0.01 * float(full.golden.outputs["score"].min()))
    engine = TensorRtEngine(full, precision="int8", cache_dir=tmp_path / "engine")
    assert engine.precision == "int8"
    engine.close()
    keys = {entry.key.kind: entry.key for entry in PlanCache(tmp_path / "engine").entries()}
    assert keys["tensorrt-plan"].source_sha256 == hashlib.sha256(full.graph("int8")).hexdigest()
    with pytest.raises(BundleError, match=r"score is off by 0\.0.*, the limit is 0\.0001"):
        TensorRtEngine(full, precision="fp32")
