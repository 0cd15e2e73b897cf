"""Which recordings are found below what a user names: each once, in order, and never a test clip to learn from."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from edgeasd.errors import InputError, SettingsError
from edgeasd_train.corpus.discover import Recording, Recordings, discover


def make(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return root


def below(root: Path, found: Sequence[Recording]) -> list[str]:
    return [recording.path.relative_to(root).as_posix() for recording in found]


def test_recordings_are_found_once_sorted_and_hidden_files_are_not(tmp_path: Path) -> None:
    make(tmp_path, "b/two.flac", "a/one.WAV", "a/three.OgG", "c/notes.txt", "c/._one.wav", ".trash/old.wav", "d/x.mp3")
    (tmp_path / "folder.wav").mkdir()
    found = discover([tmp_path, tmp_path / "a" / "one.WAV"])
    assert below(tmp_path, found) == ["a/one.WAV", "a/three.OgG", "b/two.flac"]
    assert list(discover([tmp_path / "d" / "x.mp3"])) == [Recording(tmp_path / "d" / "x.mp3", named=True)]


@pytest.mark.parametrize(
    ("glob", "expected"),
    [
        ("a/*", ["a/one.wav"]),
        ("*.wav", ["top.wav"]),
        ("**/*.wav", ["a/b/two.wav", "a/one.wav", "top.wav"]),
        ("**/b/*", ["a/b/two.wav"]),
        ("a/**/*", ["a/b/two.wav", "a/one.wav"]),
        ("**", ["a/b/two.wav", "a/one.wav", "c/three.flac", "top.wav"]),
        ("?/[m-p]*", ["a/one.wav"]),
        ("[!a]/*", ["c/three.flac"]),
    ],
)
def test_a_pattern_picks_from_a_tree(tmp_path: Path, glob: str, expected: list[str]) -> None:
    make(tmp_path, "top.wav", "a/one.wav", "a/b/two.wav", "c/three.flac")
    found = below(tmp_path, discover([tmp_path], glob=glob))
    assert found == expected
    if glob != "**":  # which pathlib of this Python takes for folders alone
        assert found == sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.glob(glob) if p.is_file())


@pytest.mark.parametrize("glob", ["/etc/*", "", "../*", "a**/*"])
def test_a_pattern_that_leads_out_of_the_tree_is_refused(tmp_path: Path, glob: str) -> None:
    with pytest.raises(SettingsError, match=r"data\.glob"):
        discover([make(tmp_path, "a.wav")], glob=glob)


def test_a_tree_may_be_named_from_within(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "fan/train/normal_id_00_00000000.wav", "fan/test/normal_id_00_00000001.wav")
    monkeypatch.chdir(tmp_path)
    assert list(discover([Path()]).names()) == ["fan/train/normal_id_00_00000000.wav"]
    monkeypatch.chdir(tmp_path / "fan" / "train")
    assert list(discover([Path()]).names()) == ["normal_id_00_00000000.wav"]


def test_a_cap_on_files_spreads_over_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, *(f"{i:02}.wav" for i in range(20)))
    found = discover([tmp_path], max_files=4)
    assert [recording.path.stem for recording in found] == ["00", "05", "10", "15"]
    assert found.n_capped == 16
    monkeypatch.setenv("AUDIO_FILE_CAP", "2")
    assert [recording.path.stem for recording in discover([tmp_path])] == ["00", "10"]
    assert len(discover([tmp_path], max_files=3)) == 3  # what a recipe says goes before the environment
    monkeypatch.setenv("AUDIO_FILE_CAP", "")
    assert len(discover([tmp_path])) == 20


@pytest.mark.parametrize("cap", ["0", "-1", "ten", "1.5", "\u00b2"])
def test_a_cap_that_is_no_number_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cap: str) -> None:
    monkeypatch.setenv("AUDIO_FILE_CAP", cap)
    with pytest.raises(SettingsError, match="AUDIO_FILE_CAP"):
        discover([make(tmp_path, "a.wav")])


def test_nothing_to_read_is_an_input_error(tmp_path: Path) -> None:
    for paths in ([], [tmp_path], [tmp_path / "none"]):
        with pytest.raises(InputError) as caught:
            discover(paths)
        assert caught.value.exit_code == 66


def test_linked_folders_are_followed_once_and_loops_end(tmp_path: Path) -> None:
    root = make(tmp_path / "root", "b/one.wav", "b/two.wav")
    make(tmp_path / "elsewhere", "three.wav")
    (root / "a_link").symlink_to(root / "b")  # sorts before b, but is not what b's files are known by
    (root / "b" / "loop").symlink_to(root)
    (root / "far").symlink_to(tmp_path / "elsewhere")
    (root / "b" / "0.wav").symlink_to("one.wav")
    (root / "gone.wav").symlink_to("nowhere.wav")
    (root / "self").symlink_to("self")
    (root / "own.wav").symlink_to(tmp_path / "elsewhere" / "three.wav")
    assert below(root, discover([root])) == ["b/one.wav", "b/two.wav", "far/three.wav"]
    assert len(discover([root / "b" / "0.wav", root])) == 3


DCASE = (
    "fan/train/section_00_source_train_normal_0000_m_1.wav",
    "fan/train/section_00_target_train_normal_0001_m_1.flac",
    "fan/test/section_00_source_test_normal_0000_m_1.wav",
    "fan/test/section_00_source_test_anomaly_0000_m_1.wav",
    "fan/supplemental/section_00_source_supplemental_machine_0000.wav",
    "pump/train/normal_id_02_00000000.wav",
    "pump/source_test/section_01_source_test_0000.wav",
    "pump/test/id_05_00000000.ogg",
)


def test_of_a_dcase_tree_only_training_clips_are_learned_from(tmp_path: Path) -> None:
    make(tmp_path, *DCASE)
    training = sorted(name for name in DCASE if "/train/" in name)
    for layout in ("auto", "dcase"):
        found = discover([tmp_path], layout=layout)
        assert below(tmp_path, found) == training
        assert found.n_left_out == len(DCASE) - len(training)
    assert below(tmp_path, discover([tmp_path], layout="plain")) == sorted(DCASE)


def test_other_recordings_beside_dcase_s_are_taken_in_auto_alone(tmp_path: Path) -> None:
    make(tmp_path, *DCASE[:4], "hall/monday.wav", "hall/test/tuesday.wav", "hall/section_01_0002.wav")
    assert below(tmp_path, discover([tmp_path])) == sorted(
        [*DCASE[:2], "hall/monday.wav", "hall/test/tuesday.wav", "hall/section_01_0002.wav"]
    )
    assert below(tmp_path, discover([tmp_path], layout="dcase")) == sorted(DCASE[:2])


def test_a_test_folder_gives_nothing_to_learn_from_unless_it_is_asked_for(tmp_path: Path) -> None:
    make(tmp_path, *DCASE)
    with pytest.raises(InputError, match=r"no training clip among 2 files; data\.layout plain"):
        discover([tmp_path / "fan" / "test"])
    assert len(discover([tmp_path / "fan" / "test"], layout="plain")) == 2
    named = tmp_path / DCASE[2]
    assert list(discover([named])) == [Recording(named, named=True)]


def test_recordings_are_a_compact_sequence(tmp_path: Path) -> None:
    names = ["a.wav", "b\udcff.wav", "\u00e9/c.wav"]
    recordings = Recordings(names, [False, True, False])
    assert [str(recording.path) for recording in recordings] == names
    assert recordings[-1] == Recording(Path(names[2]), named=False)
    assert [r.named for r in recordings[1:]] == [True, False]
    with pytest.raises(IndexError):
        recordings[3]
    assert list(pickle.loads(pickle.dumps(recordings))) == list(recordings)
    assert Recording(Path("a.wav"), named=False) in recordings
    many = Recordings([f"/data/fan/train/{i:08}.wav" for i in range(10_000)], [False] * 10_000)
    assert len(pickle.dumps(many)) < 45 * len(many)
    assert many[1234].path.stem == "00001234"
    assert np.array_equal([len(name) for name in many.names()], np.full(10_000, 28))
