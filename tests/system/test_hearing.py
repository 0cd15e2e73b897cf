"""`edgeasd devices` and the microphone part of `edgeasd check`, on a real sound server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeasd.capture.source import SourceSpec
from edgeasd.commands.checks.device import check_devices
from edgeasd.commands.hearing import hear
from edgeasd.errors import UnavailableError
from edgeasd.settings import Places, Settings, resolve_settings
from tests.rig.pulse import PulseMicrophone, available, one_microphone

_WHY_NOT = available()
pytestmark = pytest.mark.skipif(_WHY_NOT is not None, reason=_WHY_NOT or "")

RATE_HZ = 48_000


@pytest.fixture
def microphone(tmp_path: Path) -> Iterator[PulseMicrophone]:
    with one_microphone(tmp_path) as found:
        yield found


def _tone(amplitude: float, *, duration_s: float = 30.0) -> Any:
    time_s = np.arange(round(duration_s * RATE_HZ)) / RATE_HZ
    return (amplitude * np.sin(2 * np.pi * 1000.0 * time_s)).astype(np.float32)


def _spec(device: str) -> SourceSpec:
    return SourceSpec(name="mic0", device=device, rate_hz=RATE_HZ)


def _settings(device: str) -> Settings:
    places = Places(credential_dirs=(), config_files=())
    return resolve_settings(None, {"sources": [{"device": device}]}, places=places).settings


def _edgeasd(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgeasd.cli", *args], capture_output=True, text=True, timeout=60, check=False,
        stdin=subprocess.DEVNULL, env=os.environ,
    )  # fmt: skip


def test_devices_lists_a_microphone_and_what_it_hears(microphone: PulseMicrophone) -> None:
    microphone.play(_tone(0.25), RATE_HZ)
    rows = json.loads(_edgeasd("devices", "--json").stdout)
    (row,) = [row for row in rows if row["name"] == microphone.name]
    assert 16_000 in row["rates_hz"]
    assert "heard" not in row
    listing = _edgeasd("devices", "--test", "1").stdout.splitlines()
    heard = listing[listing.index(microphone.name) :]
    assert "channels at" in heard[1]
    assert "heard" in next(line for line in heard if "dBFS" in line)


def test_a_tone_is_heard_at_its_level(microphone: PulseMicrophone) -> None:
    microphone.play(_tone(0.25), RATE_HZ)
    heard = hear(_spec(microphone.name), listen_s=2)
    assert heard.rms_dbfs == pytest.approx(20 * np.log10(0.25 / np.sqrt(2)), abs=0.2)
    assert heard.peak_dbfs == pytest.approx(20 * np.log10(0.25), abs=0.2)
    assert (heard.device, heard.native_rate_hz, heard.fault) == (microphone.name, RATE_HZ, None)


def test_a_live_microphone_passes_the_check(microphone: PulseMicrophone) -> None:
    microphone.play(_tone(0.25), RATE_HZ)
    (finding,) = check_devices(_settings(microphone.name))
    assert (finding.verdict, finding.fix) == ("ok", "")
    assert "dBFS at" in finding.detail


def test_a_dead_microphone_is_a_warning_with_a_fix(microphone: PulseMicrophone) -> None:
    (finding,) = check_devices(_settings(microphone.name))
    assert finding.verdict == "warn"
    assert finding.detail.endswith("dead")
    assert "mute" in finding.fix


def test_an_absent_microphone_fails_and_names_what_there_is(microphone: PulseMicrophone) -> None:
    done = _edgeasd("check", "--json", "--config", str(_config(microphone, "no-such-card")))
    (finding,) = [finding for finding in json.loads(done.stdout) if finding["part"] == "microphone"]
    assert (done.returncode, finding["verdict"], finding["exit_code"]) == (69, "fail", 69)
    assert microphone.name in finding["detail"]


def test_a_hung_sound_server_is_left_behind(microphone: PulseMicrophone) -> None:
    microphone.freeze()
    try:
        with pytest.raises(UnavailableError, match="the sound system hangs"):
            hear(_spec(microphone.name), listen_s=1)
    finally:
        microphone.thaw()


def _config(microphone: PulseMicrophone, device: str) -> Path:
    path = microphone.socket.with_name("node.yaml")
    path.write_text(f"sources: [{{device: {device}}}]")
    return path
