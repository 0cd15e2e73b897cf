"""What a stranger sees first: the demo, with its embedded broker, on its own soundscape and on a recording."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run_demo(out: Path, *arguments: str) -> str:
    """Run the demo in short; return what it printed."""
    environment = {**os.environ, "COLUMNS": "160", "XDG_STATE_HOME": str(out / "state"), "HOME": str(out)}
    command = [sys.executable, "-m", "deploy.demo.demo", "--out", str(out), "--seconds", "12", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=110)
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    return done.stdout


def test_the_demo_finds_most_of_what_it_planted(tmp_path: Path) -> None:
    shown = run_demo(tmp_path)

    table = shown[shown.index("planted and found") :]
    assert table.count("yes") >= 7  # of nine or ten
    assert table.count("nobody planted this") <= 2
    assert "359 messages" in shown  # one score a window, none twice, none lost
    assert (tmp_path / "score.png").stat().st_size > 20_000
    with (tmp_path / "scores.csv").open(newline="") as handle:
        assert len(list(csv.DictReader(handle))) == 359


def test_the_demo_takes_a_recording(tmp_path: Path, recordings: Path) -> None:
    shown = run_demo(tmp_path, "--audio", str(recordings / "streams" / "forest_day.flac"))

    assert "learning on its first 97 s" in shown
    assert "planted and found" in shown
    assert (tmp_path / "score.png").exists()
