"""Two and four processes train as one does: same steps, same windows, same weights on all."""

from __future__ import annotations

import itertools
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from edgeasd.errors import SettingsError, TemporaryError, UnavailableError
from edgeasd_train.detectors.contract import Batch
from edgeasd_train.fit import FitData
from edgeasd_train.ranks import ALONE, Ranks, current_ranks, joined
from edgeasd_train.recipe import Recipe
from tests.train.fit_rig import (
    digest,
    in_children,
    make_detector,
    make_sound,
    open_data,
    quick_fit,
    rank_environment,
    small_recipe,
    start,
)

pytestmark = pytest.mark.forks

SETS = ("fit.epochs=3", "prune.every_epochs=2", "prune.z_max=2.5", "fit.learning_rate=0.003")
SLURM = {
    "SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_NTASKS_PER_NODE": "4", "SLURM_NNODES": "2",
    "SLURM_NODEID": "1", "SLURM_JOB_ID": "4711", "SLURM_NODELIST": "127.0.0.1", "SLURM_JOB_NAME": "train",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    make_sound(folder / "sound", n_files=5, odd=(1, 3))
    return folder


@pytest.fixture(scope="module")
def data(folder: Path) -> FitData:
    return open_data(folder / "sound", small_recipe(), cache_dir=folder / "cache")


def fitted(ranks: Ranks, data: FitData, recipe: Recipe, run_dir: Path, *, resume: bool = False) -> dict[str, Any]:
    detector = make_detector(recipe, tiny=True, dropout=0.0)
    result = quick_fit(detector, data, recipe, run_dir, ranks=ranks, resume=resume)
    return {
        "sha256": digest(detector.network),
        "n_steps": result.n_steps,
        "n_pruned": result.n_pruned,
        "train_loss": result.train_loss,
        "held_out_loss": result.held_out_loss,
    }


def dropped(run_dir: Path) -> set[int]:
    return {int(line.split(",")[0]) for line in (run_dir / "pruned.csv").read_text().splitlines()[1:]}


def torchrun(environment: dict[str, str]) -> dict[str, str]:
    return {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", **environment}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, ALONE),
        (torchrun({}), Ranks(3, 4, 1, 2, "torchrun")),
        (SLURM, Ranks(5, 8, 1, 2, "slurm")),
        ({**SLURM, **torchrun({})}, Ranks(3, 4, 1, 2, "torchrun")),
        ({**SLURM, "SLURM_JOB_NAME": "interactive"}, ALONE),
        ({"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "1"}, Ranks(0, 1, 0, 1, "slurm")),
    ],
)
def test_the_environment_says_which_rank_this_is(environment: dict[str, str], expected: Ranks) -> None:
    assert current_ranks(environment) == expected


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        (torchrun({"WORLD_SIZE": "four"}), "WORLD_SIZE: 'four' is no number"),
        (torchrun({"RANK": "4"}), "rank 4 of 4 on 2 nodes cannot be"),
        ({**SLURM, "SLURM_NTASKS_PER_NODE": ""} | {"SLURM_NNODES": "3"}, "rank 5 of 8 on 3 nodes cannot be"),
        ({key: value for key, value in SLURM.items() if key != "SLURM_NTASKS_PER_NODE"}, "with --ntasks-per-node"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "LOCAL_RANK: '' is no number"),
    ],
)
def test_an_environment_that_contradicts_itself_is_refused(environment: dict[str, str], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        current_ranks(environment)


def test_alone_nothing_waits_and_nothing_is_joined() -> None:
    with joined(ALONE):
        ALONE.barrier()
    assert ALONE.is_first
    assert ALONE.is_alone


def test_a_meeting_place_that_cannot_be_is_told_in_a_line() -> None:
    ranks = Ranks(0, 2, 0, 1, "torchrun")
    says = r"rank 0 of 2 cannot join the others at 127.0.0.1:99999"
    with rank_environment(ranks, 99999), pytest.raises(UnavailableError, match=says), joined(ranks):
        pass


@pytest.mark.parametrize("size", [2, 4])
def test_forked_ranks_train_and_prune_as_one_does(data: FitData, tmp_path: Path, size: int, free_port: int) -> None:
    recipe = small_recipe(*SETS)
    alone = fitted(ALONE, data, recipe, tmp_path / "alone")

    def work(rank: int) -> dict[str, Any]:
        ranks = Ranks(rank, size, rank, 1, "torchrun")
        with rank_environment(ranks, free_port), joined(ranks):
            return fitted(ranks, data, recipe, tmp_path / "many")

    codes, made = zip(*in_children(work, size), strict=True)
    assert set(codes) == {0}
    assert all(result == made[0] for result in made)
    assert made[0]["n_steps"] == alone["n_steps"]
    assert made[0]["train_loss"] == pytest.approx(alone["train_loss"], rel=1e-4)
    assert made[0]["held_out_loss"] == pytest.approx(alone["held_out_loss"], rel=1e-4)
    assert made[0]["n_pruned"] == alone["n_pruned"] > 5
    assert dropped(tmp_path / "many") == dropped(tmp_path / "alone")


def test_ranks_that_slurm_started_resume_to_the_same_weights(data: FitData, tmp_path: Path, free_port: int) -> None:
    recipe = small_recipe(*SETS, "fit.checkpoint_minutes=1e-9", "fit.accumulate=2")

    def work(rank: int, run_dir: Path, *, killed: bool) -> dict[str, Any]:
        with pytest.MonkeyPatch.context() as patch:
            values = {"PROCID": rank, "NTASKS": 2, "LOCALID": rank, "NTASKS_PER_NODE": 2, "NNODES": 1, "NODEID": 0}
            for name, value in values.items():
                patch.setenv(f"SLURM_{name}", str(value))
            patch.setenv("SLURM_NODELIST", "127.0.0.1")
            patch.setenv("MASTER_PORT", str(free_port))
            ranks = current_ranks()
            assert ranks.launcher == "slurm"
            with joined(ranks):
                if not killed:
                    return fitted(ranks, data, recipe, run_dir, resume=True)
                detector: Any = make_detector(recipe, tiny=True, dropout=0.0)
                detector.deviation = lambda _: os.kill(os.getpid(), signal.SIGKILL)  # in the prune after two epochs
                quick_fit(detector, data, recipe, run_dir, ranks=ranks)
        return {}

    whole = in_children(lambda rank: work(rank, tmp_path / "whole", killed=False), 2)
    broken = in_children(lambda rank: work(rank, tmp_path / "broken", killed=True), 2)
    assert {code for code, _ in broken} <= {-signal.SIGKILL, 1}
    assert (tmp_path / "broken" / "checkpoints" / "last.ckpt").exists()
    resumed = in_children(lambda rank: work(rank, tmp_path / "broken", killed=False), 2)
    assert resumed == whole
    assert whole[0][0] == 0
    assert whole[0][1] == whole[1][1]
    assert dropped(tmp_path / "broken") == dropped(tmp_path / "whole")


@pytest.mark.parametrize("size", [2, 4])
def test_torchrun_starts_ranks_that_end_with_the_same_weights(
    folder: Path, data: FitData, tmp_path: Path, size: int
) -> None:
    sets = ("fit.epochs=2", "fit.learning_rate=0.003")
    recipe = small_recipe(*sets)
    alone = quick_fit(make_detector(recipe, tiny=False), data, recipe, tmp_path / "alone")
    arguments = [str(folder / "sound"), str(tmp_path), *(f"--set={value}" for value in sets)]
    process = start(*arguments, n_ranks=size)
    said = process.communicate(timeout=110)[1]
    assert process.returncode == 0, said
    told = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(size)]
    assert all(result == told[0] for result in told)
    assert told[0]["n_steps"] == alone.n_steps
    # Batch statistics are each rank's own, of four windows at the least: not as close as without them.
    assert told[0]["held_out_loss"] == pytest.approx(alone.held_out_loss, rel=0.15)
    assert said.count("epoch 2 of 2") == 1


