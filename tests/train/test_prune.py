"""What is dropped: by hand-made numbers, by planted outliers, and the same under one, two and four ranks."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from edgeasd.errors import SelfTestError
from edgeasd.manifest import OutputName
from edgeasd.records import FloatArray
from edgeasd_train import collectives
from edgeasd_train.detectors import measured
from edgeasd_train.fit import FitData, sample
from edgeasd_train.prune import Judged, Pruned, choose, is_due, prune_measured, recordings_of
from edgeasd_train.pruning import prune
from edgeasd_train.ranks import Ranks, joined
from edgeasd_train.recipe import PruneRecipe
from edgeasd_train.sampling import Kept, Numbers
from tests.train.fit_rig import (
    in_children,
    make_detector,
    make_sound,
    open_data,
    quick_fit,
    rank_environment,
    small_recipe,
)

ODD = (1, 3)
"""Recordings that hold a second of rattling, of five."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> FitData:
    folder = tmp_path_factory.mktemp("prune")
    sound = make_sound(folder / "sound", n_files=5, odd=ODD)
    return open_data(sound, small_recipe(), cache_dir=folder / "cache")


def planted(data: FitData) -> set[int]:
    """Return the windows that hold at least 0.3 s of rattling."""
    sounds, firsts = data.train.index.locate(np.arange(len(data.train)))
    starts_s = firsts / data.train.corpus.rate_hz
    overlap_s = np.minimum(starts_s + 0.5, 3.0) - np.maximum(starts_s, 2.0)
    names = np.array([Path(data.train.corpus.sounds.name(sound)).stem for sound in sounds.tolist()])
    return set(np.flatnonzero(np.isin(names, [f"{number:02}" for number in ODD]) & (overlap_s >= 0.3)).tolist())


def judged(
    deviation: Sequence[float], *, recording: Sequence[int] | None = None, index: Sequence[int] | None = None
) -> Judged:
    numbers = np.arange(len(deviation)) if index is None else np.array(index)
    return Judged(numbers, np.array(deviation, np.float64), np.array(recording or [0] * len(deviation), np.int64))


def test_z_drops_what_sticks_out_and_tells_by_how_much() -> None:
    deviation = [1.0] * 20 + [9.0]
    mean, spread = np.mean(deviation), np.std(deviation)
    gone = choose(judged(deviation), PruneRecipe(z_max=3.0), n_windows=21, n_dropped=0, epoch=4)
    assert gone.index.tolist() == [20]
    assert gone.z[0] == pytest.approx((9.0 - mean) / spread)
    assert (gone.deviation.tolist(), gone.epoch.tolist()) == ([9.0], [4])
    assert len(choose(judged(deviation), PruneRecipe(z_max=4.5), n_windows=21, n_dropped=0, epoch=4)) == 0
    assert len(choose(judged([2.0] * 9), PruneRecipe(), n_windows=9, n_dropped=0, epoch=1)) == 0


def test_a_fraction_drops_the_worst_the_worst_first_and_of_equals_the_first() -> None:
    recipe = PruneRecipe(by="fraction", fraction=0.3)
    gone = choose(judged([5, 1, 7, 7, 3, 2, 9, 0, 0, 0]), recipe, n_windows=10, n_dropped=0, epoch=1)
    assert gone.index.tolist() == [6, 2, 3]


def test_whole_recordings_go_by_the_mean_over_their_windows() -> None:
    deviation, recording = [1, 1, 9, 2, 2, 2, 5, 5, 5], [4, 4, 4, 7, 7, 7, 9, 9, 9]
    recipe = PruneRecipe(by="fraction", fraction=0.4, unit="recording", max_share=0.5)
    gone = choose(judged(deviation, recording=recording), recipe, n_windows=9, n_dropped=0, epoch=1)
    assert gone.index.tolist() == [6, 7, 8]
    means = np.array([11 / 3, 2.0, 5.0])
    assert gone.z == pytest.approx((5.0 - means.mean()) / means.std())


