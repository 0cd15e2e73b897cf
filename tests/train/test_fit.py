"""A fit is the plain loop it claims to be, whatever is set: schedule, precision, parts of a batch, early stop."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from edgeasd.errors import SelfTestError, SettingsError, UnavailableError
from edgeasd_train.features import TorchWindows
from edgeasd_train.fit import FitData, sample
from edgeasd_train.recipe import Recipe
from tests.train.fit_rig import digest, make_detector, make_sound, open_data, quick_fit, small_recipe


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> FitData:
    folder = tmp_path_factory.mktemp("fit")
    return open_data(make_sound(folder / "sound"), small_recipe(), cache_dir=folder / "cache")


def checkpoint(run_dir: Path, name: str = "last") -> dict[str, Any]:
    state: dict[str, Any] = torch.load(run_dir / "checkpoints" / f"{name}.ckpt", weights_only=True)
    return state


def first_moments(run_dir: Path) -> torch.Tensor:
    """Return what Adam remembers of the gradients, all parameters in one vector."""
    states = checkpoint(run_dir)["optimizer_states"][0]["state"]
    return torch.cat([state["exp_avg"].flatten() for state in states.values()])


def plain_loop(data: FitData, recipe: Recipe) -> str:
    detector = make_detector(recipe, tiny=False)
    detector.prepare(sample(data.train))
    windows, size = TorchWindows(data.train), recipe.fit.batch_size
    n_steps = len(windows) // size
    optimizer = torch.optim.Adam(detector.network.parameters(), lr=1e-3, weight_decay=1e-7)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=n_steps * recipe.fit.epochs)
    detector.network.train()
    for epoch in range(recipe.fit.epochs):
        order = np.random.default_rng([recipe.seed, epoch]).permutation(len(windows))
        for step in range(n_steps):
            optimizer.zero_grad()
            detector.loss(windows.__getitems__(order[step * size :][:size].tolist())).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    detector.network.eval()
    detector.settle(sample(data.train))
    return digest(detector.network)


def test_a_fit_gives_the_weights_of_the_plain_loop_to_the_bit(data: FitData, tmp_path: Path) -> None:
    recipe = small_recipe("fit.epochs=2", "seed=3")
    detector = make_detector(recipe, tiny=False)
    result = quick_fit(detector, data, recipe, tmp_path)
    assert (result.n_epochs, result.n_steps) == (2, 2 * (len(data.train) // 16))
    assert digest(detector.network) == plain_loop(data, recipe)


def test_the_held_out_loss_is_the_mean_over_all_held_out_windows(data: FitData, tmp_path: Path) -> None:
    recipe = small_recipe("fit.epochs=1")
    detector = make_detector(recipe, tiny=True)
    result = quick_fit(detector, data, recipe, tmp_path)
    with torch.inference_mode():
        everything = TorchWindows(data.held_out).__getitems__(range(len(data.held_out)))
        assert result.held_out_loss == pytest.approx(float(detector.loss(everything)), rel=1e-6)


@pytest.mark.parametrize("accumulate", [2, 8])
def test_parts_of_a_batch_add_up_to_its_gradient(data: FitData, tmp_path: Path, accumulate: int) -> None:
    moments = []
    for parts in (1, accumulate):
        recipe = small_recipe(f"fit.accumulate={parts}", "fit.max_steps=5", "fit.epochs=1")
        result = quick_fit(make_detector(recipe, tiny=True, dropout=0.0), data, recipe, tmp_path / str(parts))
        assert result.n_steps == 5
        moments.append(first_moments(tmp_path / str(parts)))
    assert torch.allclose(moments[0], moments[1], rtol=1e-3, atol=1e-7)
    assert moments[0].abs().max() > 1e-4


@pytest.mark.parametrize(
    ("schedule", "share_before_the_last_epoch", "share_at_the_end"),
    [("one-cycle", (1 + math.cos(math.pi * 2 / 7)) / 2, 1 / 25 / 1e4), ("cosine", 0.5, 0.0), ("constant", 1.0, 1.0)],
)
@pytest.mark.parametrize("prune", [False, True])
def test_a_schedule_ends_where_it_should_even_when_pruning_shortens_the_epochs(
    data: FitData, tmp_path: Path, schedule: str, share_before_the_last_epoch: float, share_at_the_end: float,
    prune: bool,
) -> None:  # fmt: skip
    sets = ["prune.every_epochs=1", "prune.by=fraction", "prune.fraction=0.2"] if prune else []
    recipe = small_recipe("fit.epochs=2", "fit.learning_rate=0.01", f"fit.schedule={schedule}", *sets)
    result = quick_fit(make_detector(recipe, tiny=True), data, recipe, tmp_path)
    n_steps = len(data.train) // 16
    assert (result.n_steps < 2 * n_steps) == prune
    rates = [
        checkpoint(tmp_path, name)["optimizer_states"][0]["param_groups"][0]["lr"] for name in ("previous", "last")
    ]
    assert rates[0] == pytest.approx(0.01 * share_before_the_last_epoch, rel=0.07)
    assert rates[1] == pytest.approx(0.01 * share_at_the_end, rel=1e-6, abs=1e-4)  # torch ends a step early


def test_longer_gradients_than_asked_for_are_shortened(data: FitData, tmp_path: Path) -> None:
    sets = ("fit.max_steps=1", "fit.epochs=1", "fit.schedule=constant", "fit.weight_decay=0")
    recipe = small_recipe("fit.clip_norm=1e-3", *sets)
    quick_fit(make_detector(recipe, tiny=True), data, recipe, tmp_path)
    assert float(first_moments(tmp_path).norm()) == pytest.approx(0.1 * 1e-3, rel=1e-3)  # Adam's 1 - beta of it


def test_patience_stops_early_and_keeps_the_best_weights(data: FitData, tmp_path: Path) -> None:
    recipe = small_recipe("fit.epochs=60", "fit.patience_epochs=2", "fit.learning_rate=0.2", "fit.keep_best=0")
    detector = make_detector(recipe, tiny=True)
    result = quick_fit(detector, data, recipe, tmp_path)
    losses = checkpoint(tmp_path)["edgeasd"]["course"]["held_out"]
    assert result.n_epochs == len(losses) < 60
    assert losses.index(min(losses)) == len(losses) - 3
    assert result.held_out_loss == min(losses)
    (best,) = (tmp_path / "checkpoints").glob("best-*.ckpt")
    assert best.stem == f"best-{len(losses) - 3:04}"
    weights = checkpoint(tmp_path, best.stem)["state_dict"]["network.1.weight"]
    assert torch.equal(weights, detector.network.get_parameter("1.weight"))


def test_the_best_checkpoints_are_kept_beside_the_last(data: FitData, tmp_path: Path) -> None:
    recipe = small_recipe("fit.epochs=6", "fit.keep_best=2", "fit.learning_rate=0.1", "fit.schedule=constant")
    result = quick_fit(make_detector(recipe, tiny=True), data, recipe, tmp_path)
    losses = checkpoint(tmp_path)["edgeasd"]["course"]["held_out"]
    expected = {f"best-{epoch:04}.ckpt" for epoch in np.argsort(losses, kind="stable")[:2]}
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {*expected, "last.ckpt", "previous.ckpt"}
    assert checkpoint(tmp_path)["global_step"] == result.n_steps


def test_mixed_precision_trains_on_a_cpu(data: FitData, tmp_path: Path) -> None:
    results = []
    for precision in ("32", "bf16-mixed"):
        recipe = small_recipe("fit.epochs=1", f"fit.precision='{precision}'")
        results.append(quick_fit(make_detector(recipe, tiny=False), data, recipe, tmp_path / precision).held_out_loss)
    assert results[0] != results[1]
    assert results[1] == pytest.approx(results[0], rel=0.07)


@pytest.mark.parametrize(
    ("override", "error", "says"),
    [
        ("fit.precision=16-mixed", SettingsError, "16-mixed takes a GPU"),
        ("fit.accumulate=3", SettingsError, "16 windows cannot be shared evenly by 1 ranks with fit.accumulate 3"),
        ("fit.learning_rate=1e30", SelfTestError, r"not finite; lower fit.learning_rate, now 1e\+30"),
    ],
)
def test_what_cannot_be_fitted_is_told_in_a_line(
    data: FitData, tmp_path: Path, override: str, error: type[Exception], says: str
) -> None:
    recipe = small_recipe("fit.epochs=1", override)
    with pytest.raises(error, match=says):
        quick_fit(make_detector(recipe, tiny=False), data, recipe, tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_unavailable(data: FitData, tmp_path: Path) -> None:
    recipe = small_recipe("fit.accelerator=gpu")
    with pytest.raises(UnavailableError, match=r"fit.accelerator gpu: No supported gpu"):
        quick_fit(make_detector(recipe, tiny=True), data, recipe, tmp_path)


def test_a_line_an_epoch_is_told_where_there_is_no_terminal(data: FitData, tmp_path: Path) -> None:
    recipe, lines = small_recipe("fit.epochs=2"), io.StringIO()
    quick_fit(make_detector(recipe, tiny=True), data, recipe, tmp_path, console=Console(file=lines, width=200))
    told = lines.getvalue().splitlines()
    assert [line.split(":")[0] for line in told] == ["epoch 1 of 2", "epoch 2 of 2"]
    assert all("held_out_loss 0." in line and "train_loss 0." in line for line in told)
