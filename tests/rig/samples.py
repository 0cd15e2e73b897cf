"""What a process and its outbox weigh, sampled while it runs."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tests.rig.faults import Keeper

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Sample:
    """What was seen at one time."""

    at_s: float
    """Monotonic clock."""
    life: int
    rss_mb: float
    private_mb: float
    """Resident memory that no file backs: heap and stacks."""
    descriptors: int
    threads: int
    cpu_s: float
    """Since the process began."""
    outbox_rows: int
    """-1 when it could not be read."""
    outbox_bytes: int


class Sampler:
    """Looks every few seconds, in a thread of its own."""

    def __init__(self, keeper: Keeper, *, every_s: float) -> None:
        self._keeper = keeper
        self._every_s = every_s
        self._done = threading.Event()
        self.samples: list[Sample] = []
        self._thread = threading.Thread(target=self._look, name="sampler")
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._done.wait(self._every_s):
            life = len(self._keeper.lives)
            with contextlib.suppress(OSError, IndexError):  # the process is just ending
                self.samples.append(take_sample(self._keeper.life.pid, self._keeper.node.state_dir, life=life))


def take_sample(pid: int, state_dir: Path, *, life: int = 1) -> Sample:
    """Look once; OSError or IndexError when the process is gone."""
    process = Path(f"/proc/{pid}")
    lines = (line.split() for line in (process / "status").read_text().splitlines())
    status = {words[0]: words[1] for words in lines if len(words) > 1}
    if "VmRSS:" not in status:
        raise ProcessLookupError(f"process {pid} is a zombie")
    ticks = (process / "stat").read_text().rpartition(")")[2].split()[11:13]
    return Sample(
        at_s=time.monotonic(),
        life=life,
        rss_mb=int(status["VmRSS:"]) / 1024,
        private_mb=int(status["RssAnon:"]) / 1024,
        descriptors=len(list((process / "fd").iterdir())),
        threads=int(status["Threads:"]),
        cpu_s=sum(map(int, ticks)) / _TICKS_PER_S,
        outbox_rows=outbox_rows(state_dir),
        outbox_bytes=sum(path.stat().st_size for path in state_dir.glob("outbox.db*")),
    )


def outbox_rows(state_dir: Path) -> int:
    """Return how many messages wait in an outbox, -1 when it cannot be read."""
    found = _asked(state_dir, "SELECT (SELECT COUNT(*) FROM event) + (SELECT COUNT(*) FROM score)")
    return int(found[0][0]) if found else -1


def quarantined_rows(state_dir: Path) -> int:
    """Return how many messages are set aside, -1 when the outbox cannot be read."""
    found = _asked(state_dir, "SELECT COUNT(*) FROM quarantine")
    return int(found[0][0]) if found else -1


def events_ever(state_dir: Path) -> int:
    """Return how many messages were ever committed to the lane of events, which never uses a row twice."""
    return sum(int(n) for name, n in _asked(state_dir, "SELECT name, seq FROM sqlite_sequence") if name == "event")


def _asked(state_dir: Path, query: str) -> Sequence[tuple[Any, ...]]:
    path = state_dir / "outbox.db"
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=1.0)) as db:
            found: Sequence[tuple[Any, ...]] = db.execute(query).fetchall()
            return found
    except sqlite3.Error:
        return ()
