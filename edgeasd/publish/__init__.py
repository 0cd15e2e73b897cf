"""From records to subscribers: the wire format, the durable outbox, and the publishers."""

from __future__ import annotations

from typing import Protocol

from edgeasd.publish.commands import CommandBox
from edgeasd.publish.message import EngineInfo, Kind, Message, ModelInfo, NodeHealth, NodeInfo, Override, PublisherStats
from edgeasd.publish.wire import Wire

__all__ = [
    "CommandBox",
    "EngineInfo",
    "Kind",
    "Message",
    "ModelInfo",
    "NodeHealth",
    "NodeInfo",
    "Override",
    "Publisher",
    "PublisherStats",
    "Wire",
]


class Publisher(Protocol):
    """Takes messages in the order in which they happened; `publish` never waits for a network."""

    @property
    def commands(self) -> CommandBox | None:
        """Return where commands wait; None when none can come."""
        ...

    def publish(self, message: Message) -> None:
        """Accept a message; when this returns, an event lies on disk (where there is a disk to lie on)."""
        ...

    def stats(self) -> PublisherStats:
        """Return how publishing fares."""
        ...

    def stalled_s(self) -> float:
        """Return for how long the loop that publishes has not turned; 0 where there is none."""
        ...

    def close(self, deadline_s: float, *, farewell: bool = True) -> bool:
        """Send what can still be sent within `deadline_s`, keep the rest; return whether all of it ended in time.

        Without `farewell` the end is no clean stop: a broker is left to say that the node was lost.
        """
        ...
