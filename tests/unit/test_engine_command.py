"""`edgeasd engine`, and the engine and precision that the other commands are told."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from edgeasd.cli import main
from edgeasd.commands.engine import _become_owner
from edgeasd.settings import Settings
from tests.small_bundle import write_full_bundle, write_small_bundle


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_full_bundle(tmp_path / "small.edgeasd")


@pytest.fixture
def config(tmp_path: Path, state_dir: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(f"state_dir: {state_dir}\n")
    return path


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    path = tmp_path / "sound.wav"
    samples = np.random.default_rng(5).normal(scale=0.05, size=8000 * 6).astype(np.float32)
    soundfile.write(path, samples, 8000, subtype="PCM_16")
    return path


def run(*words: object) -> int:
    """Return the exit code of a command in this process."""
    try:
        return main([str(word) for word in words])
    except SystemExit as exc:
        return int(exc.code or 0)


def said_by(capsys: pytest.CaptureFixture[str], *words: object) -> Any:
    capsys.readouterr()
    assert run(*words) == 0
    return json.loads(capsys.readouterr().out)


def test_what_is_built_is_listed_and_used_and_can_be_cleared(
    file: Path, config: Path, state_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = state_dir / "engines"
    facts = said_by(capsys, "engine", "info", "-c", config, "--json")
    assert facts["cache"] == {"folder": str(cache), "entries": []}
    assert not cache.exists()  # looking leaves nothing behind
    assert [one["name"] for one in facts["engines"]] == ["onnx", "torch", "tensorrt"]
    assert facts["engines"][0]["version"]

    assert run("engine", "build", file, "-c", config, "--engine", "onnx", "--precision", "auto") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" ready in ")[0].split() for line in lines[:3]] == [
        ["onnx", "fp32"],
        ["onnx", "fp16"],
        ["onnx", "int8"],
    ]
    assert "measured at " in lines[3]
    (entry,) = said_by(capsys, "engine", "info", "-c", config, "--json")["cache"]["entries"]
    assert (entry["kind"], entry["precision"]) == ("choice", "auto")
    assert "onnxruntime" in entry["library"]

    assert run("engine", "clear", "-c", config) == 0
    assert "1 files removed" in capsys.readouterr().out
    assert said_by(capsys, "engine", "info", "-c", config, "--json")["cache"]["entries"] == []


def test_the_bench_measures_each_precision_in_a_process_of_its_own(
    file: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("engine", "bench", file, "-c", config, "--seconds", "0.01", "--hop", "0.032", "--precision", "int8")
    told = said_by(capsys, *words, "--json")
    onnx, tensorrt = told["engines"]  # torch computes in fp32 only
    assert (onnx["engine"], onnx["precision"], onnx["device"]) == ("onnx", "int8", "cpu")
    assert 1e-4 < onnx["golden_deviation"] < 0.03
    assert onnx["peak_bytes"] > 20 << 20
    assert [one["windows"] for one in onnx["batches"]] == [1, 8, 64, 512]
    for one in onnx["batches"]:
        assert one["times_real_time"] == pytest.approx(0.032 * 1e3 * one["windows"] / one["ms"])
    assert tensorrt["trouble"]


def test_a_bench_of_which_nothing_can_be_measured_fails(
    tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_small_bundle(tmp_path / "fp32.edgeasd")
    assert run("engine", "bench", file, "-c", config, "--engine", "onnx", "--precision", "fp16") == 65
    shown = capsys.readouterr()
    assert "no graph in fp16" in shown.out
    assert "no graph in fp16" in shown.err


def test_without_a_bundle_there_is_nothing_to_build(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("engine", "build", "-c", config) == 2
    assert "BUNDLE: none given" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_root_builds_as_the_user_of_the_node(tmp_path: Path) -> None:
    state_dir = tmp_path / "state"
    state_dir.mkdir()
    os.chown(state_dir, 65534, 65533)
    child = os.fork()
    if child == 0:
        _become_owner(Settings(state_dir=state_dir))
        os._exit(0 if (os.getresuid(), os.getresgid()) == ((65534,) * 3, (65533,) * 3) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def scores(path: Path) -> list[float]:
    with path.open(encoding="utf-8", newline="") as table:
        return [float(row["model"]) for row in csv.DictReader(table)]


def test_a_replay_and_a_calibration_are_in_the_precision_that_was_asked_for(
    file: Path, config: Path, state_dir: Path, sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told: dict[str, list[float]] = {}
    for precision in ("fp32", "int8"):
        out = tmp_path / f"{precision}.csv"
        words = ("replay", sound, "-b", file, "-c", config, "--hop", "0.032")
        assert run(*words, "--precision", precision, "--out", out) == 0
        told[precision] = scores(out)
    assert told["int8"] != told["fp32"]
    assert np.corrcoef(told["int8"], told["fp32"])[0, 1] > 0.95

    assert run("calibrate", sound, "-b", file, "-c", config, "--hop", "0.032", "--precision", "int8") == 0
    (path,) = state_dir.glob("calibration-*.json")
    assert path.name.endswith("-int8.json")


def test_the_info_topic_says_what_runs_and_why(
    file: Path, config: Path, sound: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("replay", sound, "-b", file, "-c", config, "--hop", "0.064")
    assert run(*words, "--engine", "onnx", "--precision", "auto") == 0
    messages = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (info,) = [message["payload"] for message in messages if message["topic"].endswith("/info")]
    assert (info["backend"], info["gpu"]) == ("onnx", None)
    assert (info["engine"]["name"], info["engine"]["device"]) == ("onnx", "cpu")
    assert info["engine"]["why"].startswith("measured at ")
    assert info["engine"]["ms_a_window"] > 0.0


def test_torch_is_not_asked_for_fewer_bits(file: Path, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with config.open("a", encoding="utf-8") as settings:
        settings.write("engine: torch\nprecision: int8\n")
    assert run("check", "-c", config) == 78
    assert "precision: int8 needs another engine" in capsys.readouterr().err