def test_ranks_that_cannot_share_a_batch_say_so(data: FitData, tmp_path: Path) -> None:
    recipe = small_recipe("fit.batch_size=15")
    with pytest.raises(SettingsError, match=r"fit.batch_size: 15 windows cannot be shared evenly by 2 ranks"):
        fitted(Ranks(0, 2, 0, 1, "torchrun"), data, recipe, tmp_path)


def test_a_first_rank_asked_to_end_takes_the_others_with_it(data: FitData, tmp_path: Path, free_port: int) -> None:
    recipe = small_recipe("fit.epochs=9")

    def work(rank: int) -> list[Any]:
        ranks = Ranks(rank, 2, rank, 1, "torchrun")
        detector: Any = make_detector(recipe, tiny=True)
        losses, loss = itertools.count(1), detector.loss

        def asking(batch: Batch) -> torch.Tensor:
            if next(losses) == 33 and ranks.is_first:
                os.kill(os.getpid(), signal.SIGTERM)
            return loss(batch)  # type: ignore[no-any-return]

        detector.loss = asking
        with rank_environment(ranks, free_port), joined(ranks):
            try:
                quick_fit(detector, data, recipe, tmp_path, ranks=ranks)
            except TemporaryError as exc:
                return [str(exc), digest(detector.network)]
        return []

    (first, told), (second, other) = in_children(work, 2)
    assert first == second == 0
    assert told == other
    assert "ended by SIGTERM after step 40" in told[0]
    assert (tmp_path / "checkpoints" / "last.ckpt").exists()
