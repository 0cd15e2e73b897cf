"""What the names of DCASE's clips say, 2020 to 2026, and that other names say nothing."""

from __future__ import annotations

import csv
import time
from pathlib import Path

import pytest

from edgeasd.errors import InputError
from edgeasd_train.corpus.facts import UNKNOWN, Facts, facts_of, read_attributes


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        # 2020
        ("fan/train/normal_id_06_00000012.wav", Facts("fan", 6, "", "train", "normal")),
        ("ToyCar/test/anomaly_id_01_00000164.flac", Facts("ToyCar", 1, "", "test", "anomaly")),
        ("fan/test/id_05_00000000.wav", Facts("fan", 5, "", "test", "")),
        # 2021
        (
            "gearbox/train/section_01_target_train_normal_0002_strength_1.wav",
            Facts("gearbox", 1, "target", "train", "normal", (("strength", "1"),)),
        ),
        ("fan/source_test/section_00_source_test_normal_0000.wav", Facts("fan", 0, "source", "test", "normal")),
        ("fan/target_test/section_03_target_test_0000.wav", Facts("fan", 3, "target", "test", "")),
        ("fan/target_test/section_03_0000.wav", Facts("fan", 3, "target", "test", "")),
        # 2022, 2023
        (
            "ToyCar/train/section_00_source_train_normal_0000_car_A1_spd_28V_mic_1.wav",
            Facts("ToyCar", 0, "source", "train", "normal", (("car", "A1"), ("spd", "28V"), ("mic", "1"))),
        ),
        ("bearing/test/section_04_test_0199.wav", Facts("bearing", 4, "", "test", "")),
        ("Vacuum/test/section_00_0042.wav", Facts("Vacuum", 0, "", "test", "")),
        # 2024
        (
            "ToyTrain/train/section_00_source_train_normal_0765_noAttribute.wav",
            Facts("ToyTrain", 0, "source", "train", "normal"),
        ),
        # 2025, 2026
        ("HomeCamera/supplemental/section_00_noise_supplemental_normal_0000.wav", Facts("HomeCamera", 0)),
        (
            "Polisher/supplemental/section_00_source_supplemental_machine_0000.wav",
            Facts("Polisher", 0, "source"),
        ),
        # a last word without a value, and a clip outside the folder of a split
        (
            "UAVprop/test/section_01_source_test_anomaly_0000_broken_0001_snr-14.flac",
            Facts("UAVprop", 1, "source", "test", "anomaly", (("broken", "0001"), ("snr-14", ""))),
        ),
        ("fan/anomaly_id_02_00000000.wav", Facts("fan", 2, "", "", "anomaly")),
    ],
)
def test_names_of_every_year(path: str, expected: Facts) -> None:
    for root in ("/data/dev_data", "dev_data"):
        assert facts_of(Path(root, path)) == expected
        assert facts_of(f"{root}/{path}") == expected


@pytest.mark.parametrize(
    "path",
    [
        "hall/monday.wav",
        "fan/train/monday.wav",
        "recordings/section_03_0000.wav",  # without the folder of a split anybody's numbering
        "recordings/id_05_00000000.wav",
        "recordings/normal_id_5_12.wav",
        "book/section_12_introduction_0001.wav",
        "fan/test/section_1_source_test_normal_0000.wav",
        "valid_00.wav",
        "",
    ],
)
def test_other_names_say_nothing(path: str) -> None:
    assert facts_of(path) is UNKNOWN
    assert not facts_of(path).known


def test_a_clip_reached_from_within_its_tree_still_has_a_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pump" / "train").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "pump")
    assert facts_of("train/normal_id_00_00000000.wav").machine == "pump"
    monkeypatch.chdir(tmp_path / "pump" / "train")
    for path in ("normal_id_00_00000000.wav", "../train/normal_id_00_00000000.wav"):
        assert facts_of(path) == Facts("pump", 0, "", "train", "normal")


def test_a_million_names_take_seconds() -> None:
    name = "/data/dev_data/fan/train/section_00_source_train_normal_%04d_m-n_W_f-n_%d.wav"
    paths = [name % (i, i) for i in range(20_000)]
    start_s = time.perf_counter()
    sections = [facts_of(path).section for path in paths]
    elapsed_s = time.perf_counter() - start_s
    assert set(sections) == {0}
    assert elapsed_s * 50 < 60, f"{elapsed_s * 50:.1f} s for a million"


def test_attributes_of_a_table_go_before_those_in_the_name(tmp_path: Path) -> None:
    table = tmp_path / "attributes_00.csv"
    table.write_text(
        "\ufefffile_name,d1p,d1v,d2p,d2v\n"
        "fan/train/section_00_source_train_normal_0000_noAttribute.wav,m-n,W,f-n,2\n"
        "section_00_source_train_normal_0001_m-n_X.wav,m-n,Z,,\n\n"
    )
    attributes = read_attributes(table)
    hidden = facts_of("fan/train/section_00_source_train_normal_0000_noAttribute.flac", attributes)
    assert hidden == Facts("fan", 0, "source", "train", "normal", (("m-n", "W"), ("f-n", "2")))
    assert facts_of("fan/train/section_00_source_train_normal_0001_m-n_X.wav", attributes).attributes == (("m-n", "Z"),)
    other = facts_of("fan/train/section_00_source_train_normal_0002_m-n_X.wav", attributes)
    assert other.attributes == (("m-n", "X"),)


def test_a_table_of_attributes_that_is_none_is_refused_by_line(tmp_path: Path) -> None:
    table = tmp_path / "attributes_00.csv"
    for text, fault in (("name,d1p,d1v\n", "line 1"), ("file_name,d1p,d1v\na.wav,x,1,y\n", "line 2"), ("", "line 1")):
        table.write_text(text)
        with pytest.raises(InputError, match=fault):
            read_attributes(table)
    with pytest.raises(InputError, match="cannot be read"):
        read_attributes(tmp_path / "none.csv")


def test_real_clips_are_read_as_their_table_says(recordings: Path) -> None:
    with (recordings / "machines.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) > 500
    for row in rows:
        facts = facts_of(recordings / row["file"])
        assert (facts.machine, facts.split, facts.label) == (row["machine"], row["split"], row["label"]), row["file"]
        if row["section"].isdigit():
            assert facts.section == int(row["section"])
        if "section_" in row["file"]:
            assert facts.domain == row["domain"]
            assert "_".join(word for pair in facts.attributes for word in pair if word) == row["attr"]
