"""Which engine runs a bundle: what is asked for, or what is measured to be fastest, now or at an earlier start."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgeasd.assembly import JudgeOptions, plan_judges, seat_judges
from edgeasd.bundle import REDUCED_MEMBERS, Bundle, Golden, read_bundle
from edgeasd.engine import Engine, Outputs, open_engine
from edgeasd.engine.choosing import Candidate, candidates_of, choose_engine
from edgeasd.engine.measuring import batch_of, latency_ms
from edgeasd.engine.onnx import OnnxEngine
from edgeasd.errors import BundleError, UnavailableError
from edgeasd.records import FloatArray
from edgeasd.scoring.calibration import Calibration
from edgeasd.site import save_site_calibration, site_calibration
from tests.small_bundle import small_manifest, small_table, write_full_bundle, write_small_bundle

SPEEDS_MS = {"fp32": 1.0, "fp16": 0.5, "int8": 0.95}


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return read_bundle(write_full_bundle(tmp_path / "small.edgeasd"))


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Measures each precision at `SPEEDS_MS`; the list says which were measured."""
    measured: list[str] = []

    def latency_ms(engine: Engine, inputs: Mapping[str, object]) -> float:
        assert {len(array) for array in inputs.values()} == {1}  # type: ignore[arg-type]
        measured.append(engine.precision)
        return SPEEDS_MS[engine.precision]

    monkeypatch.setattr("edgeasd.engine.choosing.latency_ms", latency_ms)
    return measured


