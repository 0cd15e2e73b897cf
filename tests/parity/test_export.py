"""What ships is what was trained: ONNX Runtime against torch, for every variant, any batch, one clean file."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from edgeasd.engine.onnx import OnnxEngine
from edgeasd.errors import SelfTestError
from edgeasd.onnxgraph import read_graph
from edgeasd.records import FloatArray
from edgeasd_train import export
from edgeasd_train.detectors import Detector, build_detector
from edgeasd_train.export import export_onnx
from edgeasd_train.recipe import load_recipe

VARIANTS = {
    "default": [],
    "nearest, both sides, all frames": ["detector.options.variant=nearest", "detector.options.side=both",
                                        "detector.options.loudest_frames=0"],
    "crop, wide bottleneck": ["detector.options.crop=third_quarter", "detector.options.bottleneck=100",
                              "detector.options.steady_weight=1"],
    "odd sizes": ["features.n_mels=80", "data.window_s=0.725", "features.hop_frames=320", "data.hop_s=0.02"],
}  # fmt: skip


def prepared(overrides: list[str]) -> tuple[Detector, FloatArray]:
    """Return a detector with random weights, normalised, and windows (9, n_rows, n_frames) for it."""
    torch.manual_seed(0)
    recipe = load_recipe(overrides=overrides)
    detector, spec = build_detector(recipe)
    shape = (9, spec.n_rows, spec.n_frames(recipe.data.window_frames))
    log_mel = np.random.default_rng(1).normal(-60.0, 9.0, shape).astype(np.float32)
    batch = {"log_mel": torch.from_numpy(log_mel), "index": torch.arange(9)}
    detector.prepare([batch])
    detector.network.eval()
    detector.settle([batch])
    return detector, log_mel


@pytest.mark.parametrize("name", VARIANTS)
def test_onnx_runtime_computes_what_torch_computes_for_any_batch(name: str) -> None:
    detector, log_mel = prepared(VARIANTS[name])
    model_onnx, golden = export_onnx(detector, {"log_mel": log_mel[:4]})
    engine = OnnxEngine(model_onnx)
    with torch.inference_mode():
        answers = detector.serve()(torch.from_numpy(log_mel))
    for n_windows in (1, 2, 9):
        outputs = engine.score({"log_mel": log_mel[:n_windows]})
        for output, answer in zip(detector.outputs, answers, strict=True):
            own = getattr(outputs, output)
            np.testing.assert_allclose(own, answer.numpy()[:n_windows], rtol=1e-4, atol=1e-4)
    engine.close()
    assert golden.outputs["score"].shape == (4,)
    assert golden.outputs["residual"].sum(axis=1) == pytest.approx(1.0, abs=1e-4)


def test_the_file_is_single_small_and_tells_nothing_of_where_it_was_made() -> None:
    detector, log_mel = prepared([])
    model_onnx, _ = export_onnx(detector, {"log_mel": log_mel})
    model = onnx.load_from_string(model_onnx)
    onnx.checker.check_model(model, full_check=True)
    info = read_graph(model_onnx)
    assert info.opset == 20
    assert [(value.name, value.dims[1:]) for value in info.inputs] == [("log_mel", (64, 38))]
    assert [value.name for value in info.outputs] == ["score", "embedding", "residual"]
    assert len(model_onnx) < 1_000_000
    assert not any(leak in model_onnx for leak in (b"edgeasd_train", b"site-packages", b".py"))
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)


def test_an_export_that_computes_something_else_is_not_let_through(monkeypatch: pytest.MonkeyPatch) -> None:
    detector, log_mel = prepared([])
    other, _ = prepared(["seed=1"])
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
