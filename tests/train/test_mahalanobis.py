"""The floor under every learned detector, against sklearn and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.covariance import LedoitWolf

from edgeasd.engine.onnx import OnnxEngine
from edgeasd.errors import InputError
from edgeasd.onnxgraph import read_graph
from edgeasd.records import FloatArray
from edgeasd_train.detectors.mahalanobis import Mahalanobis, MahalanobisOptions
from edgeasd_train.detectors.options import Shapes

SHAPES = Shapes(n_rows=12, n_frames=9, window_frames=16000, sample_rate_hz=16000)
ALL = ("score", "embedding", "residual", "reconstruction")


def normal_windows(n_windows: int, *, seed: int = 0) -> FloatArray:
    """Return log mel (n_windows, 12, 9) whose bands vary together and by different amounts."""
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(0.0, 1.0, (12, 12)) * np.linspace(0.5, 4.0, 12)[:, None]
    spectra = random.normal(size=(n_windows, 12)) @ mixing.T - 50.0
    return (spectra[:, :, None] + random.normal(0.0, 0.5, (n_windows, 12, 9))).astype(np.float32)


@pytest.fixture(scope="module")
def measured() -> Mahalanobis:
    detector = Mahalanobis(SHAPES, MahalanobisOptions())
    log_mel = normal_windows(300)
    detector.measure({"log_mel": log_mel[first : first + 64]} for first in range(0, 300, 64))
    return detector


def test_the_distance_is_that_of_sklearn_per_root_of_the_number_of_bands(measured: Mahalanobis) -> None:
    fitted = LedoitWolf().fit(normal_windows(300).mean(axis=2).astype(np.float64))
    fresh = normal_windows(50, seed=1)
    expected = np.sqrt(fitted.mahalanobis(fresh.mean(axis=2)) / 12)
    assert measured.deviation({"log_mel": fresh}) == pytest.approx(expected, rel=0.02)  # the floor of 0.1 dB
    assert 0.5 < float(np.median(expected)) < 1.1


def test_the_graph_says_what_numpy_says_and_uses_known_operators(measured: Mahalanobis) -> None:
    model_onnx = measured.model_onnx()
    graph = read_graph(model_onnx)
    assert [value.name for value in graph.outputs] == list(ALL)
    engine = OnnxEngine(model_onnx)
    fresh = normal_windows(20, seed=2)
    outputs = engine.score({"log_mel": fresh}, wanted=ALL)
    assert outputs.score == pytest.approx(measured.deviation({"log_mel": fresh}), rel=1e-4)
    assert outputs.embedding is not None
    assert outputs.residual is not None
    assert outputs.reconstruction is not None
    assert np.sqrt(np.mean(np.square(outputs.embedding), axis=1)) == pytest.approx(outputs.score, rel=1e-3)
    assert outputs.residual.sum(axis=1) == pytest.approx(1.0, abs=1e-5)
    normal = normal_windows(300).mean(axis=(0, 2))
    assert outputs.reconstruction[3] == pytest.approx(np.repeat(normal[:, None], 9, axis=1), abs=1e-3)
    assert engine.score({"log_mel": fresh}).reconstruction is None


def test_the_explanation_names_the_band_that_is_off(measured: Mahalanobis) -> None:
    odd = normal_windows(1, seed=3)
    odd[:, 0] += 12.0  # the band that varies least
    engine = OnnxEngine(measured.model_onnx())
    outputs = engine.score({"log_mel": odd})
    assert outputs.residual is not None
    assert int(outputs.residual[0].argmax()) == 0
    assert outputs.score[0] > 3.0 * measured.deviation({"log_mel": normal_windows(200, seed=4)}).mean()


def test_silence_and_constant_sound_give_finite_scores() -> None:
    detector = Mahalanobis(SHAPES, MahalanobisOptions())
    floor = np.full((20, 12, 9), -100.0, np.float32)
    detector.measure([{"log_mel": floor}])
    engine = OnnxEngine(detector.model_onnx())
    assert engine.score({"log_mel": floor[:2]}).score == pytest.approx(0.0, abs=2e-3)
    assert np.isfinite(engine.score({"log_mel": floor[:2] + 100.0}).score).all()


def test_too_few_windows_are_refused() -> None:
    detector = Mahalanobis(SHAPES, MahalanobisOptions())
    with pytest.raises(InputError, match="7 windows are too few"):
        detector.measure([{"log_mel": normal_windows(7)}])
