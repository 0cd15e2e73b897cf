"""How `edgeasd replay` divides an archive, and what it shows meanwhile."""

from __future__ import annotations

import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edgeasd.errors import UsageError

if TYPE_CHECKING:
    from edgeasd.archive import Progress, Watch
    from edgeasd.archive.takes import Shard

_LINE_EVERY_S = 60.0


def shard_of(text: str | None) -> Shard | None:
    """Return the share that `3/16` names; UsageError when it names none."""
    from edgeasd.archive.takes import Shard

    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text, re.ASCII)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise UsageError(f"--shard: {text!r} is not like 1/16, the first of 16 shares, to 16/16, the last")
    return Shard(int(found[1]), int(found[2]))


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """End by SystemExit on SIGTERM, so that whatever was begun is cleared away; the exit code is the shell's 143."""

    def end(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def shown_progress() -> Iterator[Watch]:
    """Show how far a replay has come: a bar on a terminal, else a line a minute."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    with Bars(BarColumn(24), TextColumn("{task.description}"), console=console, transient=True) as bars:
        bar = bars.add_task("0 done", total=None)

        def show(progress: Progress) -> None:
            bars.update(bar, description=_told(progress), total=progress.total_s, completed=progress.heard_s)

        yield show


class _Lines:
    """Prints how far a replay has come, at most once a minute."""

    def __init__(self) -> None:
        self._due_s = time.monotonic() + _LINE_EVERY_S

    def __call__(self, progress: Progress) -> None:
        """Print it when it is time."""
        if time.monotonic() >= self._due_s:
            print(_told(progress), file=sys.stderr, flush=True)
            self._due_s = time.monotonic() + _LINE_EVERY_S


def _told(progress: Progress) -> str:
    left_s = progress.left_s
    rest = "" if left_s is None else f", {_duration(left_s)} left"
    heard_h, total_h = progress.heard_s / 3600, progress.total_s / 3600
    return (
        f"{progress.n_done} of {progress.n_takes} recordings, {heard_h:.1f} of {total_h:.1f} h, "
        f"{progress.speed:.0f} x{rest}"
    )


def _duration(seconds: float) -> str:
    minutes, rest_s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest_s:02}" if hours else f"{minutes}:{rest_s:02}"
