"""Batches follow from seed, epoch and what is kept, and are the same windows however many ranks share them."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from edgeasd.errors import InputError, SettingsError
from edgeasd_train.ranks import ALONE, Ranks
from edgeasd_train.sampling import HeldOutBatches, Kept, Order, SeededBatches, Shares


def ranks_of(size: int) -> list[Ranks]:
    return [Ranks(rank, size, rank) for rank in range(size)]


def batches(
    n_windows: int = 103, *, dropped: list[int] | None = None, size: int = 1, rank: int = 0, accumulate: int = 1,
    max_steps: int = 99, seed: int = 1, epoch: int = 0, first_step: int = 0,
) -> SeededBatches:  # fmt: skip
    kept = Kept(n_windows, np.array(dropped or [], np.int64))
    shares = Shares(12, Ranks(rank, size, rank), accumulate)
    return SeededBatches(kept, shares, max_steps=max_steps, seed=seed, epoch=epoch, first_step=first_step)


def test_an_epoch_follows_from_seed_and_epoch_and_holds_every_window_at_most_once() -> None:
    first = list(batches())
    assert len(first) == len(batches()) == 103 // 12
    assert len({number for batch in first for number in batch}) == 8 * 12
    assert list(batches()) == first
    assert list(batches(epoch=1)) != first
    assert list(batches(seed=2)) != first
    assert len(list(batches(max_steps=4))) == 4
    assert [len(batch) for batch in batches(5)] == [5]


def test_the_order_of_one_rank_is_numpys_permutation() -> None:
    order = np.random.default_rng([1, 3]).permutation(103)
    assert list(batches(epoch=3)) == [order[first : first + 12].tolist() for first in range(0, 96, 12)]


@pytest.mark.parametrize(("size", "accumulate"), [(2, 1), (4, 1), (1, 3), (2, 3), (3, 4)])
def test_ranks_and_parts_see_together_what_one_rank_sees_in_a_step(size: int, accumulate: int) -> None:
    whole = [set(batch) for batch in batches()]
    by_rank = [list(batches(size=size, rank=rank, accumulate=accumulate)) for rank in range(size)]
    assert {len(parts) for parts in by_rank} == {len(whole) * accumulate}
    for step, windows in enumerate(whole):
        seen = [number for parts in by_rank for part in parts[step * accumulate :][:accumulate] for number in part]
        assert len(seen) == len(windows)
        assert set(seen) == windows


def test_an_epoch_can_be_taken_up_in_its_middle() -> None:
    assert list(batches(first_step=5)) == list(batches())[5:]
    assert list(batches(first_step=5, size=2, rank=1, accumulate=2)) == list(batches(size=2, rank=1, accumulate=2))[10:]
    assert len(batches(first_step=5)) == 3


def test_what_was_dropped_never_comes_again() -> None:
    dropped = [0, 5, 6, 7, 50, 102]
    seen = {number for epoch in range(20) for batch in batches(dropped=dropped, epoch=epoch) for number in batch}
    assert seen == set(range(103)) - set(dropped)


def test_positions_among_the_kept_are_those_of_a_list_of_them() -> None:
    dropped = np.random.default_rng(0).choice(1000, 400, replace=False)
    kept = Kept(1000, dropped)
    expected = np.setdiff1d(np.arange(1000), dropped)
    assert len(kept) == 600
    assert np.array_equal(kept.numbers(np.arange(600)), expected)
    assert np.array_equal(np.concatenate(list(kept.blocks(77))), expected)
    assert np.array_equal(kept.without(expected[:3]).numbers(np.arange(597)), expected[3:])


@pytest.mark.parametrize("n", [1, 2, 3, 17, 64, 1000, 65_537])
def test_a_computed_order_holds_every_number_once_and_is_shuffled(n: int) -> None:
    order = Order(n, seed=(1, 2), permuted=0)
    found = order.positions(0, n)
    assert np.array_equal(np.sort(found), np.arange(n))
    assert np.array_equal(np.concatenate([order.positions(0, n // 3), order.positions(n // 3, n)]), found)
    if n >= 1000:
        assert abs(np.corrcoef(np.arange(n), found)[0, 1]) < 0.1
        steps = np.abs(np.diff(found)) / n
        assert np.mean(steps) == pytest.approx(1 / 3, abs=0.03)  # of two numbers drawn at random
        assert not np.array_equal(Order(n, seed=(1, 3), permuted=0).positions(0, n), found)


def test_a_hundred_million_windows_take_no_list_of_them() -> None:
    tracemalloc.start()
    drawn = list(batches(100_000_000, max_steps=1000, dropped=[5]))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    numbers = {number for batch in drawn for number in batch}
    assert len(numbers) == 12_000
    assert 0.45 < np.mean(np.array(list(numbers)) < 50_000_000) < 0.55
    assert peak_bytes < 20e6


def test_batches_that_cannot_be_shared_evenly_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"fit.batch_size: 32 windows cannot be shared evenly by 3 ranks"):
        Shares(32, Ranks(0, 3, 0), 1)
    with pytest.raises(SettingsError, match=r"fit.accumulate 5"):
        Shares(32, ALONE, 5)
    with pytest.raises(InputError, match="3 windows to train on are too few"):
        Shares(12, Ranks(0, 4, 0), 1).batch_of(3)
    assert Shares(32, Ranks(0, 4, 0), 2).batch_of(30) == 24


@pytest.mark.parametrize(("n_windows", "size"), [(4, 4), (23, 4), (256, 1), (257, 1), (1025, 4), (1024, 4), (5000, 3)])
def test_held_out_windows_come_once_in_as_many_batches_on_every_rank(n_windows: int, size: int) -> None:
    shared = [HeldOutBatches(n_windows, ranks, at_most=256) for ranks in ranks_of(size)]
    assert len({len(batches) for batches in shared}) == 1
    drawn = [list(batches) for batches in shared]
    assert all(len(batches) == len(shared[0]) for batches in drawn)
    assert all(1 <= len(batch) <= 256 for batches in drawn for batch in batches)
    assert [number for batches in drawn for batch in batches for number in batch] == list(range(n_windows))


def test_fewer_held_out_windows_than_ranks_are_refused() -> None:
    with pytest.raises(InputError, match="3 windows held out are too few for 4 ranks"):
        HeldOutBatches(3, Ranks(0, 4, 0), at_most=256)
