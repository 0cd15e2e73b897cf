"""What every engine does: the same answers as where the model was trained, for any batch, or a clear refusal."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import psutil
import pytest

from edgeasd.bundle import Bundle, Golden, read_bundle
from edgeasd.engine import Engine, EngineKind, EngineName, golden_tolerance, open_engine
from edgeasd.engine.choosing import ENGINES, paired
from edgeasd.engine.machine import gpu_name, has_module
from edgeasd.errors import BundleError, EdgeasdError, SelfTestError, UnavailableError
from edgeasd.manifest import Precision
from tests.small_bundle import (
    N_FRAMES,
    N_ROWS,
    small_answers,
    small_inputs,
    small_program,
    write_full_bundle,
    write_small_bundle,
)

Contender = tuple[EngineName, Precision]

CONTENDERS: tuple[Contender, ...] = (
    ("onnx", "fp32"),
    ("onnx", "fp16"),
    ("onnx", "int8"),
    ("torch", "fp32"),
    ("tensorrt", "fp32"),
    ("tensorrt", "fp16"),
    ("tensorrt", "int8"),
)
RUNNABLE = [
    (kind, precision)
    for kind, precision in CONTENDERS
    if kind == "onnx" or (has_module(kind) and (kind == "torch" or gpu_name() is not None))
]
RTOL: dict[Precision, float] = {"fp32": 1e-5, "fp16": 2e-3, "int8": 4e-2}


@pytest.fixture(scope="session")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = small_program() if has_module("torch") else None
    return write_full_bundle(tmp_path_factory.mktemp("bundle") / "small.edgeasd", program=program)


@pytest.fixture
def bundle(file: Path) -> Bundle:
    return read_bundle(file)


@pytest.fixture(params=RUNNABLE, ids=" ".join)
def contender(request: pytest.FixtureRequest) -> Contender:
    """An engine that can be had here, in a precision."""
    chosen: Contender = request.param
    return chosen


@pytest.fixture
def opened(contender: Contender) -> Callable[[Bundle], Engine]:
    """Opens a bundle with the contender."""
    kind, precision = contender
    return lambda bundle: open_engine(bundle, kind, precision=precision)


@pytest.fixture
def engine(bundle: Bundle, opened: Callable[[Bundle], Engine]) -> Iterator[Engine]:
    engine = opened(bundle)
    yield engine
    engine.close()


def test_it_says_what_it_is(engine: Engine, contender: Contender) -> None:
    assert (engine.name, engine.precision) == contender
    assert engine.device in {"cpu", gpu_name()}


@pytest.mark.parametrize("n_windows", [1, 2, 3, 7, 64])
def test_any_batch_gives_the_answers_of_the_reference(engine: Engine, n_windows: int) -> None:
    rtol = RTOL[engine.precision]
    log_mel = small_inputs(n_windows, seed=n_windows)
    outputs, expected = engine.score({"log_mel": log_mel}), small_answers(log_mel)
    assert outputs.score.shape == (n_windows,)
    assert outputs.score.dtype == np.float32
    np.testing.assert_allclose(outputs.score, expected["score"], rtol=rtol)
    assert outputs.residual is not None
    np.testing.assert_allclose(outputs.residual, expected["residual"], rtol=rtol, atol=rtol)
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
    if engine.precision == "int8":
        pytest.skip("an int8 graph clips its input")
    log_mel = small_inputs(3)
    log_mel[1, 2, 3] = poison
    with pytest.raises(SelfTestError, match="not finite"):
        engine.score({"log_mel": log_mel})
    assert np.isfinite(engine.score({"log_mel": small_inputs(3)}).score).all()


@pytest.mark.parametrize("output", ["score", "residual"])
def test_an_engine_that_misses_the_golden_vectors_is_not_opened(
    bundle: Bundle, opened: Callable[[Bundle], Engine], contender: Contender, output: str
) -> None:
    outputs = {name: array.copy() for name, array in bundle.golden.outputs.items()}
    tolerance = golden_tolerance(bundle, contender[1])
    outputs[output].flat[0] += 3 * tolerance * (1 + outputs[output].flat[0])
    altered = replace(bundle, golden=Golden(bundle.golden.inputs, outputs))
    with pytest.raises(BundleError, match=f"golden test of the {contender[0]} engine: {output} is off by"):
        opened(altered)


def test_golden_vectors_within_the_tolerance_are_met(bundle: Bundle, opened: Callable[[Bundle], Engine]) -> None:
    close = {name: array * np.float32(1 + 2e-5) for name, array in bundle.golden.outputs.items()}
    opened(replace(bundle, golden=Golden(bundle.golden.inputs, close))).close()


def test_golden_vectors_of_another_shape_are_not_met(bundle: Bundle, opened: Callable[[Bundle], Engine]) -> None:
    outputs = {**bundle.golden.outputs, "embedding": np.zeros((3, 2), np.float32)}
    with pytest.raises(BundleError, match="embedding has another shape"):
        opened(replace(bundle, golden=Golden(bundle.golden.inputs, outputs)))


@pytest.mark.parametrize("spoil", [lambda _: b"", lambda _: b"nonsense", lambda data: data[:-50]], ids=str)
def test_a_model_the_runtime_does_not_take_is_refused_in_one_line(
    bundle: Bundle, opened: Callable[[Bundle], Engine], spoil: Callable[[bytes], bytes]
) -> None:
    optional = {name: spoil(data) for name, data in bundle.optional.items()}
    with pytest.raises(EdgeasdError) as caught:
        opened(replace(bundle, model_onnx=spoil(bundle.model_onnx), optional=optional))
    assert isinstance(caught.value, BundleError | UnavailableError)
    assert "\n" not in str(caught.value)


def test_it_starts_no_thread(bundle: Bundle, opened: Callable[[Bundle], Engine]) -> None:
    opened(bundle).close()  # what the library itself starts, it starts now
    before = psutil.Process().num_threads()
    engine = opened(bundle)
    for n_windows in range(1, 6):
        engine.score({"log_mel": small_inputs(n_windows)})
    assert psutil.Process().num_threads() == before
    engine.close()


@pytest.mark.parametrize("kind", ["torch", "tensorrt"])
def test_what_is_said_here_holds_for_every_engine(kind: EngineName) -> None:
    if kind not in {one for one, _ in RUNNABLE}:
        pytest.skip(f"{kind} is not installed, or there is no GPU for it: nothing else in this file has run on it")


@pytest.mark.parametrize("kind", ["torch", "tensorrt"])
def test_an_engine_that_is_not_there_names_the_extra_it_takes(
    bundle: Bundle, kind: EngineName, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, kind, None)  # as Python marks what cannot be imported
    with pytest.raises(UnavailableError, match=rf"edgeasd\[{kind}\]") as caught:
        open_engine(bundle, kind)
    assert caught.value.exit_code == 69


def test_every_engine_and_precision_is_tested_here() -> None:
    assert set(get_args(EngineKind)) == {"auto", *(kind for kind, _ in CONTENDERS)}
    assert set(CONTENDERS) == {(one.kind, one.precision) for one in paired(ENGINES, get_args(Precision))}
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
