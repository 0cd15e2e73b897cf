"""Which bands carry a score."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeasd.records import Band
from edgeasd.scoring.explain import MAX_BANDS, strongest_bands


def _edges(n_bands: int) -> NDArray[np.float64]:
    low = 100.0 * np.arange(n_bands)
    return np.stack([low, low + 100.0], axis=1)


def _bands(*weight: float) -> tuple[Band, ...]:
    return strongest_bands(np.array(weight, np.float32), _edges(len(weight)))


def test_one_band_explains_all() -> None:
    assert _bands(0, 0, 3, 0) == (Band(200.0, 300.0, 1.0),)


def test_neighbours_are_one_band() -> None:
    assert _bands(0, 4, 4, 0, 0) == (Band(100.0, 300.0, 1.0),)


def test_the_strongest_comes_first_and_the_rest_is_left_out() -> None:
    # 50, 30: together 0.8, enough; what lies between them is not named.
    assert _bands(30, 0, 50, 10, 10) == (Band(200.0, 300.0, 0.5), Band(0.0, 100.0, 0.3))


def test_bands_are_named_until_they_explain_enough() -> None:
    assert sum(band.share for band in _bands(40, 0, 35, 0, 15, 0, 10)) == pytest.approx(0.9)


def test_a_run_of_weak_neighbours_outweighs_a_strong_band() -> None:
    first, second = _bands(40, 0, 30, 30, 0)
    assert (first.low_hz, first.high_hz) == (200.0, 400.0)
    assert first.share == pytest.approx(0.6)
    assert second == Band(0.0, 100.0, 0.4)


def test_there_are_never_more_than_four() -> None:
    found = _bands(*[1.0 if index % 2 else 0.0 for index in range(20)])
    assert len(found) == MAX_BANDS == 4
    assert all(band.share == pytest.approx(0.1) for band in found)


@pytest.mark.parametrize("weight", [[0.0, 0.0, 0.0], [float("nan"), 1.0, 1.0]])
def test_what_has_no_weight_explains_nothing(weight: list[float]) -> None:
    assert _bands(*weight) == ()


def test_shares_do_not_depend_on_the_unit() -> None:
    weight = np.random.default_rng(3).random(32).astype(np.float32)
    edges = _edges(32)
    found = strongest_bands(weight, edges)
    assert found == strongest_bands(weight * np.float32(1024.0), edges)
    assert all(0.0 < band.share <= 1.0 for band in found)
    assert [band.share for band in found] == sorted((band.share for band in found), reverse=True)


def test_even_weight_is_one_wide_band() -> None:
    (band,) = strongest_bands(np.ones(5, np.float32), _edges(5))
    assert band.high_hz - band.low_hz == 400.0
    assert band.share == pytest.approx(0.8)
