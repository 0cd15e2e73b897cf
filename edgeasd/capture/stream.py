"""One open stream of a microphone: found by name, opened at a rate it has, read by blocking calls."""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeasd.capture.alsa import Alsa, card_of, names_card
from edgeasd.capture.convert import Channel, longest_lag, to_mono
from edgeasd.capture.devices import resolve
from edgeasd.capture.portaudio import PortAudio, PortDevice, error_text, input_devices
from edgeasd.capture.source import SourceSpec
from edgeasd.errors import EdgeasdError, NoPermissionError, UnavailableError
from edgeasd.records import FloatArray

_NATIVE_RATES_HZ = (48_000, 44_100, 32_000, 96_000, 192_000, 22_050, 16_000, 8_000)
_BUFFER_BLOCKS, _BUFFER_LIMIT_S = 4, 1.0
"""PortAudio splits the latency it is asked for into four periods: so a period is a block, or a part of it."""
_MAX_REAL_CHANNELS = 8
"""A device that claims more is no card but a plugin, which mixes down to as many as it is asked for."""
_INVALID_RATE = -9997
_SHORTEST_WAIT_S = 0.025
"""A sound server gives its sound in driblets: to ask for each costs more than the reading."""
_NEVER = threading.Lock()
"""Waited for in place of time.sleep, which fails under libfaketime: the rig's way to make the wall clock jump."""
_NEVER.acquire()


class AppearedError(UnavailableError):
    """Raised for a device that came while other streams are open: they are recalled, and the next attempt sees it."""


@dataclass(slots=True)
class InputStream:
    """A running stream; closed through PortAudio.close, which counts the open ones."""

    raw: Any
    """sounddevice.RawInputStream of float32, interleaved."""
    device_name: str
    native_rate_hz: int
    n_channels: int
    _audio: PortAudio
    _channel: Channel
    _error: Any

    def read(self, n_frames: int) -> tuple[FloatArray, bool]:
        """Wait for so many native frames; return them as mono, and whether sound was lost before them, if known.

        UnavailableError when the device is gone.
        """
        try:
            while (n_missing := n_frames - self._available()) > 0:
                _NEVER.acquire(timeout=max(_SHORTEST_WAIT_S, n_missing / self.native_rate_hz))
            with self._audio.call():
                raw, overflowed = self.raw.read(n_frames)
        except self._error as error:
            raise UnavailableError(f"{self.device_name}: lost ({error_text(error)})") from error
        samples = np.frombuffer(raw, dtype=np.float32)
        if self.n_channels > 1:
            samples = to_mono(samples.reshape(-1, self.n_channels), self._channel)
        return samples, overflowed

    def waiting_s(self) -> float:
        """Return how much sound has come behind what was read last: so much older its end is."""
        try:
            return max(0, self._available()) / self.native_rate_hz
        except self._error:
            return 0.0

    def _available(self) -> int:
        with self._audio.call():
            return int(self.raw.read_available)


def open_stream(
    spec: SourceSpec, *, audio: PortAudio, alsa: Alsa, refused_rates_hz: Collection[int] = ()
) -> InputStream:
    """Find the device anew and start capturing; UnavailableError or NoPermissionError, which say why, if that fails.

    Opens at `native_rate_hz` where one is set, else at the model's rate, else at the first common one that opens.
    """
    listed: list[PortDevice] = []
    fresh = True
    try:
        with audio.session() as session:
            fresh = session.fresh
            listed = input_devices(session.sounddevice)
            device = _find(spec.device, listed, alsa, fresh=fresh)
            stream = _open(device, spec, session.sounddevice, audio=audio, alsa=alsa, refused_rates_hz=refused_rates_hz)
            audio.opened()
            return stream
    except UnavailableError as trouble:
        if fresh or not _seen_by_another(spec.device, listed, audio, alsa):
            raise
        audio.recall()
        raise AppearedError(
            f"{spec.device}: has come, and opens as soon as the other microphones have paused"
        ) from trouble


