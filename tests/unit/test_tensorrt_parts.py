"""What stands around TensorRT: keys, versions, the cutting of batches, and clear words where it is missing.

TensorRT itself is asked in tests/gpu, on a machine that has it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeasd.bundle import Bundle, read_bundle
from edgeasd.engine import cuda
from edgeasd.engine.cuda import Gpu, checked, find_gpu
from edgeasd.engine.machine import gpu_name, has_module
from edgeasd.engine.tensorrt import (
    TensorRtEngine,
    check_inputs,
    joined,
    pieces,
    plan_key,
    supported_version,
    timing_key,
)
from edgeasd.engine.tensorrt_api import MAX_BATCH, import_tensorrt, one_line
from edgeasd.errors import SelfTestError, UnavailableError
from tests.small_bundle import small_inputs, write_small_bundle

ORIN = Gpu("Orin", "8.7", "13.0")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return read_bundle(write_small_bundle(tmp_path / "small.edgeasd"))


@pytest.mark.skipif(has_module("tensorrt"), reason="TensorRT is installed here")
def test_without_tensorrt_the_extra_is_named_and_nothing_is_written(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(
        UnavailableError, match=r"tensorrt is not installed: pip install 'edgeasd\[tensorrt\]'"
    ) as caught:
        TensorRtEngine(bundle, cache_dir=tmp_path / "engine")
    assert caught.value.exit_code == 69
    assert not (tmp_path / "engine").exists()


def test_a_tensorrt_that_does_not_load_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.11: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UnavailableError, match=r"edgeasd\[tensorrt\] .* does not load: libnvinfer"):
        import_tensorrt()


@pytest.mark.skipif(gpu_name() is not None, reason="there is a GPU here")
def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(UnavailableError, match=r"no CUDA device can be used here; edgeasd\[tensorrt\] needs one"):
        find_gpu()


@pytest.mark.skipif(gpu_name() is not None, reason="there is a GPU here")
def test_a_gpu_that_cuda_cannot_use_is_not_available(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cuda.bindings")
    monkeypatch.setattr(cuda, "gpu_name", lambda: "Orin")
    with pytest.raises(UnavailableError, match="Orin cannot be used: CUDA: cudaError"):  # what the real runtime says
        find_gpu()


def test_an_error_code_of_cuda_is_raised_by_name() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime")
    assert checked((runtime.cudaError_t.cudaSuccess,)) is None
    assert checked((runtime.cudaError_t.cudaSuccess, 7)) == 7
    with pytest.raises(SelfTestError, match="CUDA: cudaErrorMemoryAllocation"):
        checked((runtime.cudaError_t.cudaErrorMemoryAllocation, None))


@pytest.mark.parametrize("version", ["10.3.0", "10.16.1.11", "11.4.0.106"])
def test_versions_it_is_written_for_are_taken(version: str) -> None:
    assert supported_version(version) == version


@pytest.mark.parametrize("version", ["8.6.1.post1", "10.2.0.post1", "12.0.0", "", "unknown"])
def test_other_versions_are_refused_by_name(version: str) -> None:
    with pytest.raises(UnavailableError, match=rf"TensorRT {version} is installed, .* takes 10.3 to 11.x"):
        supported_version(version)


def test_a_plan_is_for_one_graph_precision_version_and_gpu() -> None:
    keys = [
        plan_key(b"graph", "fp32", version="10.3.0", gpu=ORIN),
        plan_key(b"other", "fp32", version="10.3.0", gpu=ORIN),
        plan_key(b"graph", "fp16", version="10.3.0", gpu=ORIN),
        plan_key(b"graph", "fp32", version="10.4.0", gpu=ORIN),
        plan_key(b"graph", "fp32", version="10.3.0", gpu=replace(ORIN, name="Thor")),
        plan_key(b"graph", "fp32", version="10.3.0", gpu=replace(ORIN, capability="11.0")),
        plan_key(b"graph", "fp32", version="10.3.0", gpu=replace(ORIN, driver="13.1")),
        timing_key(version="10.3.0", gpu=ORIN),
    ]
    assert len({key.canonical() for key in keys}) == len(keys)
    assert plan_key(b"graph", "fp32", version="10.3.0", gpu=ORIN).canonical() == keys[0].canonical()


@given(n_windows=st.integers(1, 1000), max_batch=st.integers(1, 100))
def test_a_batch_is_cut_into_as_few_even_pieces_as_can_be(n_windows: int, max_batch: int) -> None:
    cut = list(pieces(n_windows, max_batch=max_batch))
    assert [i for piece in cut for i in range(n_windows)[piece]] == list(range(n_windows))
    sizes = [len(range(n_windows)[piece]) for piece in cut]
    assert max(sizes) <= max_batch
    assert max(sizes) - min(sizes) <= 1
    assert (len(cut) - 1) * max_batch < n_windows


def test_what_a_plan_takes_at_once_stays_whole() -> None:
    assert list(pieces(MAX_BATCH)) == [slice(0, MAX_BATCH)]
    assert [piece.stop - piece.start for piece in pieces(MAX_BATCH + 1)] == [32, 33]


@given(n_windows=st.integers(1, 200))
def test_the_answers_to_the_pieces_are_the_answer_to_the_batch(n_windows: int) -> None:
    score = np.arange(n_windows, dtype=np.float32)
    whole = {"score": score, "residual": np.stack([score, -score], axis=1)}
    parts = [{name: array[piece] for name, array in whole.items()} for piece in pieces(n_windows)]
    found = joined(parts)
    assert found.keys() == whole.keys()
    for name, array in whole.items():
        np.testing.assert_array_equal(found[name], array)


class TestInputs:
    windows: ClassVar[dict[str, tuple[int, ...]]] = {"log_mel": (8, 5)}

    def test_what_the_graph_takes_is_counted(self) -> None:
        assert check_inputs({"log_mel": small_inputs(3)}, self.windows) == 3

    @pytest.mark.parametrize("shape", [(3, 8, 4), (3, 40), (0, 8, 5), (3,)])
    def test_another_shape_is_an_error_before_it_reaches_the_gpu(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(SelfTestError, match=r"takes log_mel as float32 \(windows, 8, 5\), not float32"):
            check_inputs({"log_mel": np.zeros(shape, np.float32)}, self.windows)

    def test_another_type_too(self) -> None:
        with pytest.raises(SelfTestError, match="not float64"):
            check_inputs({"log_mel": np.zeros((1, 8, 5))}, self.windows)  # type: ignore[dict-item]

    def test_another_name_too(self) -> None:
        with pytest.raises(SelfTestError, match=r"takes \['log_mel'\], not \['waveform'\]"):
            check_inputs({"waveform": np.zeros((1, 8), np.float32)}, self.windows)

    def test_inputs_of_different_length_too(self) -> None:
        two = {"log_mel": np.zeros((2, 8, 5), np.float32), "waveform": np.zeros((3, 9), np.float32)}
        with pytest.raises(SelfTestError, match="takes waveform"):
            check_inputs(two, {**self.windows, "waveform": (9,)})


def test_what_a_library_says_at_length_becomes_one_short_line() -> None:
    assert one_line(" In node 3:\n  unsupported\tHardmax \n") == "In node 3: unsupported Hardmax"
    assert one_line("x" * 400) == "x" * 300 + ".."