@pytest.fixture
def with_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes `auto` believe in a GPU and in some installed modules."""

    def believe(*modules: str) -> None:
        monkeypatch.setattr("edgeasd.engine.choosing.gpu_name", lambda: "H200")
        monkeypatch.setattr("edgeasd.engine.choosing.has_module", lambda name: name in modules)

    return believe


def spoilt(bundle: Bundle, *precisions: str) -> Bundle:
    """Return the same bundle, by its digest, with graphs that no runtime takes."""
    names = [name for key, name in REDUCED_MEMBERS.items() if key in precisions]
    model_onnx = b"spoilt" if "fp32" in precisions else bundle.model_onnx
    return replace(bundle, model_onnx=model_onnx, optional={**bundle.optional, **dict.fromkeys(names, b"spoilt")})


def test_without_a_cuda_device_auto_is_onnx_and_measures_nothing(
    bundle: Bundle, slow: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeasd.engine.choosing.gpu_name", lambda: None)
    assert candidates_of(replace(bundle, optional={"model.pt2": b""}), "auto", "fp32") == [Candidate("onnx", "fp32")]
    chosen = choose_engine(bundle, cache_dir=tmp_path / "engines")
    assert (chosen.engine.name, chosen.engine.precision, chosen.window_ms, slow) == ("onnx", "fp32", None, [])
    assert not (tmp_path / "engines").exists()


def test_with_one_auto_looks_at_all_that_is_installed_and_fits_the_bundle(
    bundle: Bundle, with_gpu: Callable[..., None]
) -> None:
    with_gpu("torch", "tensorrt")
    assert candidates_of(bundle, "auto", "fp32") == [Candidate("onnx", "fp32"), Candidate("tensorrt", "fp32")]
    program = replace(bundle, optional={**bundle.optional, "model.pt2": b"program"})
    found = [str(one) for one in candidates_of(program, "auto", "auto")]
    onnx, tensorrt = ([f"{kind} {one}" for one in ("fp32", "fp16", "int8")] for kind in ("onnx", "tensorrt"))
    assert found == [*onnx, "torch fp32", *tensorrt]
    assert [str(one) for one in candidates_of(program, "auto", "int8")] == ["onnx int8", "tensorrt int8"]
    with_gpu()
    assert candidates_of(program, "auto", "fp32") == [Candidate("onnx", "fp32")]


def test_what_an_engine_or_a_bundle_does_not_have_is_refused_by_name(tmp_path: Path, bundle: Bundle) -> None:
    with pytest.raises(UnavailableError, match="torch: computes in fp32 only, not in int8"):
        open_engine(bundle, "torch", precision="int8")
    small = read_bundle(write_small_bundle(tmp_path / "fp32.edgeasd"))
    with pytest.raises(BundleError, match="no graph in int8, only in fp32"):
        open_engine(small, "auto", precision="int8")


def test_the_fastest_is_taken_the_others_are_closed(
    bundle: Bundle, slow: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []
    monkeypatch.setattr(OnnxEngine, "close", lambda engine: closed.append(engine.precision))
    chosen = choose_engine(bundle, precision="auto")
    assert (chosen.engine.precision, chosen.window_ms, closed) == ("fp16", 0.5, ["fp32", "int8"])
    assert chosen.why == "measured at 0.5 ms a window (onnx fp32 1 ms, onnx int8 0.95 ms)"


def test_fewer_bits_must_be_clearly_faster(bundle: Bundle, slow: list[str]) -> None:
    precisions = {"int8": bundle.manifest.precisions["int8"]}
    two = replace(bundle, manifest=bundle.manifest.model_copy(update={"precisions": precisions}))
    assert choose_engine(two, precision="auto").engine.precision == "fp32"  # 0.95 ms against 1 ms


def test_the_next_start_opens_only_the_winner(bundle: Bundle, slow: list[str], tmp_path: Path) -> None:
    first = choose_engine(bundle, precision="auto", cache_dir=tmp_path)
    slow.clear()
    alone = spoilt(bundle, "fp32", "int8")  # of these two nothing is even read
    again = choose_engine(alone, precision="auto", cache_dir=tmp_path)
    assert (again.engine.precision, again.window_ms, slow) == ("fp16", 0.5, [])
    assert again.why == f"{first.why} at an earlier start"


def test_a_choice_holds_for_the_very_bundle_wish_and_libraries(
    bundle: Bundle, slow: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measures(bundle: Bundle, *, kind: str = "auto") -> bool:
        slow.clear()
        choose_engine(bundle, kind, precision="auto", cache_dir=tmp_path)  # type: ignore[arg-type]
        return bool(slow)

    assert measures(bundle)
    assert not measures(bundle)
    assert measures(bundle, kind="onnx")
    assert measures(replace(bundle, sha256="f" * 64))
    assert not measures(bundle)
    monkeypatch.setattr("edgeasd.engine.choosing.versions", lambda: {"onnxruntime": "99.0"})
    assert measures(bundle)
    monkeypatch.setattr("edgeasd.engine.choosing.gpu_name", lambda: "H200")
    monkeypatch.setattr("edgeasd.engine.choosing.has_module", lambda name: False)
    assert measures(bundle)


def test_a_choice_that_was_tampered_with_is_measured_anew(bundle: Bundle, slow: list[str], tmp_path: Path) -> None:
    choose_engine(bundle, precision="auto", cache_dir=tmp_path)
    (note,) = (tmp_path / "built").iterdir()
    note.write_bytes(note.read_bytes().replace(b'"precision":"fp16"', b'"precision":"int8"'))
    slow.clear()
    assert choose_engine(bundle, precision="auto", cache_dir=tmp_path).engine.precision == "fp16"
    assert slow == ["fp32", "fp16", "int8"]


def test_a_winner_that_passes_no_more_is_replaced_and_named(
    bundle: Bundle, slow: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    choose_engine(bundle, precision="auto", cache_dir=tmp_path)
    with caplog.at_level(logging.WARNING):
        chosen = choose_engine(spoilt(bundle, "fp16"), precision="auto", cache_dir=tmp_path)
    assert chosen.engine.precision == "fp32"
    assert "the choice of an earlier start does not hold" in caplog.text
    assert "onnx fp16 is passed over: " in caplog.text
    assert len(chosen.passed_over) == 1
    assert chosen.passed_over[0].startswith("onnx fp16: ")
    caplog.clear()
    again = choose_engine(spoilt(bundle, "fp16"), precision="auto", cache_dir=tmp_path)
    assert again.passed_over == chosen.passed_over
    assert "passed over since an earlier start: onnx fp16: " in caplog.text


def test_an_engine_that_is_installed_and_broken_is_passed_over(
    bundle: Bundle, slow: list[str], with_gpu: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpu("torch")
    monkeypatch.setitem(sys.modules, "edgeasd.engine.torch", None)  # importing it raises ImportError, as a broken one
    program = replace(bundle, optional={**bundle.optional, "model.pt2": b"program"})
    chosen = choose_engine(program)
    assert (chosen.engine.name, len(chosen.passed_over)) == ("onnx", 1)
    assert chosen.passed_over[0].startswith("torch fp32: engine torch: ")
    with pytest.raises(UnavailableError):
        open_engine(program, "torch")


def test_when_none_passes_the_first_says_why(bundle: Bundle, slow: list[str], tmp_path: Path) -> None:
    outputs = {**bundle.golden.outputs, "score": bundle.golden.outputs["score"] * 2}
    off = replace(bundle, golden=Golden(bundle.golden.inputs, outputs))
    with pytest.raises(BundleError, match="golden test of the onnx engine: score is off by"):
        choose_engine(off, precision="auto", cache_dir=tmp_path)
    assert choose_engine(bundle, precision="auto", cache_dir=tmp_path).window_ms == 0.5  # nothing was kept of that


def test_the_calibration_is_that_of_the_precision_and_so_is_the_one_of_the_site(
    bundle: Bundle, state_dir: Path
) -> None:
    shifted = small_table().model_copy(update={"tail_start": small_table().quantiles[-1]})
    reduced = {key: one.model_copy(update={"calibration": shifted}) for key, one in bundle.manifest.precisions.items()}
    bundle = replace(bundle, manifest=small_manifest().model_copy(update={"precisions": reduced}))

    def enters_at(precision: str) -> tuple[float, bool]:
        options = JudgeOptions(bundle, engine="onnx", precision=precision, hop_s=0.032, state_dir=state_dir)  # type: ignore[arg-type]
        with seat_judges(plan_judges(options)) as bench:
            assert bench.model is not None
            assert bench.model.engine.precision == precision
            return bench.model.calibration.score_at(1e-4), bench.calibrated_on_site

    own, of_fewer_bits = (Calibration(table).score_at(1e-4) for table in (small_table(), shifted))
    assert own != of_fewer_bits
    assert enters_at("fp32") == (own, False)
    assert enters_at("int8") == (of_fewer_bits, False)
    save_site_calibration(state_dir, bundle, small_table(), "int8")
    assert site_calibration(state_dir, bundle) is None
    assert enters_at("fp32") == (own, False)
    assert enters_at("int8") == (own, True)


def test_measuring_is_bounded_also_where_one_call_outlasts_the_budget(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [0.0]
    monkeypatch.setattr("edgeasd.engine.measuring.time.perf_counter", lambda: now_s[0])
    calls_s = [9.0, 9.0, 9.0, 1.0, 1.0, 5.0, 1.0, 1.0]  # warming up; then one that was disturbed
    engine = open_engine(bundle, "onnx")

    class Slow:
        def score(self, inputs: Mapping[str, FloatArray]) -> Outputs:
            now_s[0] += calls_s.pop(0)
            return engine.score(inputs)

    assert latency_ms(Slow(), batch_of(bundle.golden, 7)) == 1000.0  # type: ignore[arg-type]
    assert calls_s == []
    engine.close()


def test_a_batch_is_the_golden_windows_over_and_over(bundle: Bundle) -> None:
    inputs = batch_of(bundle.golden, 7)["log_mel"]
    golden = bundle.golden.inputs["log_mel"]
    assert np.array_equal(inputs, np.concatenate([golden, golden, golden[:1]]))
