"""What ships is what was trained: ONNX Runtime against torch, for every learned detector and variant, any batch."""

from __future__ import annotations

from typing import cast

import numpy as np
import onnx
import pytest
import torch

from edgeasd.engine.onnx import OnnxEngine
from edgeasd.errors import SelfTestError
from edgeasd.features.mel import MelFrontEnd, MelSpec
from edgeasd.manifest import OutputName
from edgeasd.onnxgraph import read_graph
from edgeasd.records import FloatArray
from edgeasd_train import export
from edgeasd_train.detectors import build_detector
from edgeasd_train.detectors.contract import Detector
from edgeasd_train.export import export_onnx
from edgeasd_train.recipe import load_recipe

ALL_OUTPUTS: list[OutputName] = ["score", "embedding", "residual", "reconstruction"]
VARIANTS = {
    "default": ("bird-ae", []),
    "nearest, both sides, all frames": ("bird-ae", ["detector.options.variant=nearest", "detector.options.side=both",
                                                    "detector.options.loudest_frames=0"]),
    "crop, wide bottleneck": ("bird-ae", ["detector.options.crop=third_quarter", "detector.options.bottleneck=100",
                                          "detector.options.steady_weight=1"]),
    "odd sizes": ("bird-ae", ["features.n_mels=80", "data.window_s=0.725", "features.hop_frames=320",
                              "data.hop_s=0.02"]),
    "unpool": ("bird-ae", ["detector.options.variant=unpool"]),
    "anomaly_bird": ("anomaly-bird", []),
    "3CNN on 64": ("cnn-ae", []),
    "3CNN on 128": ("cnn-ae-128", []),
    "dense": ("dense-ae", []),
    "dense, Mahalanobis": ("dense-ae", ["detector.options.score=mahalanobis"]),
    "dense, shortest window": ("dense-ae", ["data.window_s=0.192", "features.n_mels=40"]),
}  # fmt: skip


def prepared(name: str, overrides: list[str]) -> tuple[Detector, MelSpec, FloatArray]:
    """Return a detector after a step of training, its front end, and windows (9, n_rows, n_frames) for it."""
    recipe = load_recipe(name, overrides=overrides)
    torch.manual_seed(recipe.seed)
    built, spec = build_detector(recipe)
    detector = cast("Detector", built)
    shape = (9, spec.n_rows, spec.n_frames(recipe.data.window_frames))
    log_mel = np.random.default_rng(1).normal(-60.0, 9.0, shape).astype(np.float32)
    if spec.scale == "power":
        log_mel = 10.0 ** ((log_mel + 60.0) / 10.0)
    batch = {
        "log_mel": torch.from_numpy(log_mel),
        "index": torch.arange(9),
        "section": torch.full((9,), -1),
        "domain": torch.tensor([0, 0, 0, 0, 0, 0, -1, 1, 1]),
    }
    detector.prepare([batch])
    detector.network.train()
    detector.loss(batch)  # moves the running means of a batch normalisation
    detector.network.eval()
    detector.settle([batch])
    return detector, spec, log_mel


@pytest.mark.parametrize("name", VARIANTS)
def test_onnx_runtime_computes_what_torch_computes_for_any_batch(name: str) -> None:
    detector, _, log_mel = prepared(*VARIANTS[name])
    model_onnx, golden = export_onnx(detector, {"log_mel": log_mel[:4]})
    engine = OnnxEngine(model_onnx)
    with torch.inference_mode():
        answers = detector.serve()(torch.from_numpy(log_mel))
    for n_windows in (1, 2, 9):
        outputs = engine.score({"log_mel": log_mel[:n_windows]}, wanted=detector.outputs)
        for output, answer in zip(detector.outputs, answers, strict=True):
            own = getattr(outputs, output)
            np.testing.assert_allclose(own, answer.numpy()[:n_windows], rtol=1e-4, atol=1e-4)
    engine.close()
    assert list(detector.outputs) == ALL_OUTPUTS
    assert golden.outputs["score"].shape == (4,)
    assert golden.outputs["reconstruction"].shape == log_mel[:4].shape
    assert golden.outputs["residual"].sum(axis=1) == pytest.approx(1.0, abs=1e-4)
    assert golden.outputs["residual"].min() >= 0.0


@pytest.mark.parametrize("name", VARIANTS)
def test_silence_and_full_scale_noise_and_clipping_have_finite_answers(name: str) -> None:
    detector, spec, log_mel = prepared(*VARIANTS[name])
    n_frames = (log_mel.shape[2] - 1) * spec.hop_frames + spec.n_fft
    noise = np.random.default_rng(2).uniform(-1.0, 1.0, n_frames)
    sounds = [np.zeros(n_frames), noise, np.sign(noise), np.ones(n_frames)]
    front_end = MelFrontEnd(spec)
    windows = np.stack([front_end.window_log_mel(sound.astype(np.float32)) for sound in sounds])
    assert windows.shape[1:] == log_mel.shape[1:]
    with torch.inference_mode():
        for output, answer in zip(detector.outputs, detector.serve()(torch.from_numpy(windows)), strict=True):
            assert bool(torch.isfinite(answer).all()), output
    deviation = detector.deviation({"log_mel": torch.from_numpy(windows)})
    assert deviation.shape == (4,)
    assert bool(torch.isfinite(deviation).all())


def test_the_file_is_single_small_and_tells_nothing_of_where_it_was_made() -> None:
    detector, _, log_mel = prepared("bird-ae", [])
    model_onnx, _ = export_onnx(detector, {"log_mel": log_mel})
    model = onnx.load_from_string(model_onnx)
    onnx.checker.check_model(model, full_check=True)
    info = read_graph(model_onnx)
    assert info.opset == 20
    assert [(value.name, value.dims[1:]) for value in info.inputs] == [("log_mel", (64, 38))]
    assert [value.name for value in info.outputs] == ALL_OUTPUTS
    assert [value.dims[1:] for value in info.outputs] == [(), (10,), (64,), (64, 38)]
    assert len(model_onnx) < 1_000_000
    assert not any(leak in model_onnx for leak in (b"edgeasd_train", b"site-packages", b".py"))
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)


def test_an_export_that_computes_something_else_is_not_let_through(monkeypatch: pytest.MonkeyPatch) -> None:
    detector, _, log_mel = prepared("bird-ae", [])
    other, _, _ = prepared("bird-ae", ["seed=1"])
    with torch.no_grad():
        for parameter in other.network.parameters():
            parameter.mul_(1.3)
    faithful = export._to_onnx

    def unfaithful(served: torch.nn.Module, tensors: dict[str, torch.Tensor], *, output_names: list[str]) -> bytes:
        assert served is not None
        return faithful(other.serve(), tensors, output_names=output_names)

    monkeypatch.setattr(export, "_to_onnx", unfaithful)
    with pytest.raises(SelfTestError, match="does not do in ONNX Runtime"):
        export_onnx(detector, {"log_mel": log_mel})
