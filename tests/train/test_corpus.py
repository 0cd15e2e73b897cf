"""Recordings become windows: cut where arithmetic says, parted as the recipe says, and bad files left out by name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeasd.errors import InputError
from edgeasd_train.corpus import Corpus, Stretch, Stretches, WindowIndex, discover, open_corpus, write_bad_files
from edgeasd_train.corpus.load import Cache, load_sounds
from edgeasd_train.corpus.windows import hold_out
from edgeasd_train.recipe import DataRecipe
from tests.wav import RATE_HZ, noise, write

GRID = 400


def corpus_of(paths: list[Path], cache: Path, recipe: DataRecipe | None = None) -> Corpus:
    recipe = (recipe or DataRecipe()).model_copy(update={"paths": paths})
    return open_corpus(recipe, cache_dir=cache, grid_frames=GRID)


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
    files = spoiled(tmp_path)
    sounds, bad_files = load_sounds(discover(list(files.values())), Cache(tmp_path / "cache", RATE_HZ))
    assert len(sounds) == 0
    assert [bad.path for bad in bad_files] == list(files.values())
    reasons = dict(zip(files, (bad.reason for bad in bad_files), strict=True))
    assert all(reason and "\n" not in reason for reason in reasons.values())
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
    index = WindowIndex(Stretches.of(stretches), window_frames=window, hop_frames=hop)
    assert len(index) == len(expected)
    sounds, firsts = index.locate(np.arange(len(index), dtype=np.int64))
    assert list(zip(sounds.tolist(), firsts.tolist(), strict=True)) == expected


@given(stretches_strategy, st.floats(0.01, 0.5))
def test_held_out_sound_is_never_trained_on_and_nothing_is_lost(stretches: list[Stretch], share: float) -> None:
    train, held_out = map(list, hold_out(Stretches.of(stretches), share=share, grid_frames=GRID))

    def frames(parts: list[Stretch]) -> list[tuple[int, int, int]]:
        return sorted((part.sound, part.first_frame, part.end_frame) for part in parts)

    if len(stretches) >= 10:
        assert frames([*train, *held_out]) == frames(stretches)
        n_held = max(1, round(share * len(stretches)))
        assert held_out == [stretches[(2 * i + 1) * len(stretches) // (2 * n_held)] for i in range(n_held)]
    else:
        for whole, left, right in zip(stretches, train, held_out, strict=True):
            assert left.end_frame == right.first_frame
            assert (left.first_frame, right.end_frame) == (whole.first_frame, whole.end_frame)
            assert right.first_frame % GRID == 0
            assert right.first_frame <= right.end_frame
    again = hold_out(Stretches.of(stretches), share=share, grid_frames=GRID)
    assert [list(part) for part in again] == [train, held_out]


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


def test_a_window_of_whole_clips_leaves_no_recording_out(tmp_path: Path) -> None:
    for name, duration_s in (("a.wav", 0.4), ("b.wav", 1.7)):
        write(tmp_path / "in" / name, noise(duration_s))
    corpus = corpus_of([tmp_path / "in"], tmp_path / "cache", DataRecipe(window_s="clip"))
    assert {stretch.sound for stretch in corpus.train} == {0, 1}
    assert [stretch.sound for stretch in corpus_of([tmp_path / "in"], tmp_path / "cache").train] == [1]


def test_lists_say_what_is_learned_from_held_out_and_never_read(tmp_path: Path) -> None:
    for i in range(6):
        write(tmp_path / f"{i}.wav", noise(2.0, seed=i))
    (tmp_path / "4.wav").write_bytes(b"no sound, and nobody asks")
    (tmp_path / "held.txt").write_text("1.wav\n3.wav\n")
    (tmp_path / "test.txt").write_text("4.wav\n")
    recipe = DataRecipe(held_out_list=tmp_path / "held.txt", test_list=tmp_path / "test.txt")
    corpus = corpus_of([tmp_path], tmp_path / "cache", recipe)
    names = [sound.path.stem for sound in corpus.sounds]
    assert names == ["0", "1", "2", "3", "5"]
    assert [names[stretch.sound] for stretch in corpus.train] == ["0", "2", "5"]
    assert [names[stretch.sound] for stretch in corpus.held_out] == ["1", "3"]
    assert corpus.bad_files == ()


def test_marked_spans_are_neither_learned_from_nor_calibrated_on(tmp_path: Path) -> None:
    for name in ("a.wav", "b.wav"):
        write(tmp_path / name, noise(20.0))
    (tmp_path / "marks.csv").write_text("file,onset,offset\na.wav,3.01,5.02\na.wav,4.0,4.5\na.wav,17.5,18\n")
    recipe = DataRecipe(annotations=tmp_path / "marks.csv")
    corpus = corpus_of([tmp_path / "a.wav", tmp_path / "b.wav"], tmp_path / "cache", recipe)
    train, held_out = (
        [(s.sound, s.first_frame / RATE_HZ, s.end_frame / RATE_HZ) for s in part]
        for part in (corpus.train, corpus.held_out)
    )
    assert train == [(0, 0.0, 3.01), (0, 5.025, 16.0), (1, 0.0, 16.0)]  # 5.025 s is the next point of the mel grid
    assert held_out == [(0, 16.0, 17.5), (0, 18.0, 20.0), (1, 16.0, 20.0)]


def test_a_recording_that_is_marked_throughout_takes_no_part(tmp_path: Path) -> None:
    for i in range(12):
        write(tmp_path / f"{i:02}.wav", noise(2.0, seed=i))
    plain = corpus_of([tmp_path], tmp_path / "cache")
    held = [stretch.sound for stretch in plain.held_out]
    rows = "".join(f"{sound:02}.wav,0.2,1.9\n" for sound in held)
    (tmp_path / "marks.csv").write_text(f"file,onset,offset\n{rows}")
    corpus = corpus_of([tmp_path], tmp_path / "cache", DataRecipe(annotations=tmp_path / "marks.csv"))
    assert len(corpus.held_out) == 2
    assert {stretch.sound for stretch in [*corpus.train, *corpus.held_out]}.isdisjoint(held)


def test_a_table_that_names_no_recording_is_a_mistake(tmp_path: Path) -> None:
    write(tmp_path / "a.wav", noise(9.0))
    (tmp_path / "marks.csv").write_text("file,onset,offset\nelsewhere.wav,3,5\n")
    with pytest.raises(InputError, match="names none of the 1 recordings"):
        corpus_of([tmp_path / "a.wav"], tmp_path / "cache", DataRecipe(annotations=tmp_path / "marks.csv"))


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 20), st.integers(1, 9)), max_size=6),
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 90), st.integers(1, 30)), max_size=6),
)
def test_cutting_out_removes_every_marked_frame_and_at_most_a_grid_step_more(
    stretches: list[tuple[int, int, int]], spans: list[tuple[int, int, int]]
) -> None:
    grid_frames = 4
    whole = Stretches.of(Stretch(s, 4 * first, 4 * first + 4 * length) for s, first, length in stretches)
    marked = Stretches.of(Stretch(s, first, first + length) for s, first, length in spans)
    left = whole.without(marked, grid_frames=grid_frames)

    def frames(parts: Stretches) -> list[tuple[int, int]]:
        return sorted((part.sound, frame) for part in parts for frame in range(part.first_frame, part.end_frame))

    cut = {(span.sound, frame) for span in marked for frame in range(span.first_frame, span.end_frame)}
    grown = {
        (span.sound, frame)
        for span in marked
        for frame in range(span.first_frame, -(-span.end_frame // grid_frames) * grid_frames)
    }
    kept = [frame for frame in frames(whole) if frame not in grown]
    assert frames(left) == kept
    assert cut.isdisjoint(kept)
    assert all(part.first_frame % grid_frames == 0 and part.first_frame < part.end_frame for part in left)


def test_names_of_dcase_give_section_and_domain(tmp_path: Path) -> None:
    names = ("section_00_source_train_normal_0001_a.wav", "section_03_target_train_normal_0002_b.wav")
    for name in names:
        write(tmp_path / "fan" / "train" / name, noise(3.0))
    corpus = corpus_of([tmp_path], tmp_path / "cache")
    assert corpus.section.tolist() == [0, 3]
    assert corpus.domain.tolist() == [0, 1]
    write(tmp_path / "plain" / "hall.wav", noise(3.0))
    plain = corpus_of([tmp_path / "plain"], tmp_path / "cache")
    assert (plain.section.tolist(), plain.domain.tolist()) == ([-1], [-1])


def test_a_corpus_needs_no_torch(tmp_path: Path) -> None:
    write(tmp_path / "a.wav", noise(30.0))
    code = (
        "import sys; from pathlib import Path; from edgeasd.features.mel import MelSpec\n"
        "from edgeasd_train.corpus import WindowIndex, open_corpus; from edgeasd_train.recipe import DataRecipe\n"
        "from edgeasd_train.corpus.logmel import LogMelStore, LogMelWindows; import numpy as np\n"
        "cache = Path(sys.argv[2])\n"
        "corpus = open_corpus(DataRecipe(paths=[Path(sys.argv[1])]), cache_dir=cache, grid_frames=400)\n"
        "index = WindowIndex(corpus.train, window_frames=16000, hop_frames=1600)\n"
        "windows = LogMelWindows(corpus, index, LogMelStore(corpus, MelSpec(), cache_dir=cache))\n"
        "print(windows.batch(np.arange(3))['log_mel'].shape, 'torch' in sys.modules, 'lightning' in sys.modules)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a.wav"), str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "(3, 64, 38) False False\n"


def test_a_thousand_million_windows_take_no_memory_of_their_own() -> None:
    n_sounds = 1000
    numbers = np.arange(n_sounds, dtype=np.int64)
    stretches = Stretches(numbers, numbers * 0, np.full(n_sounds, 1_000_000 * 400 + 15_600, np.int64))
    index = WindowIndex(stretches, window_frames=16_000, hop_frames=400)
    assert len(index) == 1_000_000_000
    sounds, firsts = index.locate(np.array([0, 1, 999_999, 1_000_000, 999_999_999]))
    assert sounds.tolist() == [0, 0, 0, 1, 999]
    assert firsts.tolist() == [0, 400, 399_999_600, 0, 399_999_600]
    kept = [value for value in vars(index).values() if isinstance(value, np.ndarray)]
    assert sum(value.nbytes for value in kept) <= 24 * n_sounds
