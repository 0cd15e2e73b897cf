"""cnn-ae: the 3CNN autoencoder has the layers, the range and the score of the original."""

from __future__ import annotations

import pytest
import torch

from edgeasd.errors import SettingsError
from edgeasd_train.detectors import build_detector
from edgeasd_train.detectors.cnn_ae import CnnAe, CnnAeOptions
from edgeasd_train.detectors.options import Shapes
from edgeasd_train.recipe import load_recipe


def square(side: int) -> CnnAe:
    torch.manual_seed(0)
    detector = CnnAe(Shapes(side, side, side * 512 + 512, 16000), CnnAeOptions())
    detector.network.eval()
    return detector


@pytest.mark.parametrize(("side", "map_side"), [(64, 1), (80, 2), (128, 5)])
def test_every_side_comes_back_at_its_size_through_a_map_of_forty(side: int, map_side: int) -> None:
    network = square(side).network
    scaled = torch.rand(2, side, side)
    assert network.encoder(scaled.unsqueeze(1)).shape == (2, 40, map_side, map_side)
    drawing, code = network(scaled)
    assert drawing.shape == scaled.shape
    assert code.shape == (2, 40)
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(1_027_000, abs=500)


def test_levels_are_clipped_to_their_range_and_come_back_in_db() -> None:
    network = square(64).network
    levels = torch.tensor([-200.0, -90.0, -33.0, 24.0, 60.0])
    torch.testing.assert_close(network.scale(levels), torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0]))
    torch.testing.assert_close(network.unscale(network.scale(levels)), levels.clamp(-90.0, 24.0))


def test_score_deviation_and_loss_are_one_mean_squared_error() -> None:
    detector = square(64)
    windows = -40.0 + 15.0 * torch.randn(5, 64, 64)
    with torch.inference_mode():
        score, embedding, residual, reconstruction = detector.serve()(windows)
    errors = ((windows.clamp(-90.0, 24.0) - reconstruction) / 114.0).square()
    torch.testing.assert_close(score, errors.mean(dim=(1, 2)), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(residual, errors.sum(dim=2) / errors.sum(dim=(1, 2))[:, None], rtol=1e-3, atol=1e-6)
    assert embedding.shape == (5, 40)
    assert float(reconstruction.min()) >= -90.0
    assert float(reconstruction.max()) <= 24.0
    torch.testing.assert_close(detector.deviation({"log_mel": windows}), score)
    torch.testing.assert_close(detector.loss({"log_mel": windows}).detach(), score.mean())


def test_dropout_is_for_training_alone() -> None:
    detector = square(64)
    batch = {"log_mel": -40.0 + 15.0 * torch.randn(2, 64, 64)}
    assert torch.equal(detector.deviation(batch), detector.deviation(batch))
    rates = [module.p for module in detector.network.modules() if isinstance(module, torch.nn.Dropout)]
    assert rates == [0.2, 0.3, 0.3, 0.3, 0.3, 0.2]
    detector.network.train()
    assert not torch.equal(detector.loss(batch), detector.loss(batch))


def test_it_learns_a_tone_and_is_surprised_by_another_one() -> None:
    detector = square(64)
    normal, strange = torch.full((8, 64, 64), -60.0), torch.full((1, 64, 64), -60.0)
    normal[:, 20:23], strange[:, 45:48] = -10.0, -10.0
    detector.network.train()
    optimizer = torch.optim.Adam(detector.network.parameters(), lr=1e-3)
    for _ in range(40):
        optimizer.zero_grad()
        torch.autograd.backward(detector.loss({"log_mel": normal + torch.randn_like(normal)}))
        optimizer.step()
    with torch.inference_mode():
        served = detector.serve()
        score, _, residual, _ = served(strange)
        assert float(score[0]) > 1.5 * float(served(normal)[0].max())
    assert int(residual[0].argmax()) in (20, 21, 22, 45, 46, 47)


@pytest.mark.parametrize(("name", "side", "hop_frames"), [("cnn-ae", 64, 20), ("cnn-ae-128", 128, 20)])
def test_the_recipes_cut_square_pieces_of_the_right_mel(name: str, side: int, hop_frames: int) -> None:
    recipe = load_recipe(name)
    _, spec = build_detector(recipe)
    assert (spec.n_rows, spec.n_frames(recipe.data.window_frames)) == (side, side)
    assert recipe.data.window_frames == (side - 1) * 512 + 1024
    assert (spec.mel_scale, spec.norm, spec.floor_mode) == ("slaney", "slaney", "clamp")
    assert recipe.data.held_out_hop_s * 16000 / 512 == hop_frames


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("data.window_s=1.0", "here are 64 rows and 30 frames: change features.n_mels or data.window_s"),
        ("features.n_mels=128", "here are 128 rows and 64 frames"),
        ("features.scale=power", "cnn-ae takes features.scale db"),
        ("detector.options.bottleneck=0", "bottleneck"),
    ],
)
def test_what_is_not_square_or_not_db_is_refused(override: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        build_detector(load_recipe("cnn-ae", overrides=[override]))
