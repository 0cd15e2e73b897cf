"""The pieces of the untrained judge: its tables, its quantiles, and what its scores are said to mean."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeasd.scoring.novelty_levels import confirmed_levels, confirmed_p_value, prompt_levels, prompt_p_value
from edgeasd.scoring.novelty_memory import MOST_AT_ONCE, Memory, RunningQuantile, Track, square_distances
from edgeasd.scoring.novelty_parts import Scale, Spread, describe, likeness
from edgeasd.scoring.novelty_state import StateWatch


@given(st.integers(1, 7), st.lists(st.integers(0, MOST_AT_ONCE), max_size=12), st.data())
def test_a_track_is_an_endless_table_that_forgets(n_kept: int, batches: list[int], data: st.DataObject) -> None:
    track = Track(n_kept, 1, before=-1.0)
    table = [-1.0] * n_kept  # row number n is at n + n_kept
    for n_new in batches:
        new = [float(len(table) - n_kept + i) for i in range(n_new)]
        n_before, table = len(table), table + new
        track.append(np.array(new, np.float32).reshape(-1, 1))
        first = data.draw(st.integers(n_before - 2 * n_kept, len(table) - n_kept))
        stop = data.draw(st.integers(first, len(table) - n_kept))
        assert track.rows(first, stop)[:, 0].tolist() == table[first + n_kept : stop + n_kept]
        length = data.draw(st.integers(1, 1 + len(table) - n_kept - stop))
        spans = track.spans(first, stop, length=length)
        assert [span[:, 0].tolist() for span in spans] == [
            table[i : i + length] for i in range(first + n_kept, stop + n_kept)
        ]


def test_a_memory_keeps_one_of_each_kind_and_drops_what_was_unused_longest() -> None:
    memory = Memory(2, 4, radius_db=1.0)
    near, far, third = (np.full(4, value, np.float32) for value in (0.0, 5.0, 20.0))
    memory.learn(np.stack([near, near + 0.9, far, near - 0.9]))
    assert memory.rows[:, 0].tolist() == [0.0, 5.0]
    memory.learn(third[None])
    assert len(memory) == 2
    assert memory.rows[:, 0].tolist() == [0.0, 20.0]


@given(st.lists(st.integers(0, 6), min_size=1, max_size=30), st.integers(1, 4), st.lists(st.integers(1, 9), min_size=1))
def test_a_memory_tells_what_it_knew_after_each_vector(kinds: list[int], capacity: int, batches: list[int]) -> None:
    vectors = np.repeat(np.array(kinds, np.float32) * 3.0, 2).reshape(-1, 2)
    one_by_one, in_batches = (Memory(capacity, 2, radius_db=1.0) for _ in range(2))
    first = 0
    while first < len(vectors):
        batch = vectors[first : first + batches[first % len(batches)]]
        known = in_batches.learn(batch, n_moments=len(batch) + 1)
        held = np.zeros((len(batch) + 1, len(known.rows)), np.float32)
        known.blot_out(held)
        knew = [sorted(known.rows[np.isfinite(row)][:, 0].tolist()) for row in held]
        expected = [sorted(one_by_one.rows[:, 0].tolist())]
        for vector in batch:
            one_by_one.learn(vector[None])
            expected.append(sorted(one_by_one.rows[:, 0].tolist()))
        assert knew == expected
        first += len(batch)
    np.testing.assert_array_equal(in_batches.rows, one_by_one.rows)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=60), st.integers(1, 20), st.floats(0, 1))
def test_a_running_quantile_is_that_of_the_last_numbers(numbers: list[float], n_kept: int, quantile: float) -> None:
    running = RunningQuantile(n_kept, quantile)
    for number in numbers:
        running.add(number)
    assert len(running) == min(n_kept, len(numbers))
    assert running.value() == pytest.approx(float(np.quantile(numbers[-n_kept:], quantile)), abs=1e-6)


def test_a_window_is_described_by_means_and_loudest_frames() -> None:
    log_mel = np.zeros((2, 38), np.float32)
    log_mel[1, [3, 30]] = (10.0, 30.0)
    np.testing.assert_allclose(describe([log_mel]), [[0.0, 40.0 / 38, 0.0, 20.0]], rtol=1e-6)


def test_spread_is_median_and_upper_quintile() -> None:
    past = np.random.default_rng(0).standard_normal((3, 40, 6)).astype(np.float32)
    past[0, 38:] = past[1, 39:] = 1e9  # not there yet
    spread = Spread.of(past, 38)
    for i, n_past in enumerate((38, 39, 40)):
        middle, high = np.quantile(past[i, :n_past], (0.5, 0.8), axis=0)
        np.testing.assert_allclose(spread.high[i], high, atol=1e-6)
        np.testing.assert_allclose(spread.softening[i], 2.0 / (2.0 + high - middle), atol=1e-6)


def test_what_follows_as_loudly_is_no_excess() -> None:
    spread = Spread(np.zeros((1, 2), np.float32), np.ones((1, 2), np.float32))
    vector = np.array([[10.0, 10.0]], np.float32)
    np.testing.assert_allclose(spread.excess(vector), [[10.0, 10.0]])
    np.testing.assert_allclose(spread.excess(vector, np.array([[[10.0, 4.0], [1.0, 1.0]]], np.float32)), [[0.0, 6.0]])


def test_distances_to_several_tables_lie_side_by_side() -> None:
    vectors = np.array([[0.0, 0.0], [1.0, 2.0]], np.float32)
    shared, empty = np.array([[3.0, 3.0], [-1.0, 1.0]], np.float32), np.empty((0, 2), np.float32)
    own = np.array([[[0.0, 5.0]], [[1.0, 2.0]]], np.float32)
    np.testing.assert_allclose(square_distances(vectors, own, empty, shared), [[25.0, 18.0, 2.0], [0.0, 5.0, 5.0]])


def test_louder_is_less_like_the_past_than_quieter() -> None:
    past = np.zeros((3, 8), np.float32)
    found = likeness(np.stack([np.full(8, 5.0, np.float32), np.full(8, -5.0, np.float32)]), past)
    np.testing.assert_allclose(np.sqrt(found.whole2[:, 0] / 8), [5.0, 1.0], rtol=1e-6)
    np.testing.assert_allclose(np.sqrt(found.loudest2[:, 0] / 4), [5.0, 1.0], rtol=1e-6)
    np.testing.assert_allclose(np.sqrt(found.even2[:, 0] / 8), [5.0, 5.0], rtol=1e-6)


def test_scores_of_a_livelier_source_are_evened_out_but_not_leveled() -> None:
    calm, lively = Scale(hop_s=0.5, evening=0.2), Scale(hop_s=0.5, evening=0.2)
    for _ in range(400):
        last = calm.answer(1.5), lively.answer(3.0)
    assert 1.0 < last[1].score / last[0].score < 2.0


def test_a_state_must_last_and_is_told_once_in_half_a_minute() -> None:
    watch = StateWatch(0.5)
    told = [watch.step(d) for d in [1.0] * 100 + [9.0] * 8 + [1.0] * 40 + [9.0] * 60 + [1.0] * 20]
    indices = [i for i, change in enumerate(told) if change is not None]
    assert len(indices) == 1
    change = told[indices[0]]
    assert change is not None
    assert indices[0] - change.windows_ago == 148
    assert 4.0 < change.distance_db <= 9.0


@pytest.mark.parametrize("p_value", [prompt_p_value, confirmed_p_value])
def test_p_values_fall_strictly_and_stay_above_zero(p_value) -> None:  # type: ignore[no-untyped-def]
    scores = np.linspace(0.0, 40.0, 4001)
    p = np.array([p_value(float(score)) for score in scores])
    assert p[0] == 1.0
    assert np.all(np.diff(p) < 0.0)
    assert p_value(1e9) > 0.0


@pytest.mark.parametrize("levels", [confirmed_levels, lambda rate: prompt_levels(rate)[0]])
def test_a_smaller_budget_asks_for_a_higher_level(levels) -> None:  # type: ignore[no-untyped-def]
    enters = [levels(rate).enter for rate in (1000.0, 60.0, 12.0, 2.0 / 24, 1.0 / 168)]
    assert enters == sorted(enters)
    assert enters[1] < enters[2] < enters[3]
    assert all(levels(rate).leave < levels(rate).enter for rate in (60.0, 12.0))


def test_the_p_value_of_a_level_is_that_of_its_score() -> None:
    levels, p_value = prompt_levels(12.0)
    assert p_value == prompt_p_value(levels.enter)