def _find(wanted: str, listed: Sequence[PortDevice], alsa: Alsa, *, fresh: bool) -> PortDevice:
    cards = alsa.cards()
    device = resolve(wanted, listed, alsa, cards)
    place = card_of(device.name)
    if fresh or place is None:
        return device
    # In an old list a number may stand for a card that has left it to another.
    if any(card.number == place[0] and device.name.startswith(card.name) for card in cards):
        return device
    raise UnavailableError(f"{wanted}: not plugged in any more")


def _seen_by_another(wanted: str, listed: Sequence[PortDevice], audio: PortAudio, alsa: Alsa) -> bool:
    """Return whether a fresh PortAudio finds a device that is missing from our list."""
    if names_card(wanted) and not alsa.find(wanted, alsa.cards()):
        return False
    names = audio.probe()
    known = {device.name for device in listed}
    fresh = [PortDevice(index, name, "", 1, 0, is_default=False) for index, name in enumerate(names)]
    try:
        return resolve(wanted, fresh, alsa, alsa.cards()).name not in known
    except (UnavailableError, NoPermissionError):
        return False


def _open(
    device: PortDevice,
    spec: SourceSpec,
    sounddevice: Any,
    *,
    audio: PortAudio,
    alsa: Alsa,
    refused_rates_hz: Collection[int],
) -> InputStream:
    n_channels = _channels(device, spec)
    rates_hz = [rate_hz for rate_hz in _candidates_hz(device, spec) if rate_hz not in refused_rates_hz]
    for rate_hz in rates_hz:
        try:
            raw = sounddevice.RawInputStream(
                device=device.index,
                channels=n_channels,
                samplerate=rate_hz,
                dtype="float32",
                latency=_latency_s(spec, rate_hz),
            )
            _start(raw)
        except sounddevice.PortAudioError as error:
            if _code(error) == _INVALID_RATE:
                continue
            raise _explain(device, spec, error, alsa) from error
        return InputStream(raw, device.name, rate_hz, n_channels, audio, spec.channel, sounddevice.PortAudioError)
    if not rates_hz:
        raise UnavailableError(f"{spec.device}: delivered at none of its rates what it promised")
    tried = ", ".join(str(rate_hz) for rate_hz in rates_hz)
    raise UnavailableError(f"{spec.device}: opens at none of {tried} Hz; set native_rate_hz to a rate it has")


def _latency_s(spec: SourceSpec, rate_hz: int) -> float:
    """Return how much sound is to be held for us: never less than what one reading asks for."""
    blocks_s = min(_BUFFER_LIMIT_S, _BUFFER_BLOCKS * spec.block_frames / spec.rate_hz)
    return blocks_s + longest_lag(rate_hz, spec.rate_hz) / spec.rate_hz


def _start(raw: Any) -> None:
    try:
        raw.start()
    except Exception:
        raw.close(ignore_errors=True)
        raise


def _channels(device: PortDevice, spec: SourceSpec) -> int:
    """Return how many channels to open: the leading ones, up to the one that is wanted."""
    is_plugin = device.max_channels > _MAX_REAL_CHANNELS
    if spec.channel == "mix":
        return 1 if is_plugin else device.max_channels
    if spec.channel >= device.max_channels:
        count = "1 channel" if device.max_channels == 1 else f"{device.max_channels} channels"
        raise UnavailableError(f"{spec.device}: has {count}, no channel {spec.channel} (counted from 0)")
    return spec.channel + 1


def _candidates_hz(device: PortDevice, spec: SourceSpec) -> list[int]:
    if spec.native_rate_hz is not None:
        return [spec.native_rate_hz]
    default = [device.default_rate_hz] if device.default_rate_hz >= spec.rate_hz else []
    return list(dict.fromkeys([spec.rate_hz, *default, *_NATIVE_RATES_HZ]))


def _explain(device: PortDevice, spec: SourceSpec, error: Exception, alsa: Alsa) -> EdgeasdError:
    place = card_of(device.name)
    if place is not None:
        card = next((card for card in alsa.cards() if card.number == place[0]), None)
        if card is not None and alsa.holder(*place) is not None:
            return alsa.explain(spec.device, card, place[1])
    return UnavailableError(f"{spec.device}: does not open ({error_text(error)})")


def _code(error: Exception) -> int | None:
    return error.args[1] if len(error.args) > 1 and isinstance(error.args[1], int) else None
