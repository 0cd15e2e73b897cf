"""Recordings become windows: each decoded once, cut where arithmetic says, and bad files left out by name."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from edgeasd.errors import CannotWriteError, InputError, SettingsError
from edgeasd.features.mel import MelFrontEnd, MelSpec
from edgeasd.records import FloatArray
from edgeasd_train.corpus import Corpus, Stretch, WindowIndex, discover, open_corpus, write_bad_files
from edgeasd_train.corpus.cache import AudioCache, BadFile, Sound
from edgeasd_train.corpus.discover import Recording
from edgeasd_train.corpus.windows import hold_out
from edgeasd_train.features import LogMelCache, LogMelWindows
from edgeasd_train.recipe import DataRecipe

RATE_HZ = 16000
GRID = 400


def noise(duration_s: float, *, seed: int = 0, rate_hz: int = RATE_HZ) -> FloatArray:
    random = np.random.default_rng(seed)
    return (0.1 * random.standard_normal(round(duration_s * rate_hz))).astype(np.float32)


def write(path: Path, samples: FloatArray, *, rate_hz: int = RATE_HZ, subtype: str = "PCM_16") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate_hz, subtype=subtype)
    return path


def load(path: Path, cache: Path, *, rate_hz: int = RATE_HZ) -> Sound | BadFile:
    return next(AudioCache(cache, rate_hz=rate_hz).load([Recording(path, named=True)]))


def sound_of(path: Path, cache: Path, *, rate_hz: int = RATE_HZ) -> Sound:
    loaded = load(path, cache, rate_hz=rate_hz)
    assert isinstance(loaded, Sound), loaded
    return loaded


def corpus_of(paths: list[Path], cache: Path, recipe: DataRecipe | None = None) -> Corpus:
    return open_corpus(discover(paths), recipe or DataRecipe(), cache_dir=cache, grid_frames=GRID)


def test_recordings_are_found_once_sorted_and_hidden_files_are_not(tmp_path: Path) -> None:
    for name in ("b/two.flac", "a/one.WAV", "a/three.ogg", "c/notes.txt", "c/._one.wav", ".trash/old.wav", "d/x.mp3"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    found = discover([tmp_path, tmp_path / "a" / "one.WAV"])
    assert [str(recording.path.relative_to(tmp_path)) for recording in found] == [
        "a/one.WAV", "a/three.ogg", "b/two.flac",
    ]  # fmt: skip
    assert [r.path.name for r in discover([tmp_path], glob="a/*")] == ["one.WAV", "three.ogg"]
    assert discover([tmp_path / "d" / "x.mp3"]) == [Recording(tmp_path / "d" / "x.mp3", named=True)]


def test_a_cap_on_files_spreads_over_the_list(tmp_path: Path) -> None:
    for i in range(20):
        (tmp_path / f"{i:02}.wav").write_bytes(b"")
    assert [r.path.stem for r in discover([tmp_path], max_files=4)] == ["00", "05", "10", "15"]


def test_nothing_to_read_is_an_input_error(tmp_path: Path) -> None:
    for paths in ([], [tmp_path], [tmp_path / "none"]):
        with pytest.raises(InputError) as caught:
            discover(paths)
        assert caught.value.exit_code == 66
    with pytest.raises(SettingsError, match=r"data\.glob"):
        discover([tmp_path], glob="/etc/*")


def test_sixteen_bit_sound_at_the_models_rate_arrives_to_the_bit(tmp_path: Path) -> None:
    samples = np.random.default_rng(1).integers(-32768, 32767, 300_000, dtype=np.int16)
    for name in ("a.wav", "a.flac"):
        soundfile.write(tmp_path / name, samples, RATE_HZ)
        sound = sound_of(tmp_path / name, tmp_path / "cache")
        assert np.array_equal(sound.samples(), samples)
    assert isinstance(sound.samples(), np.memmap)


def test_channels_are_averaged_and_float_sound_beyond_full_scale_is_clipped(tmp_path: Path) -> None:
    left, right = np.full(1000, 0.5, np.float32), np.full(1000, -0.25, np.float32)
    stereo = sound_of(write(tmp_path / "s.wav", np.stack([left, right], axis=1)), tmp_path / "cache")
    assert set(stereo.samples().tolist()) == {4096}
    loud = sound_of(write(tmp_path / "l.wav", np.float32(3) * left, subtype="FLOAT"), tmp_path / "cache")
    assert set(loud.samples().tolist()) == {32767}


@pytest.mark.parametrize("rate_hz", [8000, 22050, 44100, 48000])
def test_another_rate_is_resampled_without_moving_the_sound(tmp_path: Path, rate_hz: int) -> None:
    duration_s = 20.0  # several decoder blocks
    time_s = np.arange(round(duration_s * rate_hz)) / rate_hz
    tone = (0.5 * np.sin(2 * np.pi * 1000.0 * time_s)).astype(np.float32)
    sound = sound_of(write(tmp_path / "t.wav", tone, rate_hz=rate_hz), tmp_path / "cache")
    assert sound.n_frames == pytest.approx(duration_s * RATE_HZ, abs=2)
    middle = slice(RATE_HZ, -RATE_HZ)
    expected = 0.5 * np.sin(2 * np.pi * 1000.0 * np.arange(sound.n_frames) / RATE_HZ)
    assert np.abs(sound.samples()[middle] / 32768.0 - expected[middle]).max() < 2e-3


def test_a_recording_is_decoded_once_and_again_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, cache = write(tmp_path / "a.wav", noise(2.0)), tmp_path / "cache"
    first = sound_of(path, cache)
    with monkeypatch.context() as patch:
        patch.setattr(soundfile, "SoundFile", lambda *_: pytest.fail("decoded again"))
        assert sound_of(path, cache) == first
    write(path, noise(2.0, seed=1))
    os.utime(path, (1, 1))
    changed = sound_of(path, cache)
    assert changed.key != first.key
    assert changed.sha256 != first.sha256
    assert sound_of(path, cache, rate_hz=8000).n_frames == RATE_HZ


def test_a_cache_entry_that_a_crash_left_half_done_is_made_again(tmp_path: Path) -> None:
    path, cache = write(tmp_path / "a.wav", noise(2.0)), tmp_path / "cache"
    whole = sound_of(path, cache)
    samples, facts_path = np.array(whole.samples()), whole.data_path.with_suffix(".json")
    for spoil in (facts_path.unlink, lambda: facts_path.write_bytes(b""), lambda: whole.data_path.write_bytes(b"12")):
        spoil()
        assert np.array_equal(sound_of(path, cache).samples(), samples)
    assert not list(cache.rglob(".partial-*"))
    log_mel_cache = LogMelCache(cache, MelSpec())
    frames = np.array(log_mel_cache.frames(whole))
    next(cache.rglob("*.f32")).write_bytes(b"")
    assert np.array_equal(log_mel_cache.frames(whole), frames)


def test_a_disk_that_is_full_is_not_blamed_on_the_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.wav", noise(2.0))

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fdopen", full_disk)
    with pytest.raises(CannotWriteError, match="No space left"):
        load(path, tmp_path / "cache")


def spoiled(tmp_path: Path) -> dict[str, Path]:
    """Return files that hold no usable sound, each in its own way."""
    files = {
        "empty": b"",
        "text": b"not sound at all" * 100,
        "no frames": write(tmp_path / "header.wav", noise(0.0)).read_bytes(),
        "not finite": write(tmp_path / "nan.wav", np.full(1000, np.nan, np.float32), subtype="FLOAT").read_bytes(),
        "cut flac": write(tmp_path / "whole.flac", noise(1.0)).read_bytes()[:60],
    }
    bad = tmp_path / "bad"
    bad.mkdir()
    for i, data in enumerate(files.values()):
        (bad / f"{i}.wav").write_bytes(data)
    return dict(zip(files, sorted(bad.iterdir()), strict=True))


def test_files_that_hold_no_sound_are_told_apart_by_reason(tmp_path: Path) -> None:
    reasons = {}
    for name, path in spoiled(tmp_path).items():
        loaded = load(path, tmp_path / "cache")
        assert isinstance(loaded, BadFile), name
        reasons[name] = loaded.reason
        assert loaded.reason
        assert "\n" not in loaded.reason
    assert "no sound" in reasons["no frames"]
    assert "not finite" in reasons["not finite"]


def test_one_bad_file_among_good_ones_is_listed_and_left_out(tmp_path: Path) -> None:
    for i in range(4):
        write(tmp_path / "in" / f"{i}.wav", noise(3.0, seed=i))
    (tmp_path / "in" / "broken.wav").write_bytes(b"RIFF")
    corpus = corpus_of([tmp_path / "in"], tmp_path / "cache")
    assert len(corpus.sounds) == 4
    assert [bad.path.name for bad in corpus.bad_files] == ["broken.wav"]
    write_bad_files(tmp_path / "bad.csv", corpus.bad_files)
    assert (tmp_path / "bad.csv").read_text().splitlines()[0] == "file,reason"
    assert "broken.wav" in (tmp_path / "bad.csv").read_text()


def test_more_bad_files_than_one_in_a_thousand_stop_the_run_with_the_list(tmp_path: Path) -> None:
    for i in range(4):
        write(tmp_path / "in" / f"{i}.wav", noise(3.0, seed=i))
    for name in ("broken.wav", "worse.wav"):
        (tmp_path / "in" / name).write_bytes(b"RIFF")
    with pytest.raises(InputError, match=r"2 of 6 recordings.*broken\.wav.*worse\.wav"):
        corpus_of([tmp_path / "in"], tmp_path / "cache")


def test_a_single_file_that_is_bad_is_an_input_error_that_says_why(tmp_path: Path) -> None:
    path = spoiled(tmp_path)["not finite"]
    with pytest.raises(InputError, match="not finite") as caught:
        corpus_of([path], tmp_path / "cache")
    assert caught.value.exit_code == 66


stretches_strategy = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 50), st.integers(0, 4000)).map(
        lambda t: Stretch(t[0], t[1] * GRID, t[1] * GRID + t[2])
    ),
    min_size=1,
    max_size=12,
)


@given(stretches_strategy, st.integers(1, 900), st.integers(1, 700))
def test_window_numbers_count_what_a_loop_would(stretches: list[Stretch], window: int, hop: int) -> None:
    expected = [
        (stretch.sound, first)
        for stretch in stretches
        for first in range(stretch.first_frame, stretch.end_frame - window + 1, hop)
    ]
    index = WindowIndex(stretches, window_frames=window, hop_frames=hop)
    assert len(index) == len(expected)
    sounds, firsts = index.locate(np.arange(len(index), dtype=np.int64))
    assert list(zip(sounds.tolist(), firsts.tolist(), strict=True)) == expected


@given(stretches_strategy, st.floats(0.01, 0.5))
def test_held_out_sound_is_never_trained_on_and_nothing_is_lost(stretches: list[Stretch], share: float) -> None:
    train, held_out = hold_out(stretches, share=share, grid_frames=GRID)

    def frames(parts: list[Stretch]) -> list[tuple[int, int, int]]:
        return sorted((part.sound, part.first_frame, part.end_frame) for part in parts)

    if len(stretches) >= 10:
        assert frames([*train, *held_out]) == frames(stretches)
        assert len(held_out) == max(1, round(share * len(stretches)))
    else:
        for whole, left, right in zip(stretches, train, held_out, strict=True):
            assert left.end_frame == right.first_frame
            assert (left.first_frame, right.end_frame) == (whole.first_frame, whole.end_frame)
            assert right.first_frame % GRID == 0
            assert right.first_frame <= right.end_frame
    assert hold_out(stretches, share=share, grid_frames=GRID) == (train, held_out)


def test_only_the_part_a_recipe_names_is_used(tmp_path: Path) -> None:
    for name in ("a.wav", "b.wav"):
        write(tmp_path / name, noise(10.0))
    recipe = DataRecipe.model_validate({"start_s": 1.01, "end_s": 9, "spans": {"b*": {"end_s": 4.0}}, "held_out": 0.25})
    corpus = corpus_of([tmp_path / "a.wav", tmp_path / "b.wav"], tmp_path / "cache", recipe)
    bounds = [(s.first_frame, s.end_frame) for s in (corpus.train[0], corpus.held_out[0], corpus.held_out[1])]
    assert bounds[0][0] == 16400  # the next point of the mel grid
    assert bounds[0][1] == bounds[1][0]
    assert bounds[1][1] == 9 * RATE_HZ
    assert bounds[2][1] == 4 * RATE_HZ
    assert corpus.train_s + corpus.held_out_s == pytest.approx(9.0 - 1.025 + 4.0)


def test_the_digest_follows_the_sound_and_the_split_not_the_names(tmp_path: Path) -> None:
    digests = []
    for name, seed, end_s in (("a.wav", 0, 8), ("other.wav", 0, 8), ("a2.wav", 1, 8), ("a3.wav", 0, 7)):
        path = write(tmp_path / name, noise(9.0, seed=seed))
        digests.append(corpus_of([path], tmp_path / "cache", DataRecipe(end_s=end_s)).sha256())
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


@pytest.fixture
def small_corpus(tmp_path: Path) -> Corpus:
    for i, duration_s in enumerate((150.0, 2.0, 3.3)):  # the first is longer than one chunk of mel frames
        write(tmp_path / f"{i}.wav", noise(duration_s, seed=i))
    return corpus_of([tmp_path / f"{i}.wav" for i in range(3)], tmp_path / "cache", DataRecipe(start_s=0.1))


def test_windows_for_training_hold_what_the_node_would_hear(small_corpus: Corpus, tmp_path: Path) -> None:
    spec = MelSpec()
    index = WindowIndex(small_corpus.train, window_frames=RATE_HZ, hop_frames=4 * GRID)
    windows = LogMelWindows(small_corpus.sounds, index, LogMelCache(tmp_path / "cache", spec), spec=spec)
    numbers = np.random.default_rng(0).integers(0, len(index), 40)
    batch = windows.__getitems__(numbers.tolist())
    assert batch["log_mel"].shape == (40, 64, 38)
    assert batch["index"].tolist() == numbers.tolist()
    sounds, firsts = index.locate(numbers)
    front_end = MelFrontEnd(spec)
    for log_mel, sound, first in zip(batch["log_mel"].numpy(), sounds, firsts, strict=True):
        samples = small_corpus.sounds[sound].samples()[first : first + RATE_HZ] / np.float32(32768.0)
        assert np.abs(log_mel - front_end.window_log_mel(samples)).max() <= 1e-3


def test_log_mel_is_computed_once_and_mapped(
    small_corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = small_corpus.sounds[0]
    first = LogMelCache(tmp_path / "cache", MelSpec()).frames(sound)
    assert isinstance(first, np.memmap)
    assert first.shape == (MelSpec().n_frames(sound.n_frames), 64)
    refuse: Callable[..., None] = lambda *_: pytest.fail("computed again")  # noqa: E731
    again = LogMelCache(tmp_path / "cache", MelSpec())
    monkeypatch.setattr(again, "_compute", refuse)
    assert np.array_equal(again.frames(sound), first)
    other = LogMelCache(tmp_path / "cache", MelSpec(n_mels=32)).frames(sound)
    assert other.shape[1] == 32
