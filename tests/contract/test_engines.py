"""What every engine does: the same answers as where the model was trained, for any batch, or a clear refusal."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import psutil
import pytest

from edgeasd.bundle import Bundle, Golden, read_bundle
from edgeasd.engine import Engine, EngineKind, open_engine
from edgeasd.errors import BundleError, SelfTestError, UnavailableError
from tests.small_bundle import N_FRAMES, N_ROWS, small_answers, small_inputs, write_small_bundle

BUILT: tuple[EngineKind, ...] = ("onnx",)
EXTRAS: tuple[EngineKind, ...] = ("torch", "tensorrt")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return read_bundle(write_small_bundle(tmp_path / "small.edgeasd"))


@pytest.fixture(params=BUILT)
def kind(request: pytest.FixtureRequest) -> EngineKind:
    chosen: EngineKind = request.param
    return chosen


@pytest.fixture
def engine(bundle: Bundle, kind: EngineKind) -> Iterator[Engine]:
    engine = open_engine(bundle, kind)
    yield engine
    engine.close()


def test_it_is_called_what_users_call_it(engine: Engine, kind: EngineKind) -> None:
    assert engine.name == kind


@pytest.mark.parametrize("n_windows", [1, 2, 3, 7, 64])
def test_any_batch_gives_the_answers_of_the_reference(engine: Engine, n_windows: int) -> None:
    log_mel = small_inputs(n_windows, seed=n_windows)
    outputs, expected = engine.score({"log_mel": log_mel}), small_answers(log_mel)
    assert outputs.score.shape == (n_windows,)
    assert outputs.score.dtype == np.float32
    np.testing.assert_allclose(outputs.score, expected["score"], rtol=1e-5)
    assert outputs.residual is not None
    np.testing.assert_allclose(outputs.residual, expected["residual"], rtol=1e-5)
    assert outputs.embedding is None
    assert outputs.logits is None


def test_only_what_is_wanted_comes_back_and_the_score_always(engine: Engine) -> None:
    log_mel = small_inputs(2)
    assert engine.score({"log_mel": log_mel}, wanted=()).residual is None
    np.testing.assert_array_equal(
        engine.score({"log_mel": log_mel}, wanted=()).score, engine.score({"log_mel": log_mel}).score
    )


def test_a_window_scores_the_same_alone_and_among_others(engine: Engine) -> None:
    log_mel = small_inputs(9)
    together = engine.score({"log_mel": log_mel}).score
    alone = [engine.score({"log_mel": log_mel[i : i + 1]}).score[0] for i in range(9)]
    np.testing.assert_allclose(together, alone, rtol=1e-6)


def test_its_answers_are_not_overwritten_by_the_next_ones(engine: Engine) -> None:
    first = engine.score({"log_mel": small_inputs(2, seed=1)}).score
    kept = first.copy()
    engine.score({"log_mel": small_inputs(2, seed=2)})
    assert np.array_equal(first, kept)


def test_it_takes_inputs_that_are_views(engine: Engine) -> None:
    log_mel = small_inputs(4)
    strided = np.ascontiguousarray(log_mel.transpose(0, 2, 1)).transpose(0, 2, 1)
    assert not strided.flags.c_contiguous
    np.testing.assert_array_equal(engine.score({"log_mel": strided}).score, engine.score({"log_mel": log_mel}).score)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf, 3e38])
def test_a_score_that_is_not_finite_is_an_error_never_an_answer(engine: Engine, poison: float) -> None:
    log_mel = small_inputs(3)
    log_mel[1, 2, 3] = poison
    with pytest.raises(SelfTestError, match="not finite"):
        engine.score({"log_mel": log_mel})
    assert np.isfinite(engine.score({"log_mel": small_inputs(3)}).score).all()


@pytest.mark.parametrize("output", ["score", "residual"])
def test_an_engine_that_misses_the_golden_vectors_is_not_opened(bundle: Bundle, kind: EngineKind, output: str) -> None:
    outputs = {name: array.copy() for name, array in bundle.golden.outputs.items()}
    outputs[output].flat[0] *= 1.01
    altered = replace(bundle, golden=Golden(bundle.golden.inputs, outputs))
    with pytest.raises(BundleError, match=f"golden test of the {kind} engine: {output} is off by"):
        open_engine(altered, kind)
    close = {name: array * np.float32(1 + 2e-5) for name, array in bundle.golden.outputs.items()}
    open_engine(replace(bundle, golden=Golden(bundle.golden.inputs, close)), kind).close()


def test_golden_vectors_of_another_shape_are_not_met(bundle: Bundle, kind: EngineKind) -> None:
    outputs = {**bundle.golden.outputs, "embedding": np.zeros((3, 2), np.float32)}
    with pytest.raises(BundleError, match="embedding has another shape"):
        open_engine(replace(bundle, golden=Golden(bundle.golden.inputs, outputs)), kind)


def test_a_model_the_runtime_does_not_take_is_refused_in_one_line(bundle: Bundle, kind: EngineKind) -> None:
    for model_onnx in (b"", b"nonsense", bundle.model_onnx[:-50]):
        with pytest.raises(BundleError) as caught:
            open_engine(replace(bundle, model_onnx=model_onnx), kind)
        assert "\n" not in str(caught.value)


def test_it_starts_no_thread(bundle: Bundle, kind: EngineKind) -> None:
    open_engine(bundle, kind).close()  # what the library itself starts, it starts now
    before = psutil.Process().num_threads()
    engine = open_engine(bundle, kind)
    for n_windows in range(1, 6):
        engine.score({"log_mel": small_inputs(n_windows)})
    assert psutil.Process().num_threads() == before
    engine.close()


def test_auto_takes_the_best_that_is_there(bundle: Bundle) -> None:
    engine = open_engine(bundle, "auto")
    assert engine.name in BUILT
    engine.close()


@pytest.mark.parametrize("kind_to_come", EXTRAS)
def test_an_engine_that_is_not_there_names_the_extra_it_takes(bundle: Bundle, kind_to_come: EngineKind) -> None:
    with pytest.raises(UnavailableError, match=rf"edgeasd\[{kind_to_come}\]") as caught:
        open_engine(bundle, kind_to_come)
    assert caught.value.exit_code == 69


def test_every_kind_that_can_be_asked_for_is_tested_here() -> None:
    assert set(get_args(EngineKind)) == {"auto", *BUILT, *EXTRAS}
    assert (N_ROWS, N_FRAMES) == (8, 5)


def test_the_onnx_engine_tells_nobody_of_its_use(tmp_path: Path) -> None:
    path = write_small_bundle(tmp_path / "small.edgeasd")
    home = tmp_path / "home"
    home.mkdir()
    code = f"""
from pathlib import Path
from edgeasd.bundle import read_bundle
from edgeasd.engine import open_engine
open_engine(read_bundle(Path({str(path)!r})), "onnx").close()
"""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("ORT_", "XDG_"))}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env={**environment, "HOME": str(home)})
    assert list(home.rglob("*")) == []  # ONNX Runtime's telemetry begins with a device id and a database in ~/.cache
