"""Lists that say which recordings to train on, to hold out and to leave alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeasd.errors import InputError, SettingsError
from edgeasd_train.corpus.discover import discover
from edgeasd_train.corpus.splits import ALONE, BY_SHARE, HELD_OUT, TRAIN, assign
from edgeasd_train.recipe import DataRecipe

NAMES = ("a.wav", "b.wav", "sub/c.wav", "sub/d.wav")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in NAMES:
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return tmp_path / "data"


def listed(folder: Path, name: str, *lines: str) -> Path:
    path = folder / name
    path.write_text("\n".join(lines))
    return path


def codes(tree: Path, *, max_files: int | None = None, **lists: Path) -> list[int]:
    recordings = discover([tree], max_files=max_files)
    assigned = assign(recordings, DataRecipe(paths=[tree], **lists))
    assert assigned.dtype == "int8"
    return [int(code) for code in assigned]


def test_without_lists_the_share_decides(tree: Path) -> None:
    assert codes(tree) == [BY_SHARE] * 4


def test_what_each_list_means_for_those_that_none_names(tree: Path) -> None:
    train = listed(tree, "train.txt", "# to learn from", "", "a.wav", "  sub/c.wav  ")
    held_out = listed(tree, "held.txt", "b.wav")
    test = listed(tree, "test.txt", "sub/d.wav")
    assert codes(tree, train_list=train) == [BY_SHARE, ALONE, BY_SHARE, ALONE]
    assert codes(tree, held_out_list=held_out) == [TRAIN, HELD_OUT, TRAIN, TRAIN]
    assert codes(tree, test_list=test) == [BY_SHARE, BY_SHARE, BY_SHARE, ALONE]
    assert codes(tree, train_list=train, held_out_list=held_out) == [TRAIN, HELD_OUT, TRAIN, ALONE]
    assert codes(tree, held_out_list=held_out, test_list=test) == [TRAIN, HELD_OUT, TRAIN, ALONE]


def test_paths_count_from_the_list_then_from_the_data_or_are_absolute(tree: Path, tmp_path: Path) -> None:
    lists = tmp_path / "lists"
    lists.mkdir()
    here = listed(tree / "sub", "here.txt", "c.wav", "../a.wav")
    far = listed(lists, "far.txt", "b.wav", str(tree / "sub" / "d.wav"))
    assert codes(tree, train_list=here, held_out_list=far) == [TRAIN, HELD_OUT, TRAIN, HELD_OUT]


def test_a_list_may_go_through_a_link(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tree)
    through = listed(tmp_path, "list.txt", "link/a.wav", "link/sub/c.wav")
    assert codes(tree, held_out_list=through) == [HELD_OUT, TRAIN, HELD_OUT, TRAIN]
    direct = listed(tmp_path, "list.txt", "data/a.wav")
    assert codes(tmp_path / "link", held_out_list=direct)[0] == HELD_OUT


def test_a_missing_recording_is_named_with_its_line(tree: Path) -> None:
    wrong = listed(tree, "train.txt", "a.wav", "# comment", "none.wav")
    with pytest.raises(InputError, match=r"train\.txt: line 3: none\.wav: no such recording"):
        codes(tree, train_list=wrong)
    with pytest.raises(InputError, match="cannot be read"):
        codes(tree, test_list=tree / "none.txt")
    (tree / "bytes.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="cannot be read"):
        codes(tree, test_list=tree / "bytes.txt")


def test_a_recording_in_two_lists_is_a_contradiction(tree: Path) -> None:
    train = listed(tree, "train.txt", "a.wav", "b.wav", "b.wav")
    test = listed(tree, "test.txt", "sub/../b.wav")
    with pytest.raises(SettingsError, match=r"data\.test_list: .*line 1: sub/\.\./b\.wav is in data\.train_list"):
        codes(tree, train_list=train, test_list=test)


def test_a_listed_recording_that_is_not_among_the_data_is_said_to_be_so(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere.wav").write_bytes(b"")
    outside = listed(tree, "train.txt", "../elsewhere.wav")
    with pytest.raises(InputError, match=r"line 1: .*not below data\.paths"):
        codes(tree, train_list=outside)
    assert codes(tree, test_list=outside) == [BY_SHARE] * 4  # left alone already


def test_test_clips_of_dcase_may_be_listed_to_learn_from_only_in_the_plain_layout(tmp_path: Path) -> None:
    names = ("train/normal_id_00_00000000.wav", "test/anomaly_id_00_00000000.wav")
    for name in names:
        path = tmp_path / "fan" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(b"")
    recipe = DataRecipe(paths=[tmp_path], train_list=listed(tmp_path, "l.txt", *(f"fan/{name}" for name in names)))
    with pytest.raises(InputError, match=r"line 2: .*test clip \(data\.layout plain"):
        assign(discover([tmp_path]), recipe)
    assert assign(discover([tmp_path], layout="plain"), recipe).tolist() == [BY_SHARE, BY_SHARE]


def test_a_cap_on_files_leaves_out_what_lists_name(tree: Path) -> None:
    train = listed(tree, "train.txt", *NAMES)
    assert codes(tree, max_files=2, train_list=train) == [BY_SHARE, BY_SHARE]
