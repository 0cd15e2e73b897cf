"""What an archive consists of: its recordings, how long each is, and who plays which."""

from __future__ import annotations

import hashlib
import heapq
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeasd.capture.files import length_s
from edgeasd.errors import InputError
from edgeasd.replay import ReplayJob, label_of

_WORTH_A_PROCESS_S = 1800.0
"""Sound that takes as long to judge as a process takes to start; less is quicker in fewer processes."""


@dataclass(frozen=True, slots=True)
class Take:
    """One recording of an archive."""

    path: Path
    label: str
    """What it is called in the tables."""
    duration_s: float
    """As its header says; 0 for one that cannot be read."""
    key: str
    """Of its path, size and time of change: what was made of it counts as long as this is the same."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One of several equal shares of an archive."""

    index: int
    """From 1."""
    of: int

    def __post_init__(self) -> None:
        assert 1 <= self.index <= self.of

    def __str__(self) -> str:
        """Return it as users write it."""
        return f"{self.index}/{self.of}"


def survey(job: ReplayJob) -> list[Take]:
    """Return the recordings of a job in the order of the tables, with what their headers say of their lengths.

    InputError when there are none.
    """
    trees = job.trees()
    return [_take(path, label_of(path, trees)) for path in job.recordings()]


def _take(path: Path, label: str) -> Take:
    try:
        duration_s = length_s(path)
        status = path.stat()
        facts = f"{status.st_size}\0{status.st_mtime_ns}"
    except (InputError, OSError):  # said when it is played
        duration_s, facts = 0.0, ""
    identity = f"{label}\0{facts}\0".encode() + os.fsencode(path.absolute())
    return Take(path, label, duration_s, hashlib.sha256(identity).hexdigest()[:32])


def share_of(shard: Shard, takes: Sequence[Take]) -> list[Take]:
    """Return the recordings of one shard, in order; the shards together hold each recording once.

    Each recording, the longest first, goes to the shard that has least so far (Graham, 1969: at most 4/3 of the
    shortest longest share that there is).
    """
    loads = [(0.0, 0, index) for index in range(1, shard.of + 1)]
    mine: set[int] = set()
    for place in longest_first(takes):
        load_s, n_takes, index = heapq.heappop(loads)
        heapq.heappush(loads, (load_s + takes[place].duration_s, n_takes + 1, index))
        if index == shard.index:
            mine.add(place)
    return [take for place, take in enumerate(takes) if place in mine]


def longest_first(takes: Sequence[Take]) -> list[int]:
    """Return the places of recordings from the longest to the shortest, so that none is left to one process alone."""
    return sorted(range(len(takes)), key=lambda place: (-takes[place].duration_s, place))


def worthwhile_processes(takes: Sequence[Take], *, cores: int) -> int:
    """Return how many processes make the shortest work of recordings on so many cores."""
    total_s = sum(take.duration_s for take in takes)
    return max(1, min(cores, len(takes), int(total_s / _WORTH_A_PROCESS_S)))
