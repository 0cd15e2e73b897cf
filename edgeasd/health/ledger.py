"""The ledger: what became of every frame of every source."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from edgeasd.records import LossReason, Skipped

_ABSENT = frozenset({LossReason.DEVICE_ABSENT})
"""Reasons for which there was no sound to lose; all others dropped sound that there was."""


@dataclass(frozen=True, slots=True)
class Account:
    """What became of the frames of one source that have passed; the parts add up to `total_frames`, always."""

    rate_hz: int
    scored_frames: int
    lost_frames: Mapping[LossReason, int]
    unexplained_frames: int
    """Frames that were passed over without a reason; more than zero is a bug."""

    @property
    def total_frames(self) -> int:
        """Return how many frames have passed."""
        return self.scored_frames + sum(self.lost_frames.values()) + self.unexplained_frames

    @property
    def total_s(self) -> float:
        """Return how much time has passed."""
        return self.total_frames / self.rate_hz

    @property
    def scored_s(self) -> float:
        """Return the seconds that were judged."""
        return self.scored_frames / self.rate_hz

    @property
    def dropped_s(self) -> dict[str, float]:
        """Return the seconds that were heard but not judged, by reason."""
        return {r.value: n / self.rate_hz for r, n in self.lost_frames.items() if r not in _ABSENT}

    @property
    def absent_s(self) -> dict[str, float]:
        """Return the seconds in which there was nothing to hear with, by reason."""
        return {r.value: n / self.rate_hz for r, n in self.lost_frames.items() if r in _ABSENT}

    @property
    def unexplained_s(self) -> float:
        """Return the seconds nobody accounts for."""
        return self.unexplained_frames / self.rate_hz


@dataclass(slots=True)
class _Page:
    frontier: int = 0
    scored: int = 0
    unexplained: int = 0
    lost: Counter[LossReason] = field(default_factory=Counter)


class Ledger:
    """Counts each frame of each source exactly once: as scored, as lost for a reason, or as unexplained.

    Per source a frontier moves forward from frame 0. What lies before it is settled: an overlapping window adds only
    what reaches beyond. What a record jumps over without a word is unexplained. May be used by several threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pages: dict[str, _Page] = {}

    @property
    def sources(self) -> tuple[str, ...]:
        """Return the sources that have an account."""
        return tuple(self._pages)

    def scored(self, source: str, first_frame: int, end_frame: int) -> None:
        """Settle the frames from `first_frame` up to `end_frame` as judged."""
        with self._lock:
            page = self._pages.setdefault(source, _Page())
            page.scored += _advance(page, first_frame, end_frame)

    def skipped(self, skipped: Skipped) -> None:
        """Settle frames as passed over."""
        with self._lock:
            page = self._pages.setdefault(skipped.source, _Page())
            n_frames = _advance(page, skipped.first_frame, skipped.first_frame + skipped.n_frames)
            if n_frames:
                page.lost[skipped.reason] += n_frames

    def restart(self, source: str) -> None:
        """Take note that a source counts from 0 again, as with the next recording; what was settled stays."""
        with self._lock:
            self._pages.setdefault(source, _Page()).frontier = 0

    def account(self, source: str, rate_hz: int) -> Account:
        """Return what became of the frames of a source so far."""
        with self._lock:
            page = self._pages.get(source) or _Page()
            return Account(rate_hz, page.scored, dict(page.lost), page.unexplained)


def _advance(page: _Page, first_frame: int, end_frame: int) -> int:
    """Move the frontier to `end_frame`; return how many frames of the record are new."""
    assert 0 <= first_frame <= end_frame, f"not a stretch of frames: {first_frame} to {end_frame}"
    if end_frame <= page.frontier:
        return 0
    begin = max(first_frame, page.frontier)
    page.unexplained += begin - page.frontier
    page.frontier = end_frame
    return end_frame - begin
