"""The threshold of clips: from which scores of normal clips, and by which rule."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy import stats

from edgeasd.bundle import Manifest
from edgeasd_train.corpus import open_corpus
from edgeasd_train.judging.threshold import fit_threshold, held_out_clips
from edgeasd_train.recipe import DataRecipe
from tests.small_bundle import small_manifest, small_table

RATE_HZ = 8000


def test_the_threshold_is_the_baselines_gamma_quantile() -> None:
    scores = np.random.default_rng(0).gamma(4.0, 0.5, 200) + 1.0
    found = fit_threshold(scores, small_table(), unseen=None)
    assert (found.rule, found.n_clips) == ("gamma", 200)
    assert found.value == stats.gamma.ppf(0.9, *stats.gamma.fit(scores))
    assert found.value == pytest.approx(1.0 + 0.5 * stats.gamma.ppf(0.9, 4.0), rel=0.1)


def test_where_no_gamma_fits_the_scores_own_quantile_counts() -> None:
    found = fit_threshold(np.full(50, 3.0), small_table(), unseen=None)
    assert (found.rule, found.value) == ("quantile", 3.0)


def test_few_training_clips_leave_it_to_the_calibration() -> None:
    table = small_table()
    found = fit_threshold(np.ones(9), table, unseen=None)
    assert (found.rule, found.n_clips) == ("calibration", 0)
    assert found.value == pytest.approx(table.quantiles[230], rel=0.02)  # 230 / 256 is 0.9


def test_only_clips_unseen_in_training_count_where_they_are_known() -> None:
    scores = np.append(np.linspace(1.0, 2.0, 90), np.linspace(5.0, 6.0, 30))
    unseen = scores > 4.0
    found = fit_threshold(scores, small_table(), unseen=unseen)
    assert (found.n_clips, found.unseen) == (30, True)
    assert 5.5 < found.value < 6.0
    learned = fit_threshold(scores, small_table(), unseen=None)
    assert (learned.n_clips, learned.unseen) == (120, False)


def _manifest(*, train_s: float, held_out_s: float) -> Manifest:
    manifest = small_manifest()
    said = {"recipe": {"data": {"held_out": 0.2}}, "metrics": {"train_s": train_s, "held_out_s": held_out_s}}
    return manifest.model_copy(update={"provenance": manifest.provenance.model_copy(update=said)})


def test_clips_held_out_are_known_where_the_bundle_accounts_for_them() -> None:
    n_frames = np.full(20, 2 * RATE_HZ)
    held_out = held_out_clips(n_frames, _manifest(train_s=32.0, held_out_s=8.0))
    assert held_out is not None
    assert np.flatnonzero(held_out).tolist() == [2, 7, 12, 17]  # one in five, as a training holds them out
    assert held_out_clips(n_frames, _manifest(train_s=31.0, held_out_s=8.0)) is None
    assert held_out_clips(n_frames, _manifest(train_s=32.0, held_out_s=9.0)) is None
    assert held_out_clips(n_frames[:9], _manifest(train_s=14.4, held_out_s=3.6)) is None
    assert held_out_clips(n_frames, small_manifest()) is None


def test_the_clips_held_out_are_those_of_a_training(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    folder = tmp_path / "fan" / "train"
    folder.mkdir(parents=True)
    for i in range(23):
        sound = 0.1 * random.standard_normal(RATE_HZ + 10 * i)
        soundfile.write(folder / f"section_00_source_train_normal_{i:04d}.wav", sound, RATE_HZ)
    data = DataRecipe(paths=[tmp_path / "fan"], sample_rate_hz=RATE_HZ, window_s=0.064)
    corpus = open_corpus(data, cache_dir=tmp_path / "cache", grid_frames=64)
    manifest = _manifest(train_s=corpus.train_s, held_out_s=corpus.held_out_s)
    held_out = held_out_clips(RATE_HZ + 10 * np.arange(23), manifest)
    assert held_out is not None
    assert np.flatnonzero(held_out).tolist() == corpus.held_out.sounds.tolist()
    assert held_out.sum() == 5