def test_no_more_goes_than_the_share_allows_in_all() -> None:
    recipe = PruneRecipe(by="fraction", fraction=0.4, max_share=0.5)
    deviation = [float(number) for number in range(10)]
    assert choose(judged(deviation), recipe, n_windows=20, n_dropped=7, epoch=1).index.tolist() == [9, 8, 7]
    assert len(choose(judged(deviation), recipe, n_windows=20, n_dropped=10, epoch=1)) == 0
    whole = PruneRecipe(by="fraction", fraction=0.49, unit="recording", max_share=0.25)
    recordings = [0] * 4 + [1] * 3 + [2] * 3
    gone = choose(judged(deviation, recording=recordings), whole, n_windows=10, n_dropped=0, epoch=1)
    assert len(gone) == 0  # a recording goes whole or not at all


def test_neither_the_order_nor_rows_that_come_twice_make_a_difference() -> None:
    random = np.random.default_rng(0)
    deviation = random.standard_gamma(1.0, 500).astype(np.float32).astype(np.float64)
    recipe = PruneRecipe(z_max=2.0)
    expected = choose(judged(deviation.tolist()), recipe, n_windows=500, n_dropped=0, epoch=1)
    assert 5 < len(expected) < 50
    rows = np.concatenate([random.permutation(500), random.choice(500, 100)])
    mixed = Judged(rows, deviation[rows], np.zeros(600, np.int64))
    gone = choose(mixed, recipe, n_windows=500, n_dropped=0, epoch=1)
    assert gone.index.tolist() == expected.index.tolist()
    assert gone.z.tolist() == expected.z.tolist()


def test_a_deviation_that_is_no_number_stops_the_training() -> None:
    with pytest.raises(SelfTestError, match="not finite"):
        choose(judged([1.0, float("nan")]), PruneRecipe(), n_windows=2, n_dropped=0, epoch=1)


def test_prunes_come_every_so_many_epochs_and_so_often() -> None:
    def epochs(recipe: PruneRecipe) -> list[int]:
        done: list[int] = []
        for epoch in range(10):
            if is_due(recipe, epoch=epoch, pruned_before=done):
                done.append(epoch)
                assert not is_due(recipe, epoch=epoch, pruned_before=done)
        return done

    assert epochs(PruneRecipe()) == []
    assert epochs(PruneRecipe(every_epochs=3)) == [3, 6, 9]
    assert epochs(PruneRecipe(every_epochs=2, rounds=2)) == [2, 4]


