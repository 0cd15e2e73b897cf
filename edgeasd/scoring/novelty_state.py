"""News, once: what is heard has turned into a lasting state unlike everything before."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from edgeasd.scoring.novelty_memory import RunningQuantile

_LASTING_S = 8.0
_USUAL_S = 300.0
_MIN_DISTANCE_DB = 4.0
_MIN_RATIO = 2.4
_QUIET_S = 30.0
"""At most one notice in this time."""


@dataclass(frozen=True, slots=True)
class StateChange:
    """The scene or the machine has entered a state unlike what was heard before."""

    windows_ago: int
    """It is thought to have begun with the window that came this many windows before the newest."""
    distance_db: float
    """How far the state lies from everything heard before, root mean square dB per number."""


class StateWatch:
    """Watches the distance of each window to everything older; state: the last five minutes of distances."""

    def __init__(self, hop_s: float) -> None:
        lasting = max(1, round(_LASTING_S / hop_s))
        self._recent: deque[float] = deque(maxlen=lasting)
        self._low = RunningQuantile(lasting, 0.25)
        self._usual = RunningQuantile(max(1, round(_USUAL_S / hop_s)))
        self._quiet = max(1, round(_QUIET_S / hop_s))
        self._since_notice = 0

    def step(self, distance_db: float) -> StateChange | None:
        """Take the distance of the newest window to everything older than the present state could be."""
        self._since_notice += 1
        self._recent.append(distance_db)
        self._low.add(distance_db)
        self._usual.add(distance_db)
        low_db = self._low.value()
        if low_db < _MIN_DISTANCE_DB or len(self._low) < self._low.n_kept or self._since_notice < self._quiet:
            return None
        limit_db = max(_MIN_DISTANCE_DB, _MIN_RATIO * self._usual.value())
        if low_db < limit_db:
            return None
        self._since_notice = 0
        first_new = next(i for i, distance in enumerate(self._recent) if distance >= limit_db)
        return StateChange(windows_ago=len(self._recent) - 1 - first_new, distance_db=low_db)
