"""What the kernel says of sound cards: their ids, how they are plugged in, who uses them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from edgeasd.errors import EdgeasdError, NoPermissionError, UnavailableError

_CARD = re.compile(r"^ *(\d+) \[(\S+) *\]: .*? - (.*)$")
_PORTAUDIO_NAME = re.compile(r"\(hw:(\d+),(\d+)\)$")
_HW = re.compile(r"(?:plug)?hw:(?:CARD=)?([^,]+)(?:,(?:DEV=)?(\d+))?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Card:
    """One sound card."""

    number: int
    """May change at the next boot."""
    card_id: str
    """As in hw:CARD=id."""
    name: str
    """What PortAudio's name of its devices begins with."""
    long_name: str
    usb_id: str | None
    """VVVV:PPPP, lower case hexadecimal."""
    usb_serial: str | None
    usb_path: str | None
    """Which socket it is plugged into, such as 1-1.2."""


class Alsa:
    """Reads /proc/asound and /sys; the roots can be moved for a test."""

    def __init__(self, proc: Path = Path("/proc"), sys: Path = Path("/sys"), dev: Path = Path("/dev")) -> None:
        self._proc = proc
        self._sys = sys
        self._dev = dev

    def cards(self) -> tuple[Card, ...]:
        """Return the cards that are plugged in now."""
        lines = _text(self._proc / "asound/cards").splitlines()
        heads = [(index, match) for index, line in enumerate(lines) if (match := _CARD.match(line))]
        return tuple(self._card(head, lines[index + 1 : index + 2]) for index, head in heads)

    def _card(self, head: re.Match[str], rest: list[str]) -> Card:
        number, card_id, name = int(head[1]), head[2], head[3].strip()
        usb_id = _text(self._proc / f"asound/card{number}/usbid").strip().lower() or None
        long_name = rest[0].strip() if rest else name
        usb_serial = usb_path = None
        device = self._sys / f"class/sound/card{number}/device"  # the USB interface, below the device itself
        if usb_id is not None and device.exists():
            interface = device.resolve()
            usb_path = interface.name.partition(":")[0]
            usb_serial = _text(interface.parent / "serial").strip() or None
        return Card(number, card_id, name, long_name, usb_id, usb_serial, usb_path)

    def find(self, wanted: str, cards: tuple[Card, ...]) -> tuple[Card, int | None] | None:
        """Return the card and device that hw:, plughw:, usb-id: or usb-path: means; None if it is not there.

        The device is None where the name leaves it open. UnavailableError when several cards fit.
        """
        kind, _, value = wanted.partition(":")
        device: int | None = None
        if kind == "usb-id":
            vendor, _, rest = value.lower().partition(":")
            product, _, serial = rest.partition(":")
            fit = [card for card in cards if card.usb_id == f"{vendor}:{product}"]
            fit = [card for card in fit if not serial or (card.usb_serial or "").lower() == serial]
        elif kind == "usb-path":
            fit = [card for card in cards if card.usb_path == value or f" at {value}," in card.long_name]
        elif (match := _HW.fullmatch(wanted)) is not None:
            device = None if match[2] is None else int(match[2])
            fit = [card for card in cards if match[1] in {str(card.number), card.card_id}]
        else:
            return None
        if len(fit) > 1:
            ids = ", ".join(f"{card.card_id} (usb-path:{card.usb_path})" for card in fit)
            raise UnavailableError(f"{wanted}: {len(fit)} cards fit: {ids}; name one of them")
        return (fit[0], device) if fit else None

    def holder(self, card_number: int, device: int) -> str | None:
        """Return which process captures from a device, as "arecord (pid 123)"; None when it is free."""
        for status in sorted((self._proc / f"asound/card{card_number}/pcm{device}c").glob("sub*/status")):
            match = re.search(r"^owner_pid *: *(\d+)", _text(status), re.MULTILINE)
            if match is not None:
                program = _text(self._proc / match[1] / "comm").strip() or "a program"
                return f"{program} (pid {match[1]})"
        return None

    def capture_devices(self, card_number: int) -> list[int]:
        """Return the numbers of the devices of a card that can capture."""
        folders = (self._proc / f"asound/card{card_number}").glob("pcm*c")
        return sorted(int(folder.name[3:-1]) for folder in folders if folder.name[3:-1].isdigit())

    def explain(self, wanted: str, card: Card, device: int) -> EdgeasdError:
        """Return why a card that is plugged in cannot be captured from."""
        holder = self.holder(card.number, device)
        if holder is not None:
            return UnavailableError(f"{wanted}: in use by {holder}; a card has room for one program at a time")
        node = self._dev / f"snd/pcmC{card.number}D{device}c"
        if not node.exists():
            return UnavailableError(f"{wanted}: card {card.card_id} has no capture device {device}")
        if not os.access(node, os.R_OK | os.W_OK):
            return NoPermissionError(f"{wanted}: no permission for {node}; add the user to the group audio")
        return UnavailableError(f"{wanted}: card {card.card_id} is plugged in, but does not open")


def card_of(portaudio_name: str) -> tuple[int, int] | None:
    """Return the card and device number in PortAudio's name of a card; None for anything else."""
    match = _PORTAUDIO_NAME.search(portaudio_name)
    return None if match is None else (int(match[1]), int(match[2]))


def names_card(wanted: str) -> bool:
    """Return whether a device is given by card or USB identity rather than by name."""
    return wanted.startswith(("usb-id:", "usb-path:")) or _HW.fullmatch(wanted) is not None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
