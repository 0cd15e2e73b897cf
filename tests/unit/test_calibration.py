"""Probabilities are what they say, rank as the scores do, and own up to how little was heard."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy import stats

from edgeasd.bundle import CalibrationTable
from edgeasd.errors import InputError
from edgeasd.scoring.calibration import MIN_SCORES, Calibration, effective_number, fit_calibration, fit_tail

Doubles = NDArray[np.float64]


def normal_scores(n: int, *, seed: int = 0) -> Doubles:
    """Scores like an autoencoder's: positive, skewed."""
    return np.asarray(stats.gamma.rvs(4.0, size=n, random_state=np.random.default_rng(seed)))


def calibrated(scores: Doubles, *, hop_s: float = 1.0) -> Calibration:
    return Calibration(fit_calibration(scores, window_s=1.0, hop_s=hop_s))


@pytest.mark.parametrize("shape", [0.05, 0.2, 0.4])
def test_the_tail_finds_the_parameters_of_a_generalised_pareto_distribution(shape: float) -> None:
    excesses = stats.genpareto.rvs(shape, scale=2.0, size=20_000, random_state=np.random.default_rng(1))
    found_shape, found_scale = fit_tail(excesses, n_effective=20_000)
    assert found_shape == pytest.approx(shape, abs=0.03)
    assert found_scale == pytest.approx(2.0, rel=0.05)


@pytest.mark.parametrize("shape", [0.1, 0.3])
def test_probabilities_far_out_agree_with_scipy(shape: float) -> None:
    scores = stats.genpareto.rvs(shape, size=50_000, random_state=np.random.default_rng(2))
    calibration = calibrated(scores)
    for p in (1e-2, 1e-3, 1e-4, 1e-5):
        assert calibration.p_value(float(stats.genpareto.isf(p, shape))) == pytest.approx(p, rel=0.5)


def test_a_tail_that_ends_is_taken_for_one_that_does_not_so_that_alarms_stay_rare() -> None:
    scores = np.random.default_rng(3).uniform(0.0, 1.0, 5000)
    calibration = calibrated(scores)
    assert calibration.table.tail_shape > 0.0
    for p in (1e-2, 1e-3, 1e-4):
        assert calibration.p_value(1.0 - p) >= 0.8 * p


def test_few_excesses_lean_on_the_prior_and_none_do_not_fail() -> None:
    heavy = stats.genpareto.rvs(0.45, size=400, random_state=np.random.default_rng(10))
    dependent, independent = (fit_tail(heavy, n_effective=n)[0] for n in (8.0, 400.0))
    assert 0.1 < dependent < independent
    shape, scale = fit_tail(np.empty(0), n_effective=0.0)
    assert 0.0 < shape < 1.0
    assert scale > 0.0


def test_normal_sound_gets_uniform_probabilities() -> None:
    calibration = calibrated(normal_scores(4000, seed=4))
    p_values = np.array([calibration.p_value(float(score)) for score in normal_scores(40_000, seed=5)])
    for level in (0.9, 0.5, 0.1, 0.03, 0.01):
        assert np.mean(p_values < level) == pytest.approx(level, rel=0.2)
    assert np.mean(p_values < 1e-3) < 2e-3


def test_forty_windows_keep_false_alarms_near_the_budget_on_average() -> None:
    rates = []
    for seed in range(40):
        calibration = calibrated(normal_scores(40, seed=seed))
        score = calibration.score_at(1e-3)
        rates.append(float(stats.gamma.sf(score, 4.0)))
    assert np.median(rates) < 3e-3
    assert np.mean(rates) < 1e-2


finite = st.floats(-1e30, 1e30, allow_nan=False)


@given(finite, finite)
def test_a_higher_score_is_never_more_probable(a: float, b: float) -> None:
    calibration = Calibration(TABLE)
    low, high = min(a, b), max(a, b)
    assert 0.0 < calibration.p_value(high) <= calibration.p_value(low) <= 1.0


@given(st.floats(-2.0, 1e6, allow_nan=False), st.floats(1e-3, 1e3))
def test_scores_that_differ_get_probabilities_that_differ(score: float, step: float) -> None:
    calibration = Calibration(TABLE)
    assert calibration.p_value(score + step * (1.0 + abs(score))) < calibration.p_value(score)


