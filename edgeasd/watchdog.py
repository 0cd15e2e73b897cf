"""Telling the supervisor of progress, and only of progress: every loop of the node must have turned."""

from __future__ import annotations

import logging

from edgeasd.clock import NS_PER_S
from edgeasd.node import Node

log = logging.getLogger(__name__)

_UNWATCHED_S = 30.0
_MAX_STALLS = 3
_PINGS = 10
"""How often we speak within the time that we have."""


class Watchdog:
    """An attendant that says WATCHDOG=1 while the judging loop turns, by being asked, if the other loops turn too.

    Each loop has the time that the supervisor gives to the whole. A capture loop turns with every block of sound, and
    with every gap while its device is known to be away. A loop that has stood still for so long is named in the log,
    and the supervisor is told not to wait any longer.
    """

    def __init__(self, limit_s: float | None) -> None:
        """`limit_s` is the supervisor's; None when there is none: what stands still is then only logged."""
        self._limit_s = limit_s or _UNWATCHED_S
        self._told = ""
        self._due_s = 0.0

    def attend(self, node: Node, now_s: float) -> None:
        """Say that there was progress, or what stands still."""
        if now_s < self._due_s:
            return
        self._due_s = now_s + self._limit_s / _PINGS
        still = self._standing_still(node, now_s)
        if not still:
            self._told = ""
            if node.reporter.publisher.stats().stalls < _MAX_STALLS:  # one that no new connection helps is restarted
                node.notifier.watchdog()
        elif still != self._told:
            self._told = still
            log.error("%s has stood still for %.0f s", still, self._limit_s)
            node.notifier.stuck(f"{still} stands still")

    def _standing_still(self, node: Node, now_s: float) -> str:
        for track in node.line.tracks:
            if track.thread.alive and now_s - track.thread.last_progress_ns / NS_PER_S > self._limit_s:
                return f"capture of {track.source.name}"
        return "publishing" if node.reporter.publisher.stalled_s() > self._limit_s else ""
