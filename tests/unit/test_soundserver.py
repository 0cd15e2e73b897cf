from __future__ import annotations

import ctypes
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgeasd.capture.soundserver import PulseDevice, sound_server_of
from tests.rig.pulse import PulseRig, available

pytestmark = pytest.mark.skipif(available() is not None, reason=available() or "")


@pytest.fixture(autouse=True)
def files_read_anew() -> None:
    """ALSA reads its files once in a process: other tests had other ones."""
    ctypes.CDLL("libasound.so.2").snd_config_update_free_global()


_ASK = """
import sys
from edgeasd.capture.soundserver import pulse_device
for name in sys.argv[1:]:
    print(pulse_device(name))
"""


def test_a_device_of_a_sound_server_is_told_from_others(tmp_path: Path) -> None:
    others = ("null", "hw:0,0", "USB PnP: Audio (hw:1,0)", "no such")
    with PulseRig(tmp_path, "mic_a", plugged=False) as rig:  # in a process of its own: ALSA reads its files once
        command = [sys.executable, "-c", _ASK, "mic_a", *others]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        expected = PulseDevice(f"unix:{rig['mic_a'].socket}", "mic_a.monitor")
    assert told == [str(expected), *["None"] * len(others)]


def test_without_libpulse_listening_goes_on_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    load = ctypes.CDLL

    def without_libpulse(name: str, *arguments: Any) -> ctypes.CDLL:
        if "pulse" in name:
            raise OSError(f"{name}: cannot open shared object file")
        return load(name, *arguments)

    monkeypatch.setattr(ctypes, "CDLL", without_libpulse)
    with PulseRig(tmp_path, "mic_a", plugged=False), caplog.at_level(logging.WARNING):
        assert sound_server_of("mic_a") is None
    assert "nobody tells when its sound server changes microphones" in caplog.text


def test_a_server_that_is_not_there_is_tried_for_without_waiting(tmp_path: Path) -> None:
    with PulseRig(tmp_path, "mic_a", plugged=False):
        server = sound_server_of("mic_a")
    assert server is not None
    try:
        assert not server.news()
        assert not server.strayed()
    finally:
        server.close()
