"""Which microphones there are, and which one a name means: by name, never by an index that goes stale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgeasd.capture.alsa import Alsa, Card, card_of, names_card
from edgeasd.capture.portaudio import SHARED, PortAudio, PortDevice, input_devices
from edgeasd.errors import UnavailableError

COMMON_RATES_HZ = (8_000, 16_000, 22_050, 32_000, 44_100, 48_000, 96_000, 192_000)


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """A microphone, as `edgeasd devices` lists it."""

    name: str
    host_api: str
    max_channels: int
    default_rate_hz: int
    rates_hz: tuple[int, ...]
    """The common rates it opens at; empty when it is in use."""
    alsa_id: str | None
    """hw:CARD=id,DEV=n: stays the same over reboots."""
    usb_id: str | None
    usb_path: str | None
    holder: str | None
    """Who captures from it now."""
    is_default: bool


def list_devices(audio: PortAudio = SHARED, alsa: Alsa | None = None) -> list[DeviceInfo]:
    """Return every device that PortAudio can capture from, and the cards it cannot see because they are in use."""
    alsa = alsa or Alsa()
    cards = alsa.cards()
    audio.outdate()
    with audio.session() as session:
        listed = input_devices(session.sounddevice)
        found = [_describe(device, session.sounddevice, alsa, cards) for device in listed]
    seen = {info.alsa_id for info in found}
    busy = [_describe_busy(card, number, alsa) for card in cards for number in alsa.capture_devices(card.number)]
    return found + [info for info in busy if info.alsa_id not in seen]


def resolve(wanted: str, devices: Sequence[PortDevice], alsa: Alsa, cards: Sequence[Card]) -> PortDevice:
    """Return the device that an operator's name means; UnavailableError, which says why, when there is none.

    In this order: the exact name; hw:, plughw:, usb-id: or usb-path:; default; a part of the name in any case.
    plughw: means hw:, since edgeasd converts rates and channels itself.
    """
    exact = [device for device in devices if device.name == wanted]
    if exact:
        return _only(wanted, exact)
    if names_card(wanted):
        return _by_card(wanted, devices, alsa, tuple(cards))
    default = next((device for device in devices if device.is_default), None)
    if wanted == "default" and default is not None:
        return default
    if wanted.isdigit():
        raise UnavailableError(
            f"{wanted}: a number means another device after the next boot; give a name or hw:CARD=id"
        )
    parts = [device for device in devices if wanted.lower() in device.name.lower()]
    if parts:
        return _only(wanted, parts)
    names = ", ".join(device.name for device in devices) or "none at all"
    raise UnavailableError(f"{wanted}: no such microphone; there is {names}")


def _only(wanted: str, devices: Sequence[PortDevice]) -> PortDevice:
    first_host = [device for device in devices if device.host_api == devices[0].host_api]
    if len(first_host) > 1:
        names = ", ".join(device.name for device in first_host)
        raise UnavailableError(f"{wanted}: fits {len(first_host)} microphones ({names}); give more of the name, or hw:")
    return first_host[0]


def _by_card(wanted: str, devices: Sequence[PortDevice], alsa: Alsa, cards: tuple[Card, ...]) -> PortDevice:
    found = alsa.find(wanted, cards)
    if found is None:
        plugged = ", ".join(f"hw:CARD={card.card_id}" for card in cards) or "no card at all"
        raise UnavailableError(f"{wanted}: not plugged in; there is {plugged}")
    card, number = found
    for device in devices:
        place = card_of(device.name)
        if place is not None and place[0] == card.number and number in {None, place[1]}:
            return device
    numbers = alsa.capture_devices(card.number)
    if number is None and not numbers:
        raise UnavailableError(f"{wanted}: card {card.card_id} cannot capture")
    raise alsa.explain(wanted, card, numbers[0] if number is None else number)


def _describe(device: PortDevice, sounddevice: Any, alsa: Alsa, cards: Sequence[Card]) -> DeviceInfo:
    place = card_of(device.name)
    card = None if place is None else next((card for card in cards if card.number == place[0]), None)
    alsa_id = None if card is None or place is None else f"hw:CARD={card.card_id},DEV={place[1]}"
    return DeviceInfo(
        name=device.name,
        host_api=device.host_api,
        max_channels=device.max_channels,
        default_rate_hz=device.default_rate_hz,
        rates_hz=tuple(rate_hz for rate_hz in COMMON_RATES_HZ if _opens(device, rate_hz, sounddevice)),
        alsa_id=alsa_id,
        usb_id=None if card is None else card.usb_id,
        usb_path=None if card is None else card.usb_path,
        holder=None if place is None else alsa.holder(*place),
        is_default=device.is_default,
    )


def _describe_busy(card: Card, number: int, alsa: Alsa) -> DeviceInfo:
    """Describe a card that PortAudio leaves out: one that another program holds."""
    return DeviceInfo(
        name=card.long_name,
        host_api="ALSA",
        max_channels=0,
        default_rate_hz=0,
        rates_hz=(),
        alsa_id=f"hw:CARD={card.card_id},DEV={number}",
        usb_id=card.usb_id,
        usb_path=card.usb_path,
        holder=alsa.holder(card.number, number),
        is_default=False,
    )


def _opens(device: PortDevice, rate_hz: int, sounddevice: Any) -> bool:
    try:
        sounddevice.check_input_settings(device=device.index, channels=1, dtype="float32", samplerate=rate_hz)
    except sounddevice.PortAudioError:
        return False
    return True
