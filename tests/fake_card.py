"""A sound card that does what no rig without hardware brings about: PortAudio by injection, with a clock of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from edgeasd.capture.alsa import Alsa
from edgeasd.capture.microphone import MicrophoneSource
from edgeasd.capture.portaudio import PortAudio
from edgeasd.capture.soundserver import SoundServer
from edgeasd.capture.source import SourceSpec
from edgeasd.records import AudioBlock, Gap, LossReason

S = 1_000_000_000


class FakeError(Exception):
    """As sounddevice.PortAudioError: a text and a code."""


class FakeStream:
    """A stream whose reads take no time, but move the clock on by what they read."""

    def __init__(self, card: FakeCard, *, channels: int, samplerate: int, **others: Any) -> None:
        card.asked.append((channels, samplerate))
        if card.open_error is not None:
            raise card.open_error
        if samplerate not in card.rates_hz:
            raise FakeError("Invalid sample rate", -9997)
        self._card, self._n_channels, self._rate_hz = card, channels, samplerate
        self._n_available = samplerate

    def start(self) -> None:
        self._card.n_open += 1

    def abort(self, ignore_errors: bool) -> None:
        self._card.n_open -= 1

    def close(self, ignore_errors: bool) -> None:
        pass

    @property
    def read_available(self) -> int:
        """Return a block or more when asked for one, and nothing behind the block that was read last."""
        n_frames, self._n_available = self._n_available, self._rate_hz
        return n_frames

    def read(self, n_frames: int) -> tuple[bytes, bool]:
        card = self._card
        self._n_available = 0
        card.n_reads += 1
        if card.n_reads in card.gone_at:
            raise FakeError("Unanticipated host error", -9999)
        delivered_hz = self._rate_hz * card.speed if self._rate_hz in card.wrong_rates_hz else self._rate_hz
        if card.n_reads not in card.burst_at:
            card.now_ns += round(n_frames * S / delivered_hz)
        card.now_ns += round(card.lost_s_at.get(card.n_reads, 0) * S)
        samples = np.tile(np.arange(self._n_channels, dtype=np.float32), (n_frames, 1))
        return samples.tobytes(), card.n_reads in card.overflow_at


@dataclass
class FakeCard:
    """A sounddevice module with one card, and the clock its streams move."""

    rates_hz: tuple[int, ...] = (16_000,)
    name: str = "card (hw:0,0)"
    max_channels: int = 2
    speed: float = 1.0
    wrong_rates_hz: tuple[int, ...] = ()
    overflow_at: tuple[int, ...] = ()
    gone_at: tuple[int, ...] = ()
    lost_s_at: dict[int, float] = field(default_factory=dict)
    burst_at: Sequence[int] = ()
    open_error: FakeError | None = None
    asked: list[tuple[int, int]] = field(default_factory=list)
    n_reads: int = 0
    n_open: int = 0
    n_initialised: int = 1
    n_looks: int = 0
    """How often a fresh list of devices was made."""
    now_ns: int = 1000 * S
    PortAudioError = FakeError

    def pause(self, event: threading.Event, seconds: float) -> None:
        if not event.is_set():
            self.now_ns += round(seconds * S)

    def RawInputStream(self, **options: Any) -> FakeStream:  # noqa: N802  # as sounddevice spells it
        return FakeStream(self, **options)

    def query_hostapis(self) -> list[dict[str, Any]]:
        return [{"name": "ALSA", "default_input_device": 0}]

    def query_devices(self) -> list[dict[str, Any]]:
        return [{"name": self.name, "hostapi": 0, "max_input_channels": self.max_channels, "default_samplerate": 48e3}]

    def _terminate(self) -> None:
        assert self.n_open == 0, "terminating PortAudio closes the streams of others"
        self.n_initialised -= 1

    def _initialize(self) -> None:
        self.n_initialised += 1
        self.n_looks += 1


class FakeServer:
    """A sound server that moves the stream away once, behind the back of everybody."""

    def __init__(self, card: FakeCard, *, strays_at: int = 0, news_after_s: float = 1e9) -> None:
        self._card, self._strays_at, self._news_after_s = card, strays_at, news_after_s
        self._strayed = False
        self.opened_at: list[int] = []
        self.closed = False

    def opened(self) -> None:
        self.opened_at.append(self._card.n_reads)
        self._strayed = False

    def strayed(self) -> bool:
        self._strayed = self._strayed or self._card.n_reads == self._strays_at
        return self._strayed

    def news(self) -> bool:
        return (self._card.now_ns - 1000 * S) / S >= self._news_after_s

    def close(self) -> None:
        self.closed = True


def listen(
    card: FakeCard,
    tmp_path: Path,
    *,
    until: Callable[[MicrophoneSource, AudioBlock | Gap], bool],
    server: FakeServer | None = None,
    **options: Any,
) -> tuple[list[AudioBlock | Gap], MicrophoneSource]:
    """Take what the source gives until it is told to close; check that the indices add up."""
    cards = tmp_path / "asound/cards"
    if not cards.exists():
        cards.parent.mkdir(exist_ok=True)
        cards.write_text(" 0 [card           ]: USB-Audio - card\n                      A card\n")
    spec = SourceSpec(**{"name": "mic", "device": "card", "rate_hz": 16_000, "block_frames": 1600, **options})
    source = MicrophoneSource(
        spec,
        audio=PortAudio(load=lambda: card, probe=list),
        alsa=Alsa(tmp_path, tmp_path, tmp_path),
        monotonic_ns=lambda: card.now_ns,
        pause=card.pause,
        server_of=lambda _name: cast("SoundServer | None", server),
    )
    items = []
    frame = 0
    for item in source.blocks():
        assert item.first_frame == frame
        frame += len(item.samples) if isinstance(item, AudioBlock) else item.n_frames
        items.append(item)
        if until(source, item):
            source.close()
    assert card.n_open == 0
    assert card.n_initialised == 1
    return items, source


def gaps(items: list[AudioBlock | Gap]) -> Iterator[tuple[int, int, LossReason]]:
    return ((item.first_frame, item.n_frames, item.reason) for item in items if isinstance(item, Gap))


def accounted_s(items: list[AudioBlock | Gap]) -> float:
    return sum(len(item.samples) if isinstance(item, AudioBlock) else item.n_frames for item in items) / 16_000


def after_reads(card: FakeCard, n_reads: int) -> Callable[[MicrophoneSource, AudioBlock | Gap], bool]:
    return lambda _source, _item: card.n_reads >= n_reads
