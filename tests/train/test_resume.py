"""Killed anywhere and resumed, a fit ends with the very weights it would have had."""

from __future__ import annotations

import io
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from edgeasd.errors import SettingsError, TemporaryError
from edgeasd_train.detectors.contract import Batch, Detector
from edgeasd_train.fit import FitData
from edgeasd_train.recipe import Recipe
from tests.train.fit_rig import (
    digest,
    in_children,
    make_detector,
    make_sound,
    open_data,
    quick_fit,
    small_recipe,
    start,
)

pytestmark = pytest.mark.forks

EVERY_STEP = "fit.checkpoint_minutes=1e-9"
SETS = ("fit.epochs=4", "prune.every_epochs=1", "prune.by=fraction", "prune.fraction=0.03", "prune.rounds=2",
        "fit.patience_epochs=3", "fit.keep_best=1", "fit.learning_rate=0.02", "fit.accumulate=2")  # fmt: skip
"""All that has a state at once."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    make_sound(folder / "sound")
    return folder


@pytest.fixture(scope="module")
def data(folder: Path) -> FitData:
    return open_data(folder / "sound", small_recipe(), cache_dir=folder / "cache")


@pytest.fixture(scope="module")
def whole(data: FitData, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What comes of a fit that nothing disturbs and that writes a checkpoint an epoch."""
    run_dir = tmp_path_factory.mktemp("whole")
    return fitted(data, small_recipe(*SETS), run_dir)


def fitted(data: FitData, recipe: Recipe, run_dir: Path, *, tiny: bool = True, resume: bool = False) -> dict[str, Any]:
    detector = make_detector(recipe, tiny=tiny)
    result = quick_fit(detector, data, recipe, run_dir, resume=resume)
    pruned = run_dir / "pruned.csv"
    return {
        "sha256": digest(detector.network),
        "result": [result.n_epochs, result.n_steps, result.train_loss, result.held_out_loss, result.n_pruned],
        "pruned": pruned.read_text() if pruned.exists() else "",
        "checkpoints": sorted(path.name for path in (run_dir / "checkpoints").glob("best-*")),
    }


