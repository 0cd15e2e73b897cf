"""Every recipe that ships trains, exports, calibrates, and runs through the node's line unchanged."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile

from edgeasd.bundle import read_bundle
from edgeasd.cli import main
from edgeasd.engine import open_engine
from edgeasd_train.detectors import DETECTORS
from edgeasd_train.listen import hear
from edgeasd_train.recipe import load_recipe, recipe_names
from edgeasd_train.train import train
from tests.conftest import MakeSoundscape

RATE_HZ = 16000
N_CLIPS, CLIP_S = 20, 5.0
EVENT = (6.0, 9.0)
WITH_PROGRAM = frozenset({"bird-ae", "mahalanobis"})
"""Recipes that are asked for a torch program too: one of each kind of detector."""


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory, make_soundscape: MakeSoundscape) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for i in range(N_CLIPS):
        soundfile.write(folder / f"{i:02d}.wav", make_soundscape(CLIP_S, seed=i).samples, RATE_HZ)
    return folder


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, make_soundscape: MakeSoundscape) -> Path:
    path = tmp_path_factory.mktemp("scene") / "scene.wav"
    soundfile.write(path, make_soundscape(12.0, seed=99, events=(EVENT,)).samples, RATE_HZ)
    return path


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_gives_a_bundle_that_the_node_replays_with_default_settings(
    name: str, clips: Path, scene: Path, tmp_path: Path, bare_environment: None
) -> None:
    output = tmp_path / f"{name}.edgeasd"
    recipe = load_recipe(name, overrides=["export.program=true"] if name in WITH_PROGRAM else [])
    report = train([clips], output=output, recipe=recipe, cache_dir=tmp_path / "cache", debug=True)
    bundle = read_bundle(output)
    assert (bundle.program is not None) == (name in WITH_PROGRAM)
    if bundle.program is not None:
        open_engine(bundle, "torch").close()
    engine = open_engine(bundle, "onnx")  # with it the golden test
    assert bundle.manifest.detector == load_recipe(name).detector.name
    assert bundle.manifest.outputs == ["score", "embedding", "residual", "reconstruction"]
    heard = hear(scene, bundle, engine, hop_s=0.5, wanted={"residual", "reconstruction"})
    assert np.isfinite(heard.outputs.score).all()
    assert heard.log_mel is not None
    assert heard.outputs.reconstruction is not None
    assert heard.outputs.reconstruction.shape == heard.log_mel.shape
    assert heard.outputs.residual is not None
    assert heard.outputs.residual.sum(axis=1) == pytest.approx(1.0, abs=1e-3)
    scores = tmp_path / "scores.csv"
    with pytest.raises(SystemExit) as ended:
        main(["replay", str(scene), "--bundle", str(output), "--out", str(scores)])
    assert ended.value.code == 0
    with scores.open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    window_s = bundle.manifest.window_frames / bundle.manifest.sample_rate_hz
    assert len(rows) == pytest.approx((12.0 - window_s) / 0.5, abs=2)
    assert all(row["model"] for row in rows if row["valid"] == "true")
    assert report.debug


def test_every_detector_has_a_recipe() -> None:
    assert {load_recipe(name).detector.name for name in recipe_names()} == set(DETECTORS)
