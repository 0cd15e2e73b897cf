"""What a novelty score means: how rare it is where nothing happens, and from which one on to raise an alarm.

Measured at a hop of 0.5 s on ten soundscapes of 1.7 h in all (woods, streets, rooms, machine halls that change their
state), 1.5 h of them without any planted event; alarms open at a level and close 3 s below 0.6 of it. The levels are
set so that the liveliest third of these scenes keeps the budget. Rates below one an hour are extrapolated.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass

from edgeasd.scoring.alarm import Levels

_LEAVE_SHARE = 0.6
"""An alarm stays open, and its onset reaches back, down to this share of the level it opens at."""


@dataclass(frozen=True, slots=True)
class _Lane:
    knots: tuple[tuple[float, float], ...]
    """(score, share of event-free windows above it): log-linear in between."""
    tail: float
    """Beyond the last knot the share falls by a factor e for this much more score."""
    level_at_12: float
    """The score at which to open for 12 false alarms an hour."""
    level_per_e: float
    """So much higher for a factor e fewer."""
    lowest_level: float

    def p_value(self, score: float) -> float:
        """Return the share of ordinary windows with at least this score, in (0, 1], strictly decreasing."""
        if score <= self.knots[0][0]:
            return self.knots[0][1]
        last, p_last = self.knots[-1]
        if score <= last:
            index = bisect_left(self.knots, (score,))  # of the first knot at or above the score
            (low, p_low), (high, p_high) = self.knots[index - 1], self.knots[index]
            return float(p_low * (p_high / p_low) ** ((score - low) / (high - low)))
        return max(math.ulp(0.0), p_last * math.exp((last - score) / self.tail))

    def levels(self, false_alarms_per_hour: float) -> Levels:
        """Return where to open and close for a budget of false alarms."""
        enter = self.level_at_12 + self.level_per_e * math.log(12.0 / false_alarms_per_hour)
        enter = max(self.lowest_level, enter)
        return Levels(enter=enter, leave=_LEAVE_SHARE * enter)


_PROMPT = _Lane(
    knots=(
        (0.0, 1.0),
        (1.33, 0.9),
        (1.55, 0.7),
        (1.78, 0.5),
        (2.14, 0.3),
        (2.45, 0.2),
        (2.97, 0.1),
        (3.6, 0.05),
        (5.78, 0.01),
    ),
    tail=1.8,
    level_at_12=6.9,
    level_per_e=1.4,
    lowest_level=3.0,
)
_CONFIRMED = _Lane(
    knots=((0.0, 1.0), (1.14, 0.9), (1.25, 0.7), (1.41, 0.5), (1.62, 0.3), (1.8, 0.2), (2.11, 0.1), (3.52, 0.01)),
    tail=0.65,
    level_at_12=4.5,
    level_per_e=0.75,
    lowest_level=2.4,
)


def prompt_p_value(score: float) -> float:
    """Return how rare a prompt score is where nothing happens, in (0, 1]."""
    return _PROMPT.p_value(score)


def confirmed_p_value(score: float) -> float:
    """Return how rare a confirmed score is where nothing happens, in (0, 1]."""
    return _CONFIRMED.p_value(score)


def prompt_levels(false_alarms_per_hour: float) -> tuple[Levels, float]:
    """Return the levels of the prompt lane for a budget, and the p-value of the upper one.

    It adds about half as many false alarms as the confirmed lane makes; what it tells, it tells six seconds sooner.
    """
    levels = _PROMPT.levels(false_alarms_per_hour)
    return levels, _PROMPT.p_value(levels.enter)


def confirmed_levels(false_alarms_per_hour: float) -> Levels:
    """Return the levels of the confirmed lane for a budget of false alarms."""
    return _CONFIRMED.levels(false_alarms_per_hour)
