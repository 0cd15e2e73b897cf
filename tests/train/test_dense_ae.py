"""dense-ae: stacks cut inside the graph, and the distance of their residuals in the nearer domain."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgeasd.errors import SettingsError
from edgeasd_train.detectors import build_detector
from edgeasd_train.detectors.contract import Batch
from edgeasd_train.detectors.dense_ae import DenseAe, DenseAeOptions, cut_stacks, overlap_mean
from edgeasd_train.detectors.options import Shapes
from edgeasd_train.recipe import load_recipe, resolve_window

ROWS = 12


def detector_for(*, score: str = "mse", n_frames: int = 20, n_rows: int = ROWS) -> DenseAe:
    torch.manual_seed(0)
    detector = DenseAe(Shapes(n_rows, n_frames, 16000, 16000), DenseAeOptions.model_validate({"score": score}))
    detector.network.eval()
    return detector


def batch_of(log_mel: torch.Tensor, domain: int = 0) -> Batch:
    n_windows = len(log_mel)
    return {"log_mel": log_mel, "index": torch.arange(n_windows), "domain": torch.full((n_windows,), domain)}


def silence_the_drawing(detector: DenseAe) -> None:
    """Let the network draw 0 dB throughout, so that the residual is the input."""
    with torch.no_grad():
        for parameter in detector.network.decoder[-1].parameters():
            parameter.zero_()


def windows(scale: torch.Tensor, *, seed: int, n: int = 40, n_frames: int = 20) -> torch.Tensor:
    noise = torch.randn(n, ROWS, n_frames, generator=torch.Generator().manual_seed(seed))
    return scale[:, None] * noise


def test_the_network_has_the_baselines_size() -> None:
    network = detector_for(n_rows=128).network
    assert sum(parameter.numel() for parameter in network.parameters()) == 267_928
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm1d)]
    assert [norm.num_features for norm in norms] == [128, 128, 128, 128, 8, 128, 128, 128, 128]
    assert {(norm.momentum, norm.eps) for norm in norms} == {(0.01, 1e-3)}


def test_stacks_are_five_frames_side_by_side_one_frame_apart() -> None:
    log_mel = torch.arange(2.0 * ROWS * 8).reshape(2, ROWS, 8)
    stacks = cut_stacks(log_mel)
    drawings, code = detector_for().network(stacks)
    assert stacks.shape == drawings.shape == (2, 4, 5, ROWS)
    assert code.shape == (2, 4, 8)
    for window in range(2):
        for first in range(4):
            assert torch.equal(stacks[window, first], log_mel[window, :, first : first + 5].T)


@pytest.mark.parametrize("n_frames", [5, 6, 8, 9, 10, 40])
def test_the_overlap_mean_of_true_stacks_is_the_input(n_frames: int) -> None:
    log_mel = torch.randn(3, ROWS, n_frames)
    torch.testing.assert_close(overlap_mean(cut_stacks(log_mel)), log_mel)


def test_mse_score_deviation_and_loss_are_one_mean_over_all_stacks() -> None:
    detector, log_mel = detector_for(), -50.0 + 9.0 * torch.randn(6, ROWS, 20)
    stacks = cut_stacks(log_mel)
    drawings, code = detector.network(stacks)
    errors = (stacks - drawings).square()
    with torch.inference_mode():
        score, embedding, residual, reconstruction = detector.serve()(log_mel)
    torch.testing.assert_close(score, errors.mean(dim=(1, 2, 3)).detach())
    torch.testing.assert_close(embedding, code.mean(dim=1).detach())
    by_row = errors.sum(dim=(1, 2)).detach()
    torch.testing.assert_close(residual, by_row / by_row.sum(dim=1, keepdim=True))
    assert reconstruction.shape == log_mel.shape
    torch.testing.assert_close(detector.deviation(batch_of(log_mel)), score)
    torch.testing.assert_close(detector.loss(batch_of(log_mel)).detach(), score.mean())


def test_the_distance_is_that_of_the_mean_residual_in_the_nearer_domain() -> None:
    detector = detector_for(score="mahalanobis")
    silence_the_drawing(detector)
    scales = torch.linspace(1.0, 4.0, ROWS), torch.linspace(6.0, 0.5, ROWS)
    sounds = [windows(scale, seed=seed, n=200) for seed, scale in enumerate(scales)]
    detector.settle([batch_of(sounds[0][:150], -1), batch_of(sounds[1], 1), batch_of(sounds[0][150:], 0)])
    asked = windows(scales[1], seed=7) + 2.0
    expected = []
    for sound in sounds:
        frames = sound.unfold(2, 5, 1).permute(0, 2, 3, 1).reshape(-1, ROWS).double().numpy()
        covariance = np.cov(frames.T)
        n_frames = len(frames)
        prior = np.eye(ROWS) * covariance.diagonal().mean()
        precision = np.linalg.inv((n_frames * covariance + ROWS * prior) / (n_frames + ROWS))
        mean = asked.unfold(2, 5, 1).mean(dim=(2, 3)).double().numpy()
        expected.append(np.einsum("bi,ij,bj->b", mean, precision, mean))
    with torch.inference_mode():
        score, _, residual, _ = detector.serve()(asked)
    np.testing.assert_allclose(score.numpy(), np.minimum(*expected), rtol=1e-4)
    assert not np.allclose(expected[0], expected[1], rtol=0.1)
    assert residual.sum(dim=1).numpy() == pytest.approx(1.0, abs=1e-5)


def test_the_mean_over_all_pairs_of_frames_is_what_the_baseline_computes() -> None:
    """Its matrix (frame x frame) delta P delta', averaged, against the distance of the mean residual."""
    detector = detector_for(score="mahalanobis")
    detector.settle([batch_of(-50.0 + windows(torch.ones(ROWS), seed=1))])
    log_mel = -48.0 + windows(torch.ones(ROWS), seed=2, n=3)
    stacks = cut_stacks(log_mel)
    delta = (stacks - detector.network(stacks)[0]).reshape(3, -1, ROWS)
    pairs = delta @ detector.network.precision[0] @ delta.transpose(1, 2)
    with torch.inference_mode():
        score = detector.serve()(log_mel)[0]
    torch.testing.assert_close(score, pairs.mean(dim=(1, 2)).detach(), rtol=1e-4, atol=1e-6)


