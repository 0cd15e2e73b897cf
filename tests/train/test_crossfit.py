"""Calibration without holding anything out for good: no window is judged by a detector that heard its recording."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from edgeasd.bundle import read_bundle
from edgeasd_train.corpus.windows import Stretch, Stretches, WindowIndex
from edgeasd_train.crossfit import by_recording
from edgeasd_train.recipe import load_recipe
from edgeasd_train.train import train
from tests.conftest import MakeSoundscape


class Windows:
    """What a cut asks of windows."""

    def __init__(self, stretches: list[Stretch]) -> None:
        self.index = WindowIndex(Stretches.of(stretches), window_frames=100, hop_frames=50)

    def __len__(self) -> int:
        return len(self.index)


def test_of_many_recordings_whole_ones_are_left_out() -> None:
    windows = Windows([Stretch(sound, 0, 400) for sound in range(3, 15)])
    folds = by_recording(windows, n_folds=5)  # type: ignore[arg-type]
    sounds = windows.index.locate(np.arange(len(windows)))[0]
    assert all(len(set(folds[sounds == sound].tolist())) == 1 for sound in range(3, 15))
    assert sorted(set(folds.tolist())) == [0, 1, 2, 3, 4]


def test_of_few_recordings_parts_in_time_are_left_out() -> None:
    windows = Windows([Stretch(0, 0, 1000), Stretch(1, 200, 700)])
    folds = by_recording(windows, n_folds=5)  # type: ignore[arg-type]
    assert (np.diff(folds[:19]) >= 0).all()
    assert set(folds[:19].tolist()) == {0, 1, 2, 3, 4}


def test_of_unequal_recordings_none_is_left_out_whole() -> None:
    windows = Windows([Stretch(0, 0, 9000), *(Stretch(sound, 0, 100) for sound in range(1, 12))])
    folds = by_recording(windows, n_folds=5)  # type: ignore[arg-type]
    assert set(folds[:179].tolist()) == {0, 1, 2, 3, 4}


def test_an_odd_recording_scores_higher_unseen_than_it_would_seen(
    tmp_path: Path, make_soundscape: MakeSoundscape
) -> None:
    folder = tmp_path / "hall"
    folder.mkdir()
    for i in range(12):
        samples = make_soundscape(6.0, seed=i).samples
        if i == 7:  # one machine that whistles
            samples = samples + (0.05 * np.sin(2 * np.pi * 3000.0 * np.arange(len(samples)) / 16000)).astype(np.float32)
        soundfile.write(folder / f"{i:02d}.wav", samples, 16000)
    recipe = load_recipe("mahalanobis")
    report = train([folder], output=tmp_path / "hall.edgeasd", recipe=recipe, cache_dir=tmp_path / "cache")
    fitted, manifest = report.fitted, read_bundle(report.output).manifest
    assert fitted.n_folds == 5
    assert fitted.unseen_scores is not None
    assert len(fitted.unseen_scores) == report.n_held_out_windows == manifest.calibration.n_scores == 12 * 11
    odd = fitted.unseen_scores.reshape(12, 11).mean(axis=1)
    assert int(odd.argmax()) == 7
    assert odd[7] > 3.0 * np.median(odd)
    assert fitted.held_out_loss > 1.2 * fitted.train_loss  # seen, it is part of what is normal
    assert manifest.calibration.n_effective <= 12 * 6
    assert "5 parts left out in turn" in read_bundle(report.output).card


def test_a_list_of_what_to_hold_out_is_kept_to(tmp_path: Path, make_soundscape: MakeSoundscape) -> None:
    for i in range(4):
        soundfile.write(tmp_path / f"{i}.wav", make_soundscape(8.0, seed=i).samples, 16000)
    (tmp_path / "held.txt").write_text("3.wav\n")
    recipe = load_recipe("mahalanobis", overrides=[f"data.held_out_list={tmp_path / 'held.txt'}"])
    report = train([tmp_path], output=tmp_path / "x.edgeasd", recipe=recipe, cache_dir=tmp_path / "cache")
    assert report.fitted.n_folds == 0
    assert report.fitted.unseen_scores is None
    assert (report.n_train_windows, report.n_held_out_windows) == (3 * 15, 15)


@pytest.mark.parametrize("share", [0.5, 0.1])
def test_the_share_to_hold_out_says_in_how_many_parts(
    tmp_path: Path, make_soundscape: MakeSoundscape, share: float
) -> None:
    soundfile.write(tmp_path / "hall.wav", make_soundscape(30.0).samples, 16000)
    recipe = load_recipe("mahalanobis", overrides=[f"data.held_out={share}"])
    report = train([tmp_path], output=tmp_path / "x.edgeasd", recipe=recipe, cache_dir=tmp_path / "cache")
    assert report.fitted.n_folds == round(1 / share)
