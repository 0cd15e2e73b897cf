"""The pieces of the untrained judge: its tables, its quantiles, and what its scores are said to mean."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeasd.scoring.novelty_levels import confirmed_levels, confirmed_p_value, prompt_levels, prompt_p_value
from edgeasd.scoring.novelty_memory import Memory, RunningQuantile, Track
from edgeasd.scoring.novelty_parts import Scale, Spread, describe, likeness, nearest
from edgeasd.scoring.novelty_state import StateWatch


@given(st.integers(1, 7), st.integers(0, 40), st.integers(-3, 45), st.integers(-3, 45))
def test_a_track_is_an_endless_table_that_forgets(n_kept: int, n_rows: int, first: int, stop: int) -> None:
    track = Track(n_kept, 1)
    for number in range(n_rows):
        track.append(np.array([number], np.float32))
    expected = [i for i in range(max(0, n_rows - n_kept), n_rows) if first <= i < stop]
    assert track.rows(first, stop)[:, 0].tolist() == expected


def test_a_memory_keeps_one_of_each_kind_and_drops_what_was_unused_longest() -> None:
    memory = Memory(2, 4, radius_db=1.0)
    near, far, third = (np.full(4, value, np.float32) for value in (0.0, 5.0, 20.0))
    for vector in (near, near + 0.9, far, near - 0.9):
        memory.learn(vector)
    assert memory.rows[:, 0].tolist() == [0.0, 5.0]
    memory.learn(third)
    assert len(memory) == 2
    assert memory.rows[:, 0].tolist() == [0.0, 20.0]


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=60), st.integers(1, 20), st.floats(0, 1))
def test_a_running_quantile_is_that_of_the_last_numbers(numbers: list[float], n_kept: int, quantile: float) -> None:
    running = RunningQuantile(n_kept, quantile)
    for number in numbers:
        running.add(number)
    assert len(running) == min(n_kept, len(numbers))
    assert running.value() == pytest.approx(float(np.quantile(numbers[-n_kept:], quantile)), abs=1e-6)


def test_a_window_is_described_by_means_and_loudest_frames() -> None:
    log_mel = np.zeros((38, 2), np.float32)
    log_mel[[3, 30], 1] = (10.0, 30.0)
    np.testing.assert_allclose(describe(log_mel), [0.0, 40.0 / 38, 0.0, 20.0], rtol=1e-6)


def test_spread_is_median_and_upper_quintile() -> None:
    past = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)
    middle, high = Spread.of(past)
    np.testing.assert_allclose(middle, np.quantile(past, 0.5, axis=0), atol=1e-6)
    np.testing.assert_allclose(high, np.quantile(past, 0.8, axis=0), atol=1e-6)


def test_what_follows_as_loudly_is_no_excess() -> None:
    spread = Spread(np.zeros(2, np.float32), np.zeros(2, np.float32))
    vector = np.array([10.0, 10.0], np.float32)
    np.testing.assert_allclose(spread.excess(vector, np.empty((0, 2), np.float32)), [10.0, 10.0])
    np.testing.assert_allclose(spread.excess(vector, np.array([[10.0, 4.0], [1.0, 1.0]], np.float32)), [0.0, 6.0])


def test_nearest_looks_through_all_tables_and_passes_over_empty_ones() -> None:
    vector = np.zeros(2, np.float32)
    empty, first, second = np.empty((0, 2)), np.array([[3.0, 3.0]]), np.array([[9.0, 9.0], [-1.0, 1.0]])
    assert nearest(vector, empty.astype(np.float32)) is None
    found = nearest(vector, *(table.astype(np.float32) for table in (empty, first, second)))
    assert found is not None
    assert found.distance_db == pytest.approx(1.0)
    np.testing.assert_allclose(found.difference, [1.0, -1.0])


def test_louder_is_less_like_the_past_than_quieter() -> None:
    past = np.zeros((3, 8), np.float32)
    louder, quieter = likeness(np.full(8, 5.0, np.float32), past), likeness(np.full(8, -5.0, np.float32), past)
    assert louder.whole_db == pytest.approx(5.0)
    assert louder.loudest_db == pytest.approx(5.0)
    assert quieter.whole_db == pytest.approx(1.0)
    assert quieter.distance_db == pytest.approx(5.0)


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
