"""What a source of sound is, and how one is opened."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from edgeasd.capture.convert import Channel
from edgeasd.records import AudioBlock, Gap


class Source(Protocol):
    """Sound of one microphone or recording, as mono blocks and the gaps between them.

    Frame indices start at 0 and count frames at `rate_hz`; each block or gap starts where the one before it ended.
    """

    @property
    def name(self) -> str:
        """Return the name that windows, topics and counters carry."""
        ...

    @property
    def rate_hz(self) -> int:
        """Return the rate of the blocks."""
        ...

    def blocks(self) -> Iterator[AudioBlock | Gap]:
        """Yield blocks and gaps until the sound ends or `close` is called; may be called once."""
        ...

    def close(self) -> None:
        """End `blocks` soon, from any thread; safe to call twice."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSpec:
    """Which microphone to listen to, and how."""

    name: str
    device: str
    """As an operator writes it: an ALSA or PortAudio name, hw:1, hw:CARD=x, usb-id:, usb-path:, a part of the name."""
    rate_hz: int
    """Of the model."""
    channel: Channel = 0
    """Counted from 0, or mix for the mean of all."""
    native_rate_hz: int | None = None
    """Rate to open the card at; None tries the model's first, then the card's own."""
    block_ms: int = 100


def open_microphone(spec: SourceSpec) -> Source:
    """Return a source that listens to a sound card, waits for it while it is absent and reopens it when it is lost."""
    from edgeasd.capture.microphone import MicrophoneSource  # noqa: PLC0415  # PortAudio loads only where it is used

    return MicrophoneSource(spec)
