"""Areas under ROC curves, against scikit-learn, and the weights of the bootstrap."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn import metrics

from edgeasd_train.judging.roc import areas, auc, bootstrap_weights, curve, rank


@pytest.mark.parametrize("max_fpr", [1.0, 0.5, 0.1, 0.01])
def test_areas_are_those_of_scikit_learn(max_fpr: float) -> None:
    random = np.random.default_rng(0)
    for n in (5, 10, 41, 300):
        for decimals in (0, 1, 8):  # many ties, some, none
            labels = np.append(random.integers(0, 2, n), [0, 1])
            scores = np.round(random.normal(labels * random.random()), decimals)
            expected = metrics.roc_auc_score(labels, scores, max_fpr=None if max_fpr == 1.0 else max_fpr)
            assert auc(labels, scores, max_fpr=max_fpr) == pytest.approx(expected, abs=1e-12)


def test_the_curve_is_that_of_scikit_learn() -> None:
    random = np.random.default_rng(1)
    labels, scores = random.integers(0, 2, 80), np.round(random.random(80), 1)
    fpr, tpr, _ = metrics.roc_curve(labels, scores, drop_intermediate=False)
    ours = curve(labels, scores)
    np.testing.assert_allclose(ours[0], fpr, atol=1e-15)
    np.testing.assert_allclose(ours[1], tpr, atol=1e-15)


def test_a_weighting_is_worth_so_many_copies() -> None:
    random = np.random.default_rng(2)
    labels, scores = np.arange(50) % 2, np.round(random.random(50), 1)
    weights = bootstrap_weights(labels, n_draws=20, random=random)
    found = areas(rank(scores), normal=weights * (labels == 0), anomaly=weights * (labels == 1), max_fpr=0.1)
    for row, area in zip(weights, found.tolist(), strict=True):
        expected = metrics.roc_auc_score(np.repeat(labels, row), np.repeat(scores, row), max_fpr=0.1)
        assert area == pytest.approx(expected, abs=1e-12)


def test_draws_keep_to_their_stratum() -> None:
    strata = np.array([0] * 10 + [5] * 3 + [-2])
    weights = bootstrap_weights(strata, n_draws=500, random=np.random.default_rng(3))
    assert weights[0].tolist() == [1] * 14
    assert (weights[:, :10].sum(axis=1) == 10).all()
    assert (weights[:, 10:13].sum(axis=1) == 3).all()
    assert (weights[:, 13] == 1).all()
    assert weights[1:, 0].mean() == pytest.approx(1.0, abs=0.15)


def test_the_area_of_one_class_is_unknown() -> None:
    assert math.isnan(auc([0, 0], [1.0, 2.0]))
    assert math.isnan(auc([1], [1.0]))
