"""Clips on disk to files of figures: what `edgeasd evaluate` does with a tree of labelled clips."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from edgeasd.bundle import read_bundle
from edgeasd.cli import main
from edgeasd.engine import open_engine
from edgeasd.errors import InputError, UsageError
from edgeasd_train.evaluate import ClipJob, evaluate_clips
from edgeasd_train.judging.clipfiles import ClipReport
from edgeasd_train.judging.clips import ClipOptions, clip_facts, find_clips
from edgeasd_train.judging.roc import auc
from edgeasd_train.listen import hear
from tests.small_bundle import write_small_bundle

RATE_HZ = 8000


def _write(path: Path, *, gain: float, seed: int, seconds: float = 1.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).normal(0.0, gain, round(seconds * RATE_HZ))
    soundfile.write(path, np.clip(noise, -1, 1), RATE_HZ, subtype="PCM_16")


def _write_machine(root: Path, machine: str, *, section: int = 0) -> None:
    """Write 12 training clips, and of each domain three normal ones and three anomalies, which are louder."""
    stem = f"section_{section:02d}"
    for i in range(12):
        _write(root / machine / "train" / f"{stem}_source_train_normal_{i:04d}_v_A.wav", gain=0.02, seed=i)
    for d, domain in enumerate(("source", "target")):
        for i in range(3):
            names = (f"{stem}_{domain}_test_{label}_{i:04d}_v_A.wav" for label in ("normal", "anomaly"))
            for name, gain in zip(names, (0.02, 0.04 + 0.1 * i), strict=True):
                _write(root / machine / "test" / name, gain=gain, seed=100 + 10 * d + i)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_bundle(tmp_path_factory.mktemp("bundle") / "small.edgeasd")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "dev_data"
    _write_machine(root, "fan")
    _write_machine(root, "pump")
    _write_machine(root, "pump", section=1)
    return root


@pytest.fixture
def tree(original: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(original, tmp_path / "dev_data"))


def _evaluate(bundle: Path, *paths: Path, out: Path, options: ClipOptions | None = None) -> ClipReport:
    return evaluate_clips(ClipJob(bundle, paths, options or ClipOptions(hop_s=0.064), n_draws=20), out=out)


def _rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_a_tree_of_machines_is_judged(bundle: Path, original: Path, tmp_path: Path) -> None:
    report = _evaluate(bundle, original, out=tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *(f"{what}_{part}_test.csv" for what in ("anomaly_score", "decision_result") for part in
          ("fan_section_00", "pump_section_00", "pump_section_01")),
        "anomaly_scores.csv", "test_results.csv", "result.csv", "figures.csv", "roc.png", "fan.png", "pump.png",
    }  # fmt: skip
    found = report.judgement.find("AUC", machine="fan")
    assert found is not None
    assert report.judgement.year == 2023
    rows = _rows(tmp_path / "out" / "anomaly_scores.csv")
    assert rows[0] == ["file", "label", "score"]
    assert rows[1][0] == "fan/test/section_00_source_test_anomaly_0000_v_A.wav"
    assert [row[1] for row in rows[1:]].count("1") == 18
    labels, scores = zip(*((int(row[1]), float(row[2])) for row in rows[1:] if row[0].startswith("fan/")), strict=True)
    assert auc(labels, scores) == found.value
    figures = {tuple(row[:4]): row[4:] for row in _rows(tmp_path / "out" / "figures.csv")[1:]}
    assert float(figures["fan", "", "", "AUC"][0]) == found.value
    low, high = (float(end) for end in figures["fan", "", "", "AUC"][1:])
    assert low <= found.value <= high
    assert ("", "", "", "official 2023") in figures
    assert dict(_rows(tmp_path / "out" / "test_results.csv")[1:])["n_normal"] == "18"


def test_files_of_the_challenge_have_no_header_and_are_sorted(bundle: Path, original: Path, tmp_path: Path) -> None:
    report = _evaluate(bundle, original / "fan", out=tmp_path)
    raw = (tmp_path / "anomaly_score_fan_section_00_test.csv").read_bytes()
    assert b"\r" not in raw
    assert raw.endswith(b"\n")
    scores, decisions = (
        _rows(tmp_path / f"{what}_fan_section_00_test.csv") for what in ("anomaly_score", "decision_result")
    )
    names = sorted(path.name for path in (original / "fan" / "test").iterdir())
    assert [row[0] for row in scores] == [row[0] for row in decisions] == names
    threshold = report.machines[0].threshold
    assert [int(row[1]) for row in decisions] == [int(float(row[1]) > threshold.value) for row in scores]
    assert {row[1] for row in decisions} == {"0", "1"}


def test_a_clip_scores_as_its_windows_are_put_together(bundle: Path, original: Path, tmp_path: Path) -> None:
    clip = next((original / "fan" / "test").glob("*anomaly_0002*"))
    read = read_bundle(bundle)
    engine = open_engine(read, "auto")
    windows = hear(clip, read, engine, hop_s=0.064).outputs.score.astype(np.float64)
    engine.close()
    assert len(windows) == 15
    for aggregate, expected in (("mean", windows.mean()), ("max", windows.max()), ("median", np.median(windows))):
        options = ClipOptions(hop_s=0.064, aggregate=aggregate)  # type: ignore[arg-type]
        report = _evaluate(bundle, original / "fan", out=tmp_path / aggregate, options=options)
        (clips,) = report.machines[0].sections
        assert clips.score[clips.files.index(str(clip))] == pytest.approx(expected, rel=1e-12)


def test_each_machine_has_its_bundle_in_a_folder(bundle: Path, original: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundles"
    folder.mkdir()
    shutil.copy(bundle, folder / "fan.edgeasd")
    with pytest.raises(InputError, match=r"bundles: holds no pump\.edgeasd to judge pump with"):
        _evaluate(folder, original, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    shutil.copy(bundle, folder / "pump.edgeasd")
    report = _evaluate(folder, original, out=tmp_path / "out")
    assert [machine.bundle.path.name for machine in report.machines] == ["fan.edgeasd", "pump.edgeasd"]


def test_clips_without_labels_are_scored_and_decided(bundle: Path, tmp_path: Path) -> None:
    for i in range(3):
        _write(tmp_path / "fan" / "test" / f"section_03_test_{i:04d}.wav", gain=0.02, seed=i)
    report = _evaluate(bundle, tmp_path / "fan", out=tmp_path / "out")
    assert report.judgement.figures == ()
    assert len(_rows(tmp_path / "out" / "anomaly_score_fan_section_03_test.csv")) == 3
    assert [row[1] for row in _rows(tmp_path / "out" / "anomaly_scores.csv")[1:]] == [""] * 3
    assert not (tmp_path / "out" / "result.csv").exists()


def test_a_broken_clip_is_left_out_and_told(bundle: Path, tree: Path, tmp_path: Path) -> None:
    broken = next((tree / "fan" / "test").glob("*source_test_normal_0000*"))
    broken.write_bytes(b"RIFF")
    machine, *_ = _evaluate(bundle, tree / "fan", out=tmp_path / "out").machines
    assert len(machine.sections[0].files) == 11
    (told,) = machine.bad
    assert broken.name in told
    for path in (tree / "fan" / "test").iterdir():
        path.write_bytes(b"RIFF")
    with pytest.raises(InputError, match=r"^fan: none of its 12 clips can be read: "):
        _evaluate(bundle, tree / "fan", out=tmp_path / "out")


def test_the_layout_of_2020_gives_its_files_and_its_rule(bundle: Path, tmp_path: Path) -> None:
    for i in range(4):
        for label, gain in (("normal", 0.02), ("anomaly", 0.2)):
            _write(tmp_path / "ToyCar" / "test" / f"{label}_id_0{i % 2}_{i:08d}.wav", gain=gain, seed=i)
    report = _evaluate(bundle, tmp_path / "ToyCar", out=tmp_path / "out")
    assert report.judgement.year == 2020
    assert len(_rows(tmp_path / "out" / "anomaly_score_ToyCar_id_01.csv")) == 4
    assert _rows(tmp_path / "out" / "result.csv")[:2] == [["ToyCar"], ["id", "AUC", "pAUC"]]
    assert report.machines[0].threshold.rule == "calibration"  # nothing to train on lies there


def test_the_layout_of_2021_gives_its_files_and_its_rule(bundle: Path, tmp_path: Path) -> None:
    for domain in ("source", "target"):
        for i, (label, gain) in enumerate((("normal", 0.02), ("anomaly", 0.2))):
            name = f"section_00_{domain}_test_{label}_{i:04d}.wav"
            _write(tmp_path / "fan" / f"{domain}_test" / name, gain=gain, seed=i)
    report = _evaluate(bundle, tmp_path / "fan", out=tmp_path / "out")
    assert report.judgement.year == 2021
    assert len(_rows(tmp_path / "out" / "anomaly_score_fan_section_00_target_test.csv")) == 2
    assert len(_rows(tmp_path / "out" / "decision_result_fan_section_00_source_test.csv")) == 2


@pytest.mark.parametrize(
    ("path", "machine", "label", "split"),
    [
        ("hall/normal_7.wav", "hall", "normal", ""),
        ("hall/anomaly_broken-belt_7.flac", "hall", "anomaly", ""),
        ("hall/test/anomaly/7.wav", "hall", "anomaly", "test"),
        ("hall/train/normal_7.wav", "hall", "normal", "train"),
        ("hall/7.wav", "hall", "", ""),
        ("hall/abnormal_7.wav", "hall", "", ""),
        ("fan/test/normal_id_02_00000004.wav", "fan", "normal", "test"),
    ],
)
def test_plain_names_may_carry_labels_too(path: str, machine: str, label: str, split: str) -> None:
    facts = clip_facts(Path("/data") / path)
    assert (facts.machine, facts.label, facts.split) == (machine, label, split)


def test_where_there_is_a_test_part_only_it_is_judged() -> None:
    names = ("train/normal_1.wav", "test/normal_2.wav", "test/anomaly_3.wav", "anomaly_4.wav")
    (machine,) = find_clips([Path("/data/hall", name) for name in names])
    assert [clip.path.name for clip in machine.test] == ["normal_2.wav", "anomaly_3.wav"]
    assert [clip.path.name for clip in machine.train] == ["normal_1.wav"]
    assert find_clips([Path("/data/hall/1.wav"), Path("/data/hall/train/normal_2.wav")]) == []


def test_a_hop_of_nothing_is_refused(bundle: Path, original: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^--hop 0: is no step forward"):
        _evaluate(bundle, original / "fan", out=tmp_path, options=ClipOptions(hop_s=0.0))


def test_the_command_prints_and_writes(
    bundle: Path, original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    arguments = ["--out", str(tmp_path / "out"), "--hop", "0.064", "--year", "2024", "--bootstrap", "50"]
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", str(bundle), str(original / "pump"), *arguments])
    assert ended.value.code == 0
    shown = capsys.readouterr()
    assert "rule of 2024" in shown.out
    assert "pump     all  target" in shown.out
    assert "pump: strange above" in shown.err
    assert _rows(tmp_path / "out" / "figures.csv")[-1][3] == "official 2024"


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["--year", "2019"], 2, "--year 2019: is none of 2020 to 2026"),
        (["--channel", "left"], 2, "is neither a channel number (0 to 63) nor mix"),
        (["--channel", "1"], 66, "fan: none of its 12 clips can be read"),
    ],
)
def test_the_command_refuses_in_one_line(
    bundle: Path,
    original: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    complaint: str,
) -> None:
    assert main(["evaluate", str(bundle), str(original / "fan"), "--out", str(tmp_path), *arguments]) == code
    assert complaint in capsys.readouterr().err
