"""Which sources are judged: a source that is switched off is captured and accounted for, and nothing else."""

from __future__ import annotations

from dataclasses import replace

from edgeasd.records import LossReason, Skipped, Window


class Switches:
    """Turns the windows of sources that are off into losses, before anybody judges them."""

    def __init__(self) -> None:
        self._off: set[str] = set()
        self._resuming: set[str] = set()
        self._ends: dict[str, int] = {}  # just past the last window that was seen, by source

    def is_on(self, source: str) -> bool:
        """Return whether the source is judged."""
        return source not in self._off

    def turn(self, source: str, *, on: bool) -> None:
        """Judge a source from its next window on, or no more."""
        if not on:
            self._off.add(source)
        elif source in self._off:
            self._off.discard(source)
            self._resuming.add(source)

    def passed(self, item: Window | Skipped) -> Window | Skipped:
        """Return what the judge gets: the item itself, or the frames of it that nobody has accounted for, as lost."""
        if isinstance(item, Skipped):
            return item
        source, end_frame = item.source, item.end_frame
        before_frame = self._ends.get(source, 0) if item.follows else 0
        self._ends[source] = end_frame
        if source in self._off:
            first_frame = max(item.first_frame, before_frame)
            return Skipped(source, first_frame, end_frame - first_frame, LossReason.DISABLED)
        if source in self._resuming:
            self._resuming.discard(source)
            return replace(item, follows=False)  # the windows it follows were never looked at
        return item