def test_absurd_scores_have_a_probability_above_zero() -> None:
    calibration = Calibration(TABLE)
    for score in (1e10, 1e38, 1e300, 1.7e308):
        assert 0.0 < calibration.p_value(score) < 1e-6
    assert 0.999 < calibration.p_value(-1e300) <= 1.0


@given(st.floats(1e-12, 0.99))
def test_score_at_inverts_p_value(p: float) -> None:
    calibration = Calibration(TABLE)
    assert calibration.p_value(calibration.score_at(p)) == pytest.approx(p, rel=1e-6)


def test_ties_and_constant_scores_are_calibrated_without_division_by_zero() -> None:
    for scores in (np.full(50, 3.0), np.repeat([1.0, 2.0, 5.0], 30), np.append(np.zeros(95), np.ones(5))):
        calibration = calibrated(scores)
        p_values = [calibration.p_value(score) for score in (-1.0, 0.0, 1.0, 1.5, 2.0, 3.0, 5.0, 6.0, 60.0)]
        assert all(math.isfinite(p) and 0.0 < p <= 1.0 for p in p_values)
        assert p_values == sorted(p_values, reverse=True)
        assert p_values[-1] < p_values[-2]


@pytest.mark.parametrize("memory", [0.0, 0.5, 0.9])
def test_correlated_windows_count_for_as_few_as_theory_says(memory: float) -> None:
    noise = np.random.default_rng(6).standard_normal(30_000)
    scores = np.empty_like(noise)
    last = 0.0
    for i, value in enumerate(noise):
        last = scores[i] = memory * last + value
    expected = len(scores) * (1.0 - memory) / (1.0 + memory)
    assert effective_number(scores, overlap_windows=1.0) == pytest.approx(expected, rel=0.2)


def test_overlapping_windows_never_count_for_more_than_those_that_do_not_overlap() -> None:
    noise = np.random.default_rng(7).standard_normal(4003)
    scores = np.convolve(noise, np.ones(4) / 4, mode="valid")
    n_effective = fit_calibration(scores, window_s=1.0, hop_s=0.25).n_effective
    assert n_effective == pytest.approx(1000, rel=0.2)
    assert n_effective <= 1000
    assert effective_number(np.full(10, 2.0), overlap_windows=1.0) == 1.0


def test_extrapolation_says_how_much_more_sound_it_would_take() -> None:
    calibration = calibrated(normal_scores(1000))
    assert calibration.extrapolation(0.5) == 1.0
    assert calibration.extrapolation(1e-5) == pytest.approx(1e5 / calibration.table.n_effective)


def test_a_budget_of_alarms_allows_for_windows_that_cross_together() -> None:
    random = np.random.default_rng(8)
    scores = random.exponential(size=80_000)
    scores[1:] = np.maximum(scores[1:], scores[:-1])  # every excursion lasts two windows
    calibration = calibrated(scores[:40_000], hop_s=0.5)
    assert calibration.table.cluster_windows == pytest.approx(2.0, abs=0.25)
    level = calibration.score_at(calibration.p_for_alarms(100.0, hop_s=0.5))
    above = scores[40_000:] > level
    n_alarms = int(np.count_nonzero(above[1:] & ~above[:-1]))
    assert n_alarms == pytest.approx(100.0 * 40_000 / 172_800, rel=0.5)


def test_too_few_or_broken_scores_are_refused() -> None:
    for scores in (np.ones(MIN_SCORES - 1), np.array([np.nan] * 20), np.array([np.inf] + [1.0] * 20), np.empty(0)):
        with pytest.raises(InputError, match="finite scores"):
            fit_calibration(scores, window_s=1.0, hop_s=0.5)


def test_a_table_survives_json_and_refuses_what_is_impossible() -> None:
    assert CalibrationTable.model_validate_json(TABLE.model_dump_json()) == TABLE
    for change in ({"tail_p": 0.0}, {"tail_shape": 1.0}, {"tail_scale": -1.0}, {"quantiles": [0.0]}, {"hop_s": 0.0}):
        with pytest.raises(ValidationError):
            CalibrationTable.model_validate(TABLE.model_dump() | change)


TABLE = fit_calibration(normal_scores(2000, seed=9), window_s=1.0, hop_s=0.5)