def killed_at(n: int, function: Callable[..., Any], *, after: bool = False) -> Callable[..., Any]:
    """Return the function, which kills this process at its n-th call, before or after it."""
    calls = 0

    def wrapped(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == n and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        made = function(*arguments, **options)
        if calls == n and after:
            os.kill(os.getpid(), signal.SIGKILL)
        return made

    return wrapped


def test_whatever_has_a_state_is_at_work_in_what_follows(whole: dict[str, Any]) -> None:
    n_epochs, n_steps, _, _, n_pruned = whole["result"]
    assert n_epochs == 4
    assert n_steps > 40
    assert n_pruned > 5
    assert len(whole["pruned"].splitlines()) == n_pruned + 1
    assert len(whole["checkpoints"]) == 1


@pytest.mark.parametrize(
    ("what", "number", "after"),
    [
        ("loss", 1, False),
        ("loss", 37, False),  # in the middle of a batch cut in two
        ("loss", 60, True),
        ("deviation", 3, False),  # while pruning
        ("replace", 1, False),  # around each of the three moves that make a checkpoint
        ("replace", 40, False),
        ("replace", 41, False),
        ("replace", 42, True),
        ("unlink", 1, False),
        ("settle", 1, False),
    ],
)
def test_killed_at_any_point_it_ends_with_the_same_weights(
    data: FitData, whole: dict[str, Any], tmp_path: Path, what: str, number: int, after: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    recipe = small_recipe(*SETS, EVERY_STEP)

    def doomed(_: int) -> None:
        detector = make_detector(recipe, tiny=True)
        owner: Any = {"replace": os, "unlink": Path}.get(what, detector)
        monkeypatch.setattr(owner, what, killed_at(number, getattr(owner, what), after=after))
        quick_fit(detector, data, recipe, tmp_path)

    ((code, _),) = in_children(doomed)
    assert code == -signal.SIGKILL
    assert fitted(data, recipe, tmp_path, resume=True) == whole


def test_batch_statistics_and_many_kills_change_nothing(data: FitData, tmp_path: Path) -> None:
    recipe = small_recipe("fit.epochs=2", EVERY_STEP)
    expected = fitted(data, small_recipe("fit.epochs=2"), tmp_path / "whole", tiny=False)
    for number in (5, 9, 16):

        def doomed(_: int, number: int = number) -> None:
            detector: Any = make_detector(recipe, tiny=False)
            detector.loss = killed_at(number, detector.loss)
            quick_fit(detector, data, recipe, tmp_path / "killed", resume=True)

        ((code, _),) = in_children(doomed)
        assert code == -signal.SIGKILL
    state = torch.load(tmp_path / "killed" / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] > 20
    assert fitted(data, recipe, tmp_path / "killed", tiny=False, resume=True) == expected


def test_a_process_killed_from_outside_is_resumed_by_another(folder: Path, data: FitData, tmp_path: Path) -> None:
    sets = ("fit.epochs=8", EVERY_STEP)
    arguments = [str(folder / "sound"), str(tmp_path), "--tiny", "--resume", *(f"--set={value}" for value in sets)]
    process = start(*arguments)
    deadline_s = time.monotonic() + 60
    while not list((tmp_path / "checkpoints").glob("previous.ckpt")) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    time.sleep(0.2)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    recipe = small_recipe("fit.epochs=8")
    assert fitted(data, recipe, tmp_path, resume=True) == fitted(data, recipe, tmp_path / "whole")


def test_a_finished_fit_is_not_gone_on_with(data: FitData, whole: dict[str, Any], tmp_path: Path) -> None:
    recipe = small_recipe(*SETS)
    fitted(data, recipe, tmp_path)
    written_ns = (tmp_path / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    assert fitted(data, recipe, tmp_path, resume=True) == whole
    assert (tmp_path / "checkpoints" / "last.ckpt").stat().st_mtime_ns == written_ns


@pytest.mark.parametrize("broken", [("last.ckpt",), ("last.ckpt", "previous.ckpt")])
def test_half_a_checkpoint_is_left_aside(
    data: FitData, whole: dict[str, Any], tmp_path: Path, broken: tuple[str, ...]
) -> None:
    recipe, said = small_recipe(*SETS), io.StringIO()
    fitted(data, recipe, tmp_path)
    for name in broken:
        path = tmp_path / "checkpoints" / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    detector = make_detector(recipe, tiny=True)
    quick_fit(detector, data, recipe, tmp_path, resume=True, console=Console(file=said, width=400))
    assert digest(detector.network) == whole["sha256"]
    assert said.getvalue().count("is not whole and is left aside") == len(broken)
    assert ("going on after step" in said.getvalue()) == (len(broken) == 1)


def test_without_resume_a_fit_begins_anew(data: FitData, whole: dict[str, Any], tmp_path: Path) -> None:
    fitted(data, small_recipe("fit.epochs=6", "fit.keep_best=6"), tmp_path)
    assert fitted(data, small_recipe(*SETS), tmp_path) == whole


def test_a_checkpoint_of_another_recipe_is_refused(data: FitData, tmp_path: Path) -> None:
    fitted(data, small_recipe("fit.epochs=1"), tmp_path)
    with pytest.raises(SettingsError, match=r"recipe fit.learning_rate is 0.001, not 0.002"):
        fitted(data, small_recipe("fit.epochs=1", "fit.learning_rate=0.002"), tmp_path, resume=True)
    fitted(data, small_recipe("fit.epochs=1", "fit.checkpoint_minutes=3"), tmp_path, resume=True)


def test_a_checkpoint_of_another_corpus_is_refused(data: FitData, tmp_path: Path) -> None:
    recipe = small_recipe("fit.epochs=1")
    fitted(data, recipe, tmp_path)
    other = open_data(make_sound(tmp_path / "other", n_files=5), recipe, cache_dir=tmp_path / "cache")
    with pytest.raises(SettingsError, match="its corpus is"):
        fitted(other, recipe, tmp_path, resume=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_asked_to_end_it_leaves_between_two_steps(
    data: FitData, whole: dict[str, Any], tmp_path: Path, number: signal.Signals
) -> None:
    recipe = small_recipe(*SETS)
    before = signal.getsignal(number)
    detector = Asking(make_detector(recipe, tiny=True), number)
    with pytest.raises(TemporaryError, match=rf"ended by {number.name} after step 12; --resume goes on"):
        quick_fit(detector, data, recipe, tmp_path)
    assert signal.getsignal(number) == before
    assert fitted(data, recipe, tmp_path, resume=True) == whole


class Asking:
    """A detector in whose 23rd loss the process is asked to end."""

    def __init__(self, detector: Detector, number: signal.Signals) -> None:
        self._detector = detector
        self._number = number
        self._n_losses = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._detector, name)

    def loss(self, batch: Batch) -> torch.Tensor:
        self._n_losses += 1
        if self._n_losses == 23:
            os.kill(os.getpid(), self._number)
        return self._detector.loss(batch)


def test_a_preempted_slurm_job_is_queued_again(data: FitData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    recipe = small_recipe(*SETS)
    with pytest.raises(TemporaryError):
        quick_fit(Asking(make_detector(recipe, tiny=True), signal.SIGUSR1), data, recipe, tmp_path / "run")
    assert (tmp_path / "asked").read_text() == "requeue 4711\n"
