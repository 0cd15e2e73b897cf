"""The node that runs, as those see it who look after it between two steps of its line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from edgeasd.assembly import Bench
    from edgeasd.health.notify import Notifier
    from edgeasd.line import Line
    from edgeasd.reporter import Reporter
    from edgeasd.settings import Settings


@dataclass(slots=True)
class Node:
    """What a node consists of; settings and bench may change while it runs."""

    settings: Settings
    bench: Bench
    line: Line
    reporter: Reporter
    notifier: Notifier


class Attendant(Protocol):
    """Whoever has something to look after; called by the thread that judges, once a second at least."""

    def attend(self, node: Node, now_s: float) -> None:
        """Do what is due at `now_s`, monotonic; whatever takes longer than a few milliseconds belongs elsewhere."""
        ...
