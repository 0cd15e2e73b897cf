"""The calibration that a node keeps of its own site."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgeasd.bundle import Bundle, read_bundle
from edgeasd.errors import CannotWriteError, SettingsError
from edgeasd.scoring.calibration import fit_calibration
from edgeasd.site import save_site_calibration, site_calibration, site_path
from tests.rig.disks import no_room
from tests.small_bundle import small_answers, small_inputs, small_table, write_small_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return read_bundle(write_small_bundle(tmp_path / "small.edgeasd"))


def test_a_new_site_has_none(bundle: Bundle, state_dir: Path) -> None:
    assert site_calibration(state_dir, bundle) is None
    assert site_calibration(state_dir / "missing", bundle) is None


def test_what_was_saved_is_found_again_to_the_bit(bundle: Bundle, state_dir: Path) -> None:
    table = fit_calibration(small_answers(small_inputs(100, seed=9))["score"], window_s=0.064, hop_s=0.032)
    path = save_site_calibration(state_dir, bundle, table)
    assert path == site_path(state_dir, bundle)
    assert site_calibration(state_dir, bundle) == table
    assert [entry.name for entry in state_dir.iterdir()] == [path.name]  # nothing half-written is left


def test_it_belongs_to_one_bundle_only(bundle: Bundle, state_dir: Path) -> None:
    save_site_calibration(state_dir, bundle, small_table())
    other = replace(bundle, sha256="f" * 64)
    assert site_calibration(state_dir, other) is None


def test_the_state_directory_is_made(bundle: Bundle, tmp_path: Path) -> None:
    state_dir = tmp_path / "new" / "state"
    save_site_calibration(state_dir, bundle, small_table())
    assert site_calibration(state_dir, bundle) == small_table()


def test_a_later_one_takes_the_place_of_an_earlier_one(bundle: Bundle, state_dir: Path) -> None:
    site_path(state_dir, bundle).write_text("rubbish")
    save_site_calibration(state_dir, bundle, small_table())
    assert site_calibration(state_dir, bundle) == small_table()


@pytest.mark.parametrize("damage", ["cut", "empty", "bytes", "nan", "directory"])
def test_a_damaged_one_is_refused_with_what_to_do(bundle: Bundle, state_dir: Path, damage: str) -> None:
    path = save_site_calibration(state_dir, bundle, small_table())
    whole = path.read_bytes()
    if damage == "directory":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(
            {
                "cut": whole[: len(whole) // 2],
                "empty": b"",
                "bytes": b"\xff\xfe\x00",
                "nan": whole.replace(b'"tail_p"', b'"tail_q"'),
            }[damage]
        )
    with pytest.raises(SettingsError, match="edgeasd calibrate") as caught:
        site_calibration(state_dir, bundle)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_place_that_cannot_be_written_is_named(bundle: Bundle, tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    with pytest.raises(CannotWriteError, match=r"calibration-[0-9a-f]{16}\.json: cannot be written: Not a directory"):
        save_site_calibration(in_the_way / "state", bundle, small_table())


def test_a_disk_that_takes_nothing_leaves_the_old_one_alone(bundle: Bundle, state_dir: Path) -> None:
    save_site_calibration(state_dir, bundle, small_table())
    other = fit_calibration(small_answers(small_inputs(100, seed=9))["score"], window_s=0.064, hop_s=0.032)
    with no_room(), pytest.raises(CannotWriteError, match="File too large"):
        save_site_calibration(state_dir, bundle, other)
    assert len(list(state_dir.iterdir())) == 1
    assert site_calibration(state_dir, bundle) == small_table()
