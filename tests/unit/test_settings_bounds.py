"""What settings may not cost, and what the environment may not say."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from edgeasd.daemon import capturing
from edgeasd.errors import SettingsError
from edgeasd.scoring.jury import Grid
from edgeasd.settings import Places, resolve_settings
from tests.rig.node import EDGEASD

pytestmark = pytest.mark.usefixtures("bare_environment")

_NOWHERE = Places(credential_dirs=(), config_files=())


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("EDGEASD_NODE__NAME", "w097\nlog: {level: debug}"),
        ("EDGEASD_MQTT__HOST", "h$(id)"),
        ("EDGEASD_MQTT", '{"host": "h", "password_file": {"__class__": 1}}'),
        ("EDGEASD_MQTT", '{"host": "h"'),
        ("EDGEASD_SOURCES", '[{"device": "x", "name": "../../status"}]'),
        ("EDGEASD_SOURCES", "[" * 100_000),
        ("EDGEASD_BUNDLE", "/etc/shadow"),
        ("EDGEASD__MODEL_CONFIG__EXTRA", "allow"),
        ("EDGEASD_MODEL_CONFIG", '{"extra": "allow"}'),
        ("EDGEASD_LOG__LEVEL__X", "1"),
    ],
    ids=range(10),
)
def test_environment_cannot_say_more_than_a_file(monkeypatch: pytest.MonkeyPatch, variable: str, text: str) -> None:
    monkeypatch.setenv(variable, text)
    with pytest.raises(SettingsError) as caught:
        resolve_settings(None, places=_NOWHERE)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_backlog_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    sources = ", ".join(f"{{name: m{number}, device: card {number}}}" for number in range(25))
    config = tmp_path / "config.yaml"
    config.write_text(f"windows: {{max_backlog_s: 300}}\nsources: [{sources}]")
    loaded = resolve_settings(config, places=_NOWHERE).settings
    grid = Grid(rate_hz=384_000, window_frames=384_000, hop_frames=192_000)
    with (
        pytest.raises(SettingsError, match=r"max_backlog_s: 300 s of 25 sources at 384000 Hz take 11059 MiB"),
        capturing(loaded, grid, threading.Condition()),
    ):
        pass


def test_the_program_refuses_with_one_line_at_little_cost(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    with path.open("wb") as file:
        file.truncate(100 << 20)
    # A process inherits the peak of whoever started it: a small one in between starts the program and counts.
    counting = (
        "import resource, subprocess, sys; code = subprocess.run(sys.argv[1:]).returncode; "
        "print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    done = subprocess.run(
        [sys.executable, "-c", counting, EDGEASD, "run", "-c", str(path)], capture_output=True, text=True, check=True
    )
    code, peak_kb = map(int, done.stdout.split())
    lines = done.stderr.splitlines()
    assert (code, len(lines)) == (78, 1), lines
    assert "Traceback" not in lines[0]
    assert peak_kb < 128 << 10  # the interpreter with it
