"""bird-ae, in its style for scenes and as anomaly_bird published it."""

from __future__ import annotations

import pytest
import torch

from edgeasd.errors import SettingsError
from edgeasd_train.detectors import build_detector
from edgeasd_train.detectors.bird_ae import BirdAe, BirdAeOptions
from edgeasd_train.detectors.layers import pool_places, unpool
from edgeasd_train.detectors.options import Shapes
from edgeasd_train.recipe import load_recipe

PUBLISHED = Shapes(n_rows=64, n_frames=44, window_frames=23040, sample_rate_hz=22050)


def published(**options: object) -> BirdAe:
    torch.manual_seed(0)
    return BirdAe(PUBLISHED, BirdAeOptions.model_validate({"style": "published", **options}))


def linear_mel(n_windows: int, *, seed: int = 0) -> torch.Tensor:
    return torch.rand(n_windows, 64, 44, generator=torch.Generator().manual_seed(seed)) ** 4 * 20.0


@pytest.mark.parametrize("size", [(8, 6), (9, 7), (66, 46), (35, 25), (2, 3)])
@pytest.mark.parametrize("levels", [3, 1000])  # of few levels many are equal: the first of them counts
def test_unpooling_by_mask_is_unpooling_by_index(size: tuple[int, int], levels: int) -> None:
    generator = torch.Generator().manual_seed(levels)
    values = torch.randint(-levels, levels, (3, 4, *size), generator=generator).float().relu()
    pooled, indices = torch.nn.functional.max_pool2d(values, 2, return_indices=True)
    drawn = torch.randn(pooled.shape, generator=generator)
    expected = torch.nn.functional.max_unpool2d(drawn, indices, (2, 2), output_size=size)
    own_pooled, places = pool_places(values)
    assert torch.equal(own_pooled, pooled)
    assert torch.equal(unpool(drawn, places, size=size), expected)


def test_gradients_pass_the_mask_as_they_pass_the_index() -> None:
    values = torch.randn(2, 3, 7, 5).relu()
    gradients = []
    for by_mask in (True, False):
        own = values.clone().requires_grad_()
        if by_mask:
            pooled, places = pool_places(own)
            back = unpool(pooled.sin(), places, size=(7, 5))
        else:
            pooled, indices = torch.nn.functional.max_pool2d(own, 2, return_indices=True)
            back = torch.nn.functional.max_unpool2d(pooled.sin(), indices, (2, 2), output_size=(7, 5))
        (gradient,) = torch.autograd.grad((back * torch.arange(35.0).reshape(7, 5)).sum(), own)
        gradients.append(gradient)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("options", "n_parameters", "top"),
    [
        ({}, 226_000, (128, 4, 3)),
        ({"bottleneck": 100}, 503_000, (128, 4, 3)),
        ({"variant": "nearest"}, 226_000, (128, 4, 3)),
        ({"variant": "unpool"}, 248_000, (128, 5, 4)),
    ],
)
def test_the_published_network_has_the_published_size(
    options: dict[str, object], n_parameters: int, top: tuple[int, ...]
) -> None:
    network = published(**options).network
    assert network.top_shape == top
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(n_parameters, abs=500)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
    drawing, code = network(linear_mel(2))
    assert drawing.shape == (2, 64, 44)
    assert code.sum(dim=1).detach().numpy() == pytest.approx(1.0, abs=1e-5)


def test_as_published_the_last_layer_draws_no_negative_power_but_for_unpool() -> None:
    for variant, may_be_negative in (("strided", False), ("nearest", False), ("unpool", True)):
        drawing = published(variant=variant).network(linear_mel(8))[0]
        assert bool((drawing < 0).any()) == may_be_negative


def test_as_published_score_deviation_and_loss_are_one_mean_squared_error_of_the_input() -> None:
    detector, windows = published(), linear_mel(5)
    detector.prepare([{"log_mel": windows}])
    detector.network.eval()
    detector.settle([{"log_mel": windows}])
    with torch.inference_mode():
        score, _, residual, reconstruction = detector.serve()(windows)
    errors = (windows - reconstruction).square()
    torch.testing.assert_close(score, errors.mean(dim=(1, 2)))
    torch.testing.assert_close(residual, errors.sum(dim=2) / errors.sum(dim=(1, 2))[:, None])
    torch.testing.assert_close(detector.deviation({"log_mel": windows}), score)
    torch.testing.assert_close(detector.loss({"log_mel": windows}).detach(), score.mean())


def test_pooling_places_tell_the_decoder_where_energy_was() -> None:
    """One bottleneck state for all windows, and yet unpool draws different windows differently; strided cannot."""
    for variant, differs in (("strided", False), ("unpool", True)):
        detector = published(variant=variant)
        with torch.no_grad():
            detector.network.to_bottleneck.weight.zero_()
            drawing, code = detector.network(linear_mel(2))
        torch.testing.assert_close(code[0], code[1])
        assert bool((drawing[0] - drawing[1]).abs().max() > 1e-6) == differs


@pytest.mark.parametrize("variant", ["strided", "nearest", "unpool"])
def test_the_style_for_scenes_learns_and_gives_its_drawing_in_db(variant: str) -> None:
    torch.manual_seed(0)
    detector = BirdAe(Shapes(64, 38, 16000, 16000), BirdAeOptions.model_validate({"variant": variant}))
    tilt = torch.linspace(-30.0, -90.0, 64)[:, None]
    windows = tilt + 2.0 * torch.randn(16, 64, 38) + 8.0 * torch.randn(16, 1, 1)
    batch = {"log_mel": windows}
    detector.prepare([batch])
    optimizer = torch.optim.Adam(detector.network.parameters(), lr=3e-3)
    first = float(detector.loss(batch).detach())
    for _ in range(25):
        optimizer.zero_grad()
        torch.autograd.backward(detector.loss(batch))
        optimizer.step()
    assert float(detector.loss(batch).detach()) < 0.8 * first
    detector.network.eval()
    detector.settle([batch])
    with torch.inference_mode():
        reconstruction = detector.serve()(windows)[3]
    assert float((reconstruction.mean(dim=(0, 2)) - tilt[:, 0]).abs().max()) < 8.0
    assert float(detector.deviation(batch)[0]) < float(detector.deviation({"log_mel": windows + 40.0})[0])


def test_the_recipe_as_published_is_shaped_as_published() -> None:
    recipe = load_recipe("anomaly-bird")
    detector, spec = build_detector(recipe)
    assert isinstance(detector, BirdAe)
    assert (spec.n_mels, spec.rows, spec.scale, spec.mel_scale, spec.norm) == (256, (128, 192), "power", "htk", "none")
    assert spec.n_frames(recipe.data.window_frames) == 44
    assert (recipe.fit.schedule, recipe.fit.learning_rate, recipe.fit.weight_decay) == ("constant", 1e-4, 1e-7)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("detector.options.side=both", "side has no effect in style published"),
        ("features.scale=db", "style published takes features.scale power"),
        ("data.window_s=0.02", r"window_s 0\.02 is shorter"),
    ],
)
def test_what_the_published_style_cannot_take_is_refused(override: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        build_detector(load_recipe("anomaly-bird", overrides=[override]))
