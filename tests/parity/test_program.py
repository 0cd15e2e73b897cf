"""The torch program that ships is the module that was trained, for any batch; and it tells nothing else."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from edgeasd.bundle import Golden
from edgeasd.engine.program import read_program
from edgeasd.engine.torch import Computation
from edgeasd.errors import SelfTestError
from edgeasd.records import FloatArray
from edgeasd_train.detectors.layers import pool_places, unpool
from edgeasd_train.program import export_program
from tests.conftest import ROOT
from tests.parity.test_export import VARIANTS, prepared
from tests.small_bundle import small_inputs


class Pools(nn.Module):
    """What variant unpool of bird-ae is made of beside convolutions."""

    def forward(self, log_mel: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pooled, places = pool_places(log_mel.unsqueeze(1))
        undone = unpool(pooled, places, size=(log_mel.shape[1] + 1, log_mel.shape[2]))
        return undone.mean(dim=(1, 2, 3)), undone


class KnowsItsBatch(nn.Module):
    """A model whose answer for a window depends on the others."""

    def forward(self, log_mel: torch.Tensor) -> torch.Tensor:
        return torch.sub(log_mel.mean(dim=(1, 2)), log_mel.mean())


class Exotic(nn.Module):
    """A model with an operator that no node runs."""

    def forward(self, log_mel: torch.Tensor) -> torch.Tensor:
        return torch.mean(torch.special.i0(log_mel), dim=(1, 2))


def served(name: str) -> tuple[nn.Module, FloatArray]:
    """Return a module to export, and windows for it."""
    if name == "pools":
        return Pools(), small_inputs(9)
    detector, _, log_mel = prepared(*VARIANTS[name])
    return detector.serve().eval(), log_mel


def golden_of(module: nn.Module, log_mel: FloatArray) -> Golden:
    """Return what a module makes of windows; its outputs are called by their numbers, but for the score."""
    with torch.inference_mode():
        answers = module(torch.from_numpy(log_mel))
    answers = answers if isinstance(answers, tuple) else (answers,)
    outputs = {f"output {i}" if i else "score": answer.numpy() for i, answer in enumerate(answers)}
    return Golden({"log_mel": log_mel}, outputs)


@pytest.mark.parametrize("name", ["odd sizes", "dense, Mahalanobis", "pools"])
def test_a_program_answers_as_its_module_for_any_batch_and_tells_nothing_else(name: str) -> None:
    module, log_mel = served(name)
    program = export_program(module, golden_of(module, log_mel))
    compute = Computation(read_program(program))
    for n_windows in (1, 2, 13):
        windows = np.resize(log_mel, (n_windows, *log_mel.shape[1:])) + np.float32(0.5)
        with torch.inference_mode():
            answers = compute({"log_mel": torch.from_numpy(windows)})
        for expected, answer in zip(golden_of(module, windows).outputs.values(), answers, strict=True):
            np.testing.assert_allclose(answer.numpy(), expected, rtol=1e-4, atol=1e-5)
    for word in (str(ROOT), "site-packages", ".py", "edgeasd", "stack_trace", "File"):
        assert word.encode() not in program
    with zipfile.ZipFile(io.BytesIO(program)) as archive:
        assert archive.read("archive/data/sample_inputs/model.pt") == b""


@pytest.mark.parametrize(
    ("module", "reason"),
    [(KnowsItsBatch(), "score is off by"), (Exotic(), r"operator 'torch\.ops\.aten\.special_i0\.default'")],
)
def test_a_module_that_a_node_would_not_run_alike_does_not_ship(module: nn.Module, reason: str) -> None:
    with pytest.raises(SelfTestError, match=reason):
        export_program(module, golden_of(module, small_inputs(3)))
