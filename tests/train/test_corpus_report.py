"""What `edgeasd corpus` finds: levels, spectra, and everything that is wrong with recordings, planted on purpose."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from edgeasd.cli import main
from edgeasd.errors import InputError
from edgeasd_train.corpus.annotations import read_marks
from edgeasd_train.corpus.discover import discover
from edgeasd_train.corpus.measure import BAND_CENTRES_HZ, FLOOR_DBFS, measure
from edgeasd_train.corpus.report import Report, report_on
from edgeasd_train.corpus.report_examples import pick
from edgeasd_train.corpus.report_tables import findings
from edgeasd_train.corpus.survey import Survey, survey

RATE_HZ = 16000
Samples = NDArray[np.float64]


def noise(duration_s: float, *, seed: int = 0, level: float = 0.1, rate_hz: int = RATE_HZ) -> Samples:
    return np.asarray(level * np.random.default_rng(seed).standard_normal(round(duration_s * rate_hz)))


def tone(frequency_hz: float, *, level: float, rate_hz: int = RATE_HZ, duration_s: float = 2.0) -> Samples:
    return np.asarray(level * np.sin(2 * np.pi * frequency_hz * np.arange(round(duration_s * rate_hz)) / rate_hz))


def write(path: Path, samples: Samples, *, rate_hz: int = RATE_HZ, subtype: str = "PCM_16") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = np.clip(np.rint(samples * 32768), -32768, 32767).astype(np.int16) if subtype == "PCM_16" else samples
    soundfile.write(path, whole, rate_hz, subtype=subtype)
    return path


def run(*arguments: str) -> int:
    """Return the exit code of the command; one that went well ends in SystemExit(0), as typer has it."""
    try:
        return main(["corpus", *arguments, "--workers", "1"])
    except SystemExit as done:
        return int(str(done.code))


def surveyed(*paths: Path, channel: Any = "mix", workers: int = 1) -> Survey:
    return survey(discover(paths, layout="plain"), channel=channel, workers=workers)


@pytest.mark.parametrize("rate_hz", [8000, 16000, 44100, 48000])
def test_level_and_spectrum_of_a_tone_are_right_at_every_rate(tmp_path: Path, rate_hz: int) -> None:
    found = measure(write(tmp_path / "t.wav", tone(1000, level=0.1, rate_hz=rate_hz), rate_hz=rate_hz), "mix")
    assert found.rms_dbfs == pytest.approx(-23.01, abs=0.02)
    assert found.peak_dbfs == pytest.approx(-20.0, abs=0.02)
    assert found.n_frames == 2 * rate_hz
    power = 10 ** (found.spectrum_dbfs.astype(float) / 10)
    assert abs(BAND_CENTRES_HZ[np.nanargmax(power)] - 1000) < 60
    assert 10 * np.log10(np.nansum(power)) == pytest.approx(-23.01, abs=0.1)
    heard = ~np.isnan(power)
    assert heard[0.45 * rate_hz > BAND_CENTRES_HZ].all()
    assert not heard[0.5 * rate_hz < BAND_CENTRES_HZ].any()


def test_white_noise_has_its_power_in_the_bands(tmp_path: Path) -> None:
    found = measure(write(tmp_path / "n.wav", noise(20.0), subtype="FLOAT"), "mix")
    assert found.rms_dbfs == pytest.approx(-20.0, abs=0.1)
    assert 10 * np.log10(np.nansum(10 ** (found.spectrum_dbfs / 10))) == pytest.approx(-20.0, abs=0.3)
    short = measure(write(tmp_path / "s.wav", noise(0.02)), "mix")  # less than one transform
    assert 10 * np.log10(np.nansum(10 ** (short.spectrum_dbfs / 10))) == pytest.approx(short.rms_dbfs, abs=6)


def test_a_long_recording_is_measured_as_a_whole(tmp_path: Path) -> None:
    sound = np.concatenate([noise(20.0, level=0.01), np.full(5, 0.99999), noise(20.0, seed=1, level=0.2)])
    found = measure(write(tmp_path / "l.wav", sound, subtype="FLOAT"), "mix")
    assert found.rms_dbfs == pytest.approx(20 * np.log10(sound.std()), abs=0.01)
    assert found.clipped_share == pytest.approx((5 - 2) / len(sound))


def test_clipping_is_runs_at_full_scale_not_one_sample(tmp_path: Path) -> None:
    clipped = np.clip(tone(100, level=3.0), -1, 1)
    assert measure(write(tmp_path / "c.wav", clipped), "mix").clipped_share > 0.5
    touching = noise(1.0)
    touching[[10, 500, 501, 900]] = 1.0
    assert measure(write(tmp_path / "t.wav", touching), "mix").clipped_share == 0.0


def test_dc_is_measured_beside_the_level_not_in_it(tmp_path: Path) -> None:
    found = measure(write(tmp_path / "d.wav", noise(2.0) - 0.2), "mix")
    assert found.dc == pytest.approx(-0.2, abs=0.01)
    assert found.rms_dbfs == pytest.approx(-20.0, abs=0.2)


def test_levels_are_those_of_the_channel_listened_to(tmp_path: Path) -> None:
    two = write(tmp_path / "two.wav", np.stack([noise(1.0), noise(1.0, seed=1, level=0.0005)], axis=1))
    loud, faint = measure(two, 0), measure(two, 1)
    assert loud.rms_dbfs == pytest.approx(-20, abs=0.2)
    assert faint.rms_dbfs == pytest.approx(-66, abs=0.2)
    assert loud.channels_dbfs == faint.channels_dbfs == (loud.rms_dbfs, faint.rms_dbfs)
    assert surveyed(two).quiet_channels(0) == [1]
    with pytest.raises(InputError, match="has 2 channels, no channel 2"):
        surveyed(two, channel=2)


def test_the_same_sound_is_found_in_whatever_file_it_lies(tmp_path: Path) -> None:
    sound = noise(1.0)
    for name in ("fan/train/normal_id_00_00000000.wav", "fan/test/normal_id_00_00000001.flac", "other/copy.wav"):
        write(tmp_path / name, sound)
    write(tmp_path / "another.wav", noise(1.0, seed=1))
    write(tmp_path / "faster.wav", sound, rate_hz=32000)
    report = report_on(surveyed(tmp_path))
    assert [[Path(name).name for name in group] for group in report.duplicates] == [
        ["normal_id_00_00000001.flac", "normal_id_00_00000000.wav", "copy.wav"]
    ]
    assert report.n_leaks == 1
    assert any("to train on and to test with: 1" in line for line in findings(report))


@pytest.fixture
def flawed(tmp_path: Path) -> Path:
    """A tree with one of everything that is worth a look."""
    root = tmp_path / "flawed"
    for i in range(3):
        write(root / f"good{i}.wav", noise(1.0 + i, seed=i))
    write(root / "silent.flac", np.zeros(RATE_HZ))
    write(root / "clipped.wav", np.clip(noise(1.0, seed=5, level=2.0), -1, 1))
    write(root / "dc.wav", noise(1.0, seed=6) + 0.1)
    write(root / "mute.wav", np.stack([noise(1.0, seed=7), np.zeros(RATE_HZ)], axis=1), rate_hz=48000)
    write(root / "copy.flac", noise(1.0, seed=0))
    write(root / "nan.wav", np.full(1000, np.nan), subtype="FLOAT")
    write(root / "empty.wav", np.zeros(0))
    (root / "text.wav").write_bytes(b"not sound" * 100)
    return root


def _names(files: Iterable[Any]) -> list[str]:
    return [Path(one if isinstance(one, str) else one.file).name for one in files]


def test_every_flaw_is_found_and_nothing_else(flawed: Path) -> None:
    report = report_on(surveyed(flawed))
    assert (report.n_files, report.n_read) == (11, 8)
    assert _names(report.silent) == ["silent.flac"]
    assert _names(report.clipped) == ["clipped.wav"]
    assert _names(report.dc) == ["dc.wav"]
    assert [(Path(file).name, dead) for file, dead in report.quiet_channels] == [("mute.wav", (1,))]
    assert [_names(group) for group in report.duplicates] == [["copy.flac", "good0.wav"]]
    assert {Path(file).name: reason for file, reason in report.broken} == {
        "empty.wav": "holds no sound",
        "nan.wav": "holds samples that are not finite",
        "text.wav": "Format not recognised.",
    }
    assert report.rates_hz == {16000: 7, 48000: 1}
    assert report.channels == {1: 7, 2: 1}
    assert report.codings == {"WAV PCM_16": 6, "FLAC PCM_16": 2}
    assert report.total_s == pytest.approx(10 + 1 / 3)
    assert report.duration_s.high == 3.0
    assert report.rms_dbfs.low == FLOOR_DBFS
    assert report.groups == ()
    assert set(report.spectra) == {""}


def test_worker_processes_find_the_same(flawed: Path) -> None:
    alone, together = surveyed(flawed), surveyed(flawed, workers=2)
    assert together.broken == alone.broken
    named = [[survey.codings[code] for code in survey.columns["coding"][survey.good]] for survey in (alone, together)]
    assert named[0] == named[1]
    for column in ("n_frames", "digest", "rms_dbfs", "quiet_channels"):
        assert (together.columns[column] == alone.columns[column]).all()


def test_what_names_say_is_counted(tmp_path: Path) -> None:
    for i in range(4):
        write(tmp_path / f"fan/train/section_00_source_train_normal_000{i}_m_1.wav", noise(1.0, seed=i))
    write(tmp_path / "fan/test/section_00_source_test_anomaly_0000_m_1.wav", noise(2.0, seed=9, level=0.01))
    write(tmp_path / "pump/test/section_01_target_test_normal_0000.wav", tone(500, level=0.1))
    report = report_on(surveyed(tmp_path))
    assert [(g.machine, g.section, g.domain, g.split, g.label, g.n_files) for g in report.groups] == [
        ("fan", 0, "source", "test", "anomaly", 1),
        ("fan", 0, "source", "train", "normal", 4),
        ("pump", 1, "target", "test", "normal", 1),
    ]
    assert [round(group.rms_dbfs) for group in report.groups] == [-40, -20, -23]
    assert list(report.spectra) == ["fan", "pump", ""]
    assert abs(BAND_CENTRES_HZ[np.nanargmax(report.spectra["pump"].median)] - 500) < 40
    spread = report.spectra["fan"]
    assert (spread.q10[:50] <= spread.median[:50]).all()
    assert spread.n_files == 5


def test_annotated_events_are_summed_up_by_label(tmp_path: Path) -> None:
    for name in ("a.wav", "sub/b.wav", "c.wav"):
        write(tmp_path / "in" / name, noise(10.0, seed=len(name)))
    rows = ["file,onset,offset,label", "a.wav,1,2,knock", "a.wav,3,6,knock", "sub/b.wav,8,12,", "gone.wav,1,2,knock"]
    (tmp_path / "events.csv").write_text("\n".join(rows))
    marked = report_on(surveyed(tmp_path / "in"), read_marks(tmp_path / "events.csv")).marked
    assert marked is not None
    assert marked.n_files == 2
    assert [(one.label, one.n_events, one.total_s, one.median_s) for one in marked.labels] == [
        ("", 1, 4.0, 4.0),
        ("knock", 2, 4.0, 2.0),
    ]
    assert [(Path(one.file).name, one.value) for one in marked.beyond_end] == [("b.wav", 2.0)]
    assert marked.n_unknown_files == 1


def test_files_to_look_at_are_the_common_the_extreme_and_the_odd(tmp_path: Path) -> None:
    for i in range(6):
        write(tmp_path / f"common{i}.wav", noise(1.0, seed=i))
    write(tmp_path / "loud.wav", noise(1.0, seed=7, level=0.3))
    write(tmp_path / "faint.wav", noise(1.0, seed=8, level=0.001))
    write(tmp_path / "silent.wav", np.zeros(RATE_HZ))
    write(tmp_path / "whistle.wav", tone(3000, level=0.2))
    found = surveyed(tmp_path)
    reasons = {found.recordings[one.number].path.stem: one.why for one in pick(found)}
    assert "loudest" in reasons["loud"]
    assert "quietest" in reasons["faint"]
    assert "odd spectrum" in reasons["whistle"]
    assert sum(why.startswith("typical") for why in reasons.values()) == 2
    assert "silent" not in reasons


def test_the_command_prints_draws_and_writes(flawed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "out"
    assert run(str(flawed), "--out", str(out)) == 0
    printed = capsys.readouterr().out
    for text in ("11, 3 cannot be read", "16000 Hz (7 files)", "clipped: 1", "DC offset: 1", "silent: 1"):
        assert text in printed
    with (out / "corpus.csv").open(newline="") as file:
        rows = {Path(row["file"]).name: row for row in csv.DictReader(file)}
    assert len(rows) == 11
    assert rows["good0.wav"]["same_sound_as"].endswith("copy.flac")
    assert rows["nan.wav"]["cannot_be_read"] == "holds samples that are not finite"
    assert rows["mute.wav"]["quiet_channels"] == "1"
    assert float(rows["good2.wav"]["duration_s"]) == 3.0
    figures = json.loads((out / "corpus.json").read_text())
    assert figures["n_read"] == 8
    assert len(figures["bands_hz"]) == len(figures["spectra"]["all"]["median"])
    assert figures["spectra"]["all"]["median"][-1] is not None  # one file reaches as high
    assert len((out / "corpus.png").read_bytes()) > 50_000


def test_json_is_the_only_thing_on_standard_output(flawed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(flawed), "--json", "--max-files", "4") == 0
    assert json.loads(capsys.readouterr().out)["n_files"] == 4


def test_a_tree_of_dcase_is_reported_in_full_and_drawn(tmp_path: Path) -> None:
    for machine in ("fan", "pump"):
        for seed, kind in enumerate(("train_normal", "test_normal", "test_anomaly")):
            name = f"{machine}/{kind.split('_')[0]}/section_00_source_{kind}_0000.wav"
            write(tmp_path / "in" / name, noise(1.0, seed=seed, level=0.1 if machine == "fan" else 0.05))
    assert run(str(tmp_path / "in"), "--draw", str(tmp_path / "p.png"), "--channel", "0") == 0
    assert (tmp_path / "p.png").stat().st_size > 50_000


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["none"], 66),
        (["bad"], 66),
        (["good", "--channel", "x"], 2),
        (["good", "--draw", "p.pdf"], 2),
        (["good", "--annotations", "none.csv"], 66),
        (["good", "--out", "good/a.wav/out"], 73),
        (["good", "--draw", "none/p.png"], 73),
    ],
)
def test_what_goes_wrong_ends_in_one_line_and_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("good/a.wav"), noise(1.0))
    Path("bad").mkdir()
    Path("bad/a.wav").write_bytes(b"RIFF")
    assert run(*arguments) == code
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("edgeasd: ")


def test_ten_second_files_take_milliseconds(tmp_path: Path) -> None:
    for i in range(20):
        write(tmp_path / f"{i}.flac", noise(10.0, seed=i))
    start_s = time.process_time()
    surveyed(tmp_path)
    assert (time.process_time() - start_s) / 20 < 0.06, "1000 of them would take more than a minute"


def test_real_clips_are_read_without_fault(recordings: Path) -> None:
    report: Report = report_on(surveyed(recordings / "machines" / "UAVprop"))
    assert report.n_read == report.n_files > 200
    assert not [*report.broken, *report.silent, *report.duplicates]
    assert {one.split for one in report.groups} == {"train", "test"}
