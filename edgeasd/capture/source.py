"""What a source of sound is, and how one is opened."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from edgeasd.capture.convert import Channel
from edgeasd.records import AudioBlock, Gap

FIFO, STDIN = "fifo:", "-"


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
    """As an operator writes it: an ALSA or PortAudio name, hw:1, hw:CARD=x, usb-id:, usb-path:, a part of the name; or
    fifo:PATH, or - for stdin, which bring samples of 16 bits."""
    rate_hz: int
    """Of the model."""
    channel: Channel = 0
    """Counted from 0, or mix for the mean of all."""
    native_rate_hz: int | None = None
    """Rate to open the card at; None tries the model's first, then the card's own."""
    block_frames: int = 1600
    """At `rate_hz`: how much sound is read at once. Windows that end with a block are judged without delay."""


def is_pipe(device: str) -> bool:
    """Return whether a device, as an operator writes it, is a pipe and no sound card."""
    return device == STDIN or device.startswith(FIFO)


def open_source(spec: SourceSpec) -> Source:
    """Return a source that waits for its sound card, or the writer of its pipe, for as long as it is absent."""
    if is_pipe(spec.device):
        from edgeasd.capture.pipe import PipeSource  # noqa: PLC0415

        return PipeSource(spec)
    from edgeasd.capture.microphone import MicrophoneSource  # noqa: PLC0415  # PortAudio loads only where it is used

    return MicrophoneSource(spec)
