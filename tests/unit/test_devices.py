from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgeasd.capture.alsa import Alsa
from edgeasd.capture.devices import resolve
from edgeasd.capture.portaudio import PortDevice
from edgeasd.errors import NoPermissionError, UnavailableError

CARDS = """\
 0 [PCH            ]: HDA-Intel - HDA Intel PCH
                      HDA Intel PCH at 0xf7c10000 irq 32
 2 [Mini           ]: USB-Audio - MiniDSP UMIK-1
                      miniDSP UMIK-1 at usb-0000:01:00.0-1.2, full speed
 3 [Device         ]: USB-Audio - USB Audio Device
                      C-Media USB Audio Device at usb-0000:01:00.0-1.3, full speed
 4 [Device_1       ]: USB-Audio - USB Audio Device
                      C-Media USB Audio Device at usb-0000:01:00.0-1.4, full speed
"""
USB = {2: ("2752:0007", "1-1.2", "UMIK7"), 3: ("0d8c:0014", "1-1.3", "A1"), 4: ("0d8c:0014", "1-1.4", "B2")}
NAMES = [
    "HDA Intel PCH: ALC892 Analog (hw:0,0)",
    "UMIK-1: USB Audio (hw:2,0)",
    "USB Audio Device: - (hw:3,0)",
    "pulse",
    "default",
]
DEVICES = [PortDevice(index, name, "ALSA", 2, 48_000, is_default=name == "default") for index, name in enumerate(NAMES)]


@pytest.fixture
def alsa(tmp_path: Path) -> Alsa:
    """The kernel's view of a machine with three USB microphones, the last in use and one without permission."""
    proc, sys, dev = tmp_path / "proc", tmp_path / "sys", tmp_path / "dev"
    (proc / "asound").mkdir(parents=True)
    (proc / "asound/cards").write_text(CARDS)
    (dev / "snd").mkdir(parents=True)
    for number in (0, 2, 3, 4):
        (proc / f"asound/card{number}/pcm0c/sub0").mkdir(parents=True)
        (proc / f"asound/card{number}/pcm0c/sub0/status").write_text("closed\n")
        (dev / f"snd/pcmC{number}D0c").touch()
    for number, (usb_id, usb_path, serial) in USB.items():
        (proc / f"asound/card{number}/usbid").write_text(usb_id + "\n")
        device = sys / f"devices/usb1/{usb_path}"
        (device / f"{usb_path}:1.0").mkdir(parents=True)
        (device / "serial").write_text(serial + "\n")
        (sys / f"class/sound/card{number}").mkdir(parents=True)
        (sys / f"class/sound/card{number}/device").symlink_to(device / f"{usb_path}:1.0")
    (proc / "asound/card4/pcm0c/sub0/status").write_text("state: RUNNING\nowner_pid   : 4242\n")
    (proc / "4242").mkdir()
    (proc / "4242/comm").write_text("arecord\n")
    return Alsa(proc, sys, dev)


@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        ("UMIK-1: USB Audio (hw:2,0)", 1),
        ("hw:2", 1),
        ("hw:2,0", 1),
        ("hw:CARD=Mini", 1),
        ("hw:CARD=Mini,DEV=0", 1),
        ("plughw:CARD=Mini", 1),
        ("hw:Mini", 1),
        ("usb-id:2752:0007", 1),
        ("usb-id:0D8C:0014:a1", 2),
        ("usb-path:1-1.3", 2),
        ("usb-path:usb-0000:01:00.0-1.3", 2),
        ("umik", 1),
        ("usb audio device", 2),
        ("pulse", 3),
        ("default", 4),
    ],
)
def test_a_name_means_one_device(alsa: Alsa, wanted: str, index: int) -> None:
    assert resolve(wanted, DEVICES, alsa, alsa.cards()).index == index


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ("hw:1", "not plugged in; there is hw:CARD=PCH, hw:CARD=Mini"),
        ("hw:CARD=Gone", "not plugged in"),
        ("usb-id:dead:beef", "not plugged in"),
        ("usb-id:0d8c:0014", r"2 cards fit: Device \(usb-path:1-1.3\), Device_1 \(usb-path:1-1.4\)"),
        ("usb-path:1-9", "not plugged in"),
        ("hw:CARD=Device_1", r"in use by arecord \(pid 4242\)"),
        ("hw:2,1", "has no capture device 1"),
        ("usb", "fits 2 microphones"),
        ("3", "a number means another device after the next boot"),
        ("nothing like it", "no such microphone; there is HDA Intel"),
    ],
)
def test_says_why_there_is_no_such_device(alsa: Alsa, wanted: str, says: str) -> None:
    with pytest.raises(UnavailableError, match=says):
        resolve(wanted, DEVICES, alsa, alsa.cards())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open everything")
def test_says_when_permission_is_missing(alsa: Alsa, tmp_path: Path) -> None:
    (tmp_path / "dev/snd/pcmC3D0c").chmod(0)
    with pytest.raises(NoPermissionError, match="add the user to the group audio"):
        resolve("hw:CARD=Device", DEVICES[:2], alsa, alsa.cards())


def test_default_falls_back_to_what_portaudio_calls_default(alsa: Alsa) -> None:
    mics = [
        PortDevice(0, "a", "ALSA", 1, 48_000, is_default=False),
        PortDevice(1, "b", "ALSA", 1, 48_000, is_default=True),
    ]
    assert resolve("default", mics, alsa, ()).name == "b"


def test_two_microphones_of_one_name_are_told_apart_by_their_socket(alsa: Alsa) -> None:
    names = ["USB Audio Device: - (hw:3,0)", "USB Audio Device: - (hw:4,0)"]
    twins = [PortDevice(index, name, "ALSA", 1, 48_000, is_default=False) for index, name in enumerate(names)]
    with pytest.raises(UnavailableError, match="fits 2 microphones"):
        resolve("USB Audio Device", twins, alsa, alsa.cards())
    assert resolve("usb-path:1-1.4", twins, alsa, alsa.cards()).index == 1


def test_machine_without_sound_has_no_cards(tmp_path: Path) -> None:
    alsa = Alsa(tmp_path, tmp_path, tmp_path)
    assert alsa.cards() == ()
    with pytest.raises(UnavailableError, match="there is no card at all"):
        resolve("hw:0", [], alsa, ())
    with pytest.raises(UnavailableError, match="there is none at all"):
        resolve("mic", [], alsa, ())