def test_a_fit_drops_what_was_planted_and_its_table_says_where(data: FitData, tmp_path: Path) -> None:
    recipe = small_recipe("fit.epochs=4", "prune.every_epochs=2", "prune.z_max=2.5", "fit.learning_rate=0.003")
    result = quick_fit(make_detector(recipe, tiny=True), data, recipe, tmp_path)
    with (tmp_path / "pruned.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["index", "file", "offset_s", "deviation", "z", "epoch"]
    assert result.n_pruned == len(rows)
    assert planted(data) <= {int(row["index"]) for row in rows}
    for row in rows:
        assert Path(row["file"]).stem in {"01", "03"}
        assert 1.5 <= float(row["offset_s"]) <= 3.0
        assert float(row["z"]) > 2.5
        assert row["epoch"] == "2"


def prune_as(ranks: Ranks, data: FitData, kept: Kept, port: int) -> Pruned:
    """Prune with weights that follow from the seed, as one of some ranks."""
    recipe = small_recipe()
    detector = make_detector(recipe, tiny=False)
    detector.prepare(sample(data.train))
    if not ranks.is_first:  # what a rank has of its own between two steps does not count
        detector.network.load_state_dict({key: value + 1 for key, value in detector.network.state_dict().items()})
    rules = PruneRecipe(every_epochs=1, z_max=1.5)
    with rank_environment(ranks, port), joined(ranks):
        return prune(detector, data.train, kept, rules, ranks=ranks, epoch=1)


@pytest.mark.parametrize("size", [2, 4])
def test_many_ranks_drop_what_one_drops(data: FitData, size: int, free_port: int) -> None:
    kept = Kept(len(data.train), np.array([3, 250]))
    alone = prune_as(Ranks(0, 1, 0), data, kept, free_port)
    assert 5 < len(alone) < 100
    expected = [alone.index.tolist(), alone.deviation.tolist(), alone.z.tolist(), alone.epoch.tolist()]

    def work(rank: int) -> object:
        gone = prune_as(Ranks(rank, size, rank, 1, "torchrun"), data, kept, free_port)
        return [gone.index.tolist(), gone.deviation.tolist(), gone.z.tolist(), gone.epoch.tolist()]

    assert in_children(work, size) == [(0, expected)] * size


def test_ranks_collect_shares_of_unequal_length(free_port: int) -> None:
    def work(rank: int) -> object:
        ranks = Ranks(rank, 3, rank, 1, "torchrun")
        with rank_environment(ranks, free_port), joined(ranks):
            arrays = collectives.collect(ranks, np.arange(rank, dtype=np.int64) + 10 * rank, [0, 1, 2])
            told = collectives.tell(ranks, np.array([5, 6, 7]) if ranks.is_first else np.empty(0, np.int64))
            network = torch.nn.Linear(1, 1)
            torch.nn.init.constant_(network.weight, float(rank + 1))
            collectives.share(ranks, network)
            return [
                [array.tolist() for array in arrays], told.tolist(), collectives.totals(ranks, [rank, 0.5]),
                collectives.agree(ranks, rank + 7), float(network.weight.detach()),
            ]  # fmt: skip

    rest = [[5, 6, 7], [3.0, 1.5], 7, 1.0]
    assert in_children(work, 3) == [(0, [[[], [10], [20, 21]], *rest]), (0, [[], *rest]), (0, [[], *rest])]


@dataclass
class Loudness:
    """A measured detector: how far a window is from the mean of all, in numpy alone."""

    outputs: tuple[OutputName, ...] = ("score",)
    limits: tuple[str, ...] = ()
    seen: list[Numbers] = field(default_factory=list)
    mean: float = 0.0

    def measure(self, batches: Iterable[measured.Batch]) -> None:
        kept = [
            (np.asarray(batch["index"], np.int64), float(batch["log_mel"].astype(np.float64).mean()))
            for batch in batches
        ]
        self.seen.append(np.concatenate([index for index, _ in kept]))
        self.mean = float(np.average([mean for _, mean in kept], weights=[len(index) for index, _ in kept]))

    def deviation(self, batch: measured.Batch) -> FloatArray:
        means: FloatArray = batch["log_mel"].astype(np.float32).mean(axis=(1, 2), dtype=np.float32)
        away: FloatArray = np.abs(means - np.float32(self.mean))
        return away

    def model_onnx(self) -> bytes:
        raise NotImplementedError

    def serve(self) -> nn.Module:
        raise NotImplementedError

    def judge(self, data: FitData) -> Callable[[Kept], NDArray[np.float64]]:
        """Return what this detector, as it was last measured, makes of all windows."""
        every = np.arange(len(data.train), dtype=np.int64)
        return lambda _kept: self.deviation(data.train.batch(every)).astype(np.float64)


@pytest.mark.parametrize("rounds", [None, 3])
def test_a_detector_without_epochs_is_measured_again_without_what_stuck_out(
    data: FitData, tmp_path: Path, rounds: int | None
) -> None:
    detector = Loudness()
    pruned = prune_measured(
        detector, data.train, PruneRecipe(every_epochs=1, rounds=rounds), judge=detector.judge(data), run_dir=tmp_path
    )
    everything = set(range(len(data.train)))
    assert set(detector.seen[0].tolist()) == everything
    assert set(detector.seen[-1].tolist()) == everything - set(pruned.index.tolist())
    assert planted(data) <= set(pruned.index.tolist())
    assert set(pruned.epoch.tolist()) == set(range(len(detector.seen) - 1))
    assert len(detector.seen) - 1 <= (rounds or 1)
    assert len((tmp_path / "pruned.csv").read_text().splitlines()) == len(pruned) + 1


def test_a_recipe_that_does_not_prune_measures_once_and_leaves_no_table(data: FitData, tmp_path: Path) -> None:
    detector = Loudness()
    judge = detector.judge(data)
    assert len(prune_measured(detector, data.train, PruneRecipe(), judge=judge, run_dir=tmp_path)) == 0
    assert len(detector.seen) == 1
    assert not list(tmp_path.iterdir())


def test_a_recording_is_known_by_its_number(data: FitData) -> None:
    recordings = recordings_of(data.train, np.arange(len(data.train)))
    assert np.unique(recordings).tolist() == list(range(5))


def test_the_rules_need_no_torch() -> None:
    code = "import sys, edgeasd_train.prune, edgeasd_train.sampling, edgeasd_train.ranks; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
