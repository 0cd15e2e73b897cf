"""A recipe says everything, in a file that reads back the same, and nothing that is not understood passes."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeasd.errors import SettingsError
from edgeasd_train.debug import debug_recipe
from edgeasd_train.detectors import DETECTORS, build_detector
from edgeasd_train.recipe import Recipe, dump_recipe, load_recipe, recipe_names, resolve_window


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_that_ships_loads_and_names_a_detector_that_takes_its_options(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    detector, spec = build_detector(resolve_window(recipe, 10.0))
    assert recipe.detector.name in DETECTORS
    assert spec.sample_rate_hz == recipe.data.sample_rate_hz
    assert "score" in detector.outputs


def test_the_fixed_name_of_the_default_is_there() -> None:
    assert "bird-ae" in recipe_names()
    assert load_recipe() == load_recipe("bird-ae")


def test_overrides_are_typed_nested_and_applied_in_order() -> None:
    recipe = load_recipe(
        overrides=["fit.epochs=3", "fit.epochs=4", "data.end_s=97.5", "features.rows=[8, 32]", "data.max_files=null",
                   "data.spans={'a*.wav': {start_s: 1, end_s: 2}}", "detector.options.variant=nearest"]
    )  # fmt: skip
    assert recipe.fit.epochs == 4
    assert recipe.data.span_of(Path("x.wav")).end_s == 97.5
    assert recipe.data.span_of(Path("dir/a1.wav")).end_s == 2.0
    assert recipe.features.rows == (8, 32)
    assert recipe.detector.options["variant"] == "nearest"


def test_the_resolved_recipe_reads_back_the_same(tmp_path: Path) -> None:
    recipe = load_recipe(overrides=["seed=7", "data.end_s=90", "features.n_mels=80"])
    path = tmp_path / "resolved.yaml"
    path.write_text(dump_recipe(recipe))
    assert load_recipe(str(path)) == recipe


def test_a_front_end_without_a_rate_follows_the_data() -> None:
    recipe = load_recipe(overrides=["data.sample_rate_hz=32000", "data.hop_s=0.1"])
    assert recipe.features.sample_rate_hz == 32000


def test_a_window_of_a_clip_is_as_long_as_the_shortest_one_and_whole_mel_frames() -> None:
    recipe = load_recipe(overrides=["data.window_s=clip"])
    resolved = resolve_window(recipe, 9.99)
    mel = resolved.features
    n_frames = mel.n_frames(int(9.99 * mel.sample_rate_hz))
    assert resolved.data.window_frames == (n_frames - 1) * mel.hop_frames + mel.n_fft <= 9.99 * mel.sample_rate_hz
    assert resolve_window(resolved, 3.0) == resolved
    with pytest.raises(SettingsError, match="shorter than one FFT"):
        resolve_window(recipe, 0.01)


def test_a_recipe_for_debugging_is_small_and_still_valid() -> None:
    recipe = load_recipe(overrides=["data.start_s=5", "data.max_files=7", "fit.epochs=300", "fit.min_steps=9999"])
    small = debug_recipe(recipe)
    assert Recipe.model_validate(small.model_dump()) == small
    assert (small.fit.epochs, small.fit.min_steps, small.prune.every_epochs) == (2, 1, 1)
    assert (small.data.max_files, small.data.end_s) == (7, 25.0)
    assert small.features == recipe.features
    assert small.detector == recipe.detector


def test_a_crop_keeps_as_many_rows_higher_up() -> None:
    for crop, n_mels, rows in (("second_half", 128, (64, 128)), ("third_quarter", 256, (128, 192))):
        _, spec = build_detector(load_recipe(overrides=[f"detector.options.crop={crop}"]))
        assert (spec.n_mels, spec.rows, spec.n_rows) == (n_mels, rows, 64)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("fit.bogus=3", "fit.bogus: Extra"),
        ("bogus.deep.key=3", "bogus: Extra"),
        ("features.colour=red", "features: unknown key colour"),
        ("features.n_fft=1099511627776", "n_fft: 1099511627776 is above"),
        ("features.n_mels=0", "n_mels: 0 is below 1"),
        ("features.floor=.nan", "features.floor"),
        ("features.sample_rate_hz=8000", "8000 is not the data's 16000"),
        ("fit.epochs=many", "fit.epochs"),
        ("fit.learning_rate=-1", "fit.learning_rate"),
        ("fit.learning_rate=.inf", "fit.learning_rate"),
        ("fit.max_steps=3", "max_steps 3 is below"),
        ("data.window_s=0.01", "shorter than one FFT"),
        ("data.window_s=1e9", "data.window_s"),
        ("data.hop_s=0.03", "no whole number of mel hops"),
        ("data.held_out=1", "data.held_out"),
        ("data.end_s=-1", "end_s -1 is not after"),
        ("name=Not A Name", "name"),
        ("seed=-1", "seed"),
        ("fit", "not of the form"),
        ("=3", "not of the form"),
        ("fit..epochs=3", "not of the form"),
        ("seed.x=3", "seed is a value, not a group"),
        ("fit.epochs=[", "not YAML"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(override: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says) as caught:
        load_recipe(overrides=[override])
    assert caught.value.exit_code == 78
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("detector.name=oracle", "oracle is none of bird-ae"),
        ("detector.options.wings=2", "wings: Extra"),
        ("detector.options.bottleneck=1", "bottleneck"),
    ],
)
def test_a_detector_that_is_not_there_or_does_not_know_its_options_is_refused(override: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        build_detector(load_recipe(overrides=[override]))


def test_a_crop_of_rows_that_are_cropped_already_is_refused() -> None:
    with pytest.raises(SettingsError, match="exclude each other"):
        build_detector(load_recipe(overrides=["detector.options.crop=second_half", "features.rows=[0, 8]"]))


def test_files_that_are_no_recipes_are_refused(tmp_path: Path) -> None:
    for content, says in (
        (b"- a\n", "not a mapping"),
        (b"a: [", "not YAML"),
        (b"\xff\xfe\x00", "cannot be read|not YAML"),
    ):
        path = tmp_path / "r.yaml"
        path.write_bytes(content)
        with pytest.raises(SettingsError, match=says) as caught:
            load_recipe(str(path))
        assert "\n" not in str(caught.value)
    with pytest.raises(SettingsError, match="cannot be read"):
        load_recipe(str(tmp_path / "none.yaml"))
    with pytest.raises(SettingsError, match=r"neither a \.yaml file nor one of those known: .*bird-ae"):
        load_recipe("../bird-ae")