def test_without_a_target_domain_the_source_stands_for_it() -> None:
    detector = detector_for(score="mahalanobis")
    detector.settle([batch_of(windows(torch.ones(ROWS), seed=1), -1)])
    precision = detector.network.precision
    assert torch.equal(precision[0], precision[1])
    only_target = detector_for(score="mahalanobis")
    only_target.settle([batch_of(windows(torch.ones(ROWS), seed=1), 1)])
    assert torch.equal(only_target.network.precision, precision)


def test_a_domain_of_one_window_and_a_band_that_never_varies_leave_the_matrix_invertible() -> None:
    detector = detector_for(score="mahalanobis")
    silence_the_drawing(detector)
    still = windows(torch.ones(ROWS), seed=1)
    still[:, 3] = -100.0
    detector.settle([batch_of(still), batch_of(torch.full((1, ROWS, 20), -100.0), 1)])
    assert bool(torch.isfinite(detector.network.precision).all())
    assert bool((torch.linalg.eigvalsh(detector.network.precision.double()) > 0).all())
    with torch.inference_mode():
        score = detector.serve()(still)[0]
    assert bool(torch.isfinite(score).all())


def test_it_learns_to_draw_and_blames_the_band_that_changed() -> None:
    detector = detector_for(score="mse", n_frames=20)
    tilt = torch.linspace(3.0, -3.0, ROWS)[:, None]
    normal = tilt + 0.1 * torch.randn(8, ROWS, 20)
    detector.network.train()
    optimizer = torch.optim.Adam(detector.network.parameters(), lr=3e-3)
    for _ in range(150):  # the running means of the batch normalisation take a hundred steps to come close
        optimizer.zero_grad()
        torch.autograd.backward(detector.loss(batch_of(normal)))
        optimizer.step()
    detector.network.eval()
    strange = normal[:1].clone()
    strange[:, 5] += 4.0
    with torch.inference_mode():
        served = detector.serve()
        score, _, residual, reconstruction = served(strange)
        assert float(score[0]) > 3.0 * float(served(normal)[0].max())
    assert int(residual[0].argmax()) == 5
    assert float((reconstruction.mean(dim=(0, 2)) - tilt[:, 0]).abs().max()) < 1.5


@pytest.mark.parametrize("name", ["dense-ae", "dense-ae-clips"])
def test_the_recipe_learns_from_single_stacks_in_steps_of_the_originals_size(name: str) -> None:
    recipe = resolve_window(load_recipe(name), 10.0)
    detector, spec = build_detector(recipe)
    assert isinstance(detector, DenseAe)
    assert spec.n_frames(recipe.data.train_window_frames) == 5
    assert spec.n_frames(recipe.data.window_frames) > 5
    assert recipe.fit.batch_size == 256
    assert (spec.n_mels, spec.mel_scale, spec.norm) == (128, "slaney", "slaney")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("data.window_s=0.15", "5 mel frames or more, not 3"),
        ("features.scale=power", "dense-ae takes features.scale db"),
        ("detector.options.score=euclid", "score"),
    ],
)
def test_too_short_windows_and_unknown_scores_are_refused(override: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        build_detector(load_recipe("dense-ae", overrides=[override]))


def test_a_detector_that_must_see_whole_windows_refuses_pieces_of_them() -> None:
    recipe = load_recipe("bird-ae", overrides=["data.train_window_s=0.5"])
    with pytest.raises(SettingsError, match=r"data\.train_window_s: bird-ae"):
        build_detector(recipe)
