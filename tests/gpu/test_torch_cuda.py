"""The torch engine on a GPU: the answers of the reference for any batch, from memory that is allocated once."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from edgeasd.bundle import Bundle, read_bundle
from edgeasd.engine import check_golden
from edgeasd.engine.machine import gpu_name, has_module
from edgeasd.engine.torch import TorchEngine
from tests.small_bundle import small_answers, small_inputs, small_program, write_full_bundle

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(300),
    pytest.mark.skipif(gpu_name() is None, reason="no CUDA device"),
    pytest.mark.skipif(not has_module("torch"), reason="torch is not installed"),
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("bundle") / "small.edgeasd"
    return read_bundle(write_full_bundle(path, program=small_program()))


@pytest.fixture
def engine(bundle: Bundle) -> Iterator[TorchEngine]:
    engine = TorchEngine(bundle)
    yield engine
    engine.close()


def test_it_computes_on_the_gpu(engine: TorchEngine, bundle: Bundle) -> None:
    assert engine.device == gpu_name()
    check_golden(engine, bundle.golden)


def test_every_batch_of_1_to_65_and_a_large_one_gets_the_answers_of_the_reference(engine: TorchEngine) -> None:
    for n_windows in (*range(1, 66), 1000, *range(65, 0, -7)):  # graphs are replayed in another order too
        log_mel = small_inputs(n_windows, seed=n_windows)
        outputs, expected = engine.score({"log_mel": log_mel}), small_answers(log_mel)
        np.testing.assert_allclose(outputs.score, expected["score"], rtol=1e-5)
        assert outputs.residual is not None
        np.testing.assert_allclose(outputs.residual, expected["residual"], rtol=1e-5)


def test_what_an_earlier_batch_left_behind_does_not_count(engine: TorchEngine) -> None:
    engine.score({"log_mel": small_inputs(8)})
    log_mel = small_inputs(5, seed=1)
    np.testing.assert_array_equal(engine.score({"log_mel": log_mel}).score, engine.score({"log_mel": log_mel}).score)
    np.testing.assert_allclose(engine.score({"log_mel": log_mel}).score, small_answers(log_mel)["score"], rtol=1e-5)


def test_a_batch_that_was_recorded_takes_no_more_memory_on_the_gpu(engine: TorchEngine) -> None:
    import torch

    engine.score({"log_mel": small_inputs(64)})
    before = torch.cuda.memory_allocated()
    for seed in range(20):
        engine.score({"log_mel": small_inputs(64, seed=seed)})
    assert torch.cuda.memory_allocated() == before


def test_float32_is_computed_in_float32(engine: TorchEngine) -> None:
    import torch

    assert engine.device == gpu_name()  # opening it is what turns TF32 off
    a, b = (torch.randn(512, 512, generator=torch.Generator().manual_seed(i)) for i in range(2))
    on_gpu = (a.cuda() @ b.cuda()).cpu().double()
    assert float((on_gpu - a.double() @ b.double()).abs().max()) < 1e-3  # TF32 is off by about 0.05


def test_a_thread_that_did_not_open_it_may_use_it(engine: TorchEngine) -> None:
    scores: list[float] = []
    using = threading.Thread(target=lambda: scores.extend(engine.score({"log_mel": small_inputs(3)}).score))
    using.start()
    using.join()
    np.testing.assert_allclose(scores, small_answers(small_inputs(3))["score"], rtol=1e-5)


def test_closing_gives_the_memory_back(bundle: Bundle) -> None:
    import torch

    before = torch.cuda.memory_allocated()
    engine = TorchEngine(bundle)
    engine.score({"log_mel": small_inputs(64)})
    assert torch.cuda.memory_allocated() > before
    engine.close()
    assert torch.cuda.memory_allocated() == before
