"""Replay: recordings through the very line that hears microphones, into tables and, if wanted, to a broker."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from edgeasd.assembly import Bench, JudgeOptions, plan_judges, seat_judges
from edgeasd.capture.convert import Channel
from edgeasd.capture.files import FileSource, discover
from edgeasd.capture.ring import Ring
from edgeasd.capture.thread import CaptureThread
from edgeasd.capture.windows import WindowReader
from edgeasd.clock import FrameClock
from edgeasd.errors import InputError
from edgeasd.line import Line, Several, Taker, Track
from edgeasd.publish.tables import EventTable, NoticeTable, Recording, ScoreTable
from edgeasd.records import Confirmation, Event, EventType, Score, Skipped
from edgeasd.scoring.listener import Said

log = logging.getLogger(__name__)

_RING_S = 20.0
_WAIT_S = 0.5


@dataclass(frozen=True, slots=True)
class ReplayJob:
    """What to replay, how fast, and who judges."""

    paths: tuple[Path, ...]
    judges: JudgeOptions
    glob: str | None = None
    channel: Channel = "mix"
    speed: float | None = None
    """Times real time; None is as fast as possible."""
    source: str = "replay"
    """What the source is called in messages."""

    def recordings(self) -> list[Path]:
        """Return the recordings in the order in which they are replayed; InputError when there are none."""
        return discover(self.paths, glob=self.glob)

    def label(self, path: Path) -> str:
        """Return what a recording is called in the tables: its path below the folder it was found in."""
        roots = [root for root in self.paths if root.is_dir() and path.is_relative_to(root)]
        return path.relative_to(roots[0]).as_posix() if roots else path.name

    @property
    def forgiving(self) -> bool:
        """Return whether a bad recording is passed over and counted: so in a tree, not when it was named."""
        return any(path.is_dir() for path in self.paths)


@dataclass(frozen=True, slots=True)
class TablePaths:
    """Which tables to write; None leaves one out."""

    scores: Path | None = None
    events: Path | None = None
    notices: Path | None = None


@dataclass(slots=True)
class ReplayResult:
    """What a replay came to."""

    heard_s: float = 0.0
    wall_s: float = 0.0
    n_recordings: int = 0
    n_windows: int = 0
    n_events: int = 0
    """Events that ended and were not taken back."""
    bad: list[str] = field(default_factory=list)
    """One line for each recording that could not be read."""


class Tables:
    """Writes what is said of one recording after another."""

    def __init__(self, paths: TablePaths, bench: Bench) -> None:
        self._scores = None
        if paths.scores is not None:
            pipeline = bench.pipeline
            self._scores = ScoreTable(paths.scores, join=pipeline.join, waits_for_confirmation=pipeline.confirms)
        self._events = None if paths.events is None else EventTable(paths.events)
        self._notices = None if paths.notices is None else NoticeTable(paths.notices)
        self.recording: Recording | None = None
        self.n_windows = 0
        self.n_events = 0

    def skipped(self, track: Track, skipped: Skipped) -> None:
        """Leave no row: what was not judged has no score."""

    def said(self, track: Track, said: Said, *, infer_ms: float) -> None:  # noqa: ARG002  # the protocol's
        """Write a row, or keep what will become one."""
        assert self.recording is not None
        if isinstance(said, Score | Confirmation):
            self.n_windows += isinstance(said, Score)
            if self._scores is not None:
                self._scores.take(self.recording, said)
        elif isinstance(said, Event):
            self.n_events += said.event_type is EventType.END and said.confirmed is not False
            if self._events is not None:
                self._events.take(self.recording, said)
        elif self._notices is not None:
            self._notices.take(self.recording, said)

    def ended(self, track: Track) -> None:  # noqa: ARG002  # the protocol's
        """Write what waited for a second look."""
        if self._scores is not None and self.recording is not None:
            self._scores.end_of_file(self.recording)

    def discard(self) -> None:
        """Leave nothing behind of tables that are not finished."""
        for table in (self._scores, self._events, self._notices):
            if table is not None:
                table.discard()

    def close(self) -> None:
        """Put the finished tables in their places."""
        for table in (self._scores, self._events, self._notices):
            if table is not None:
                table.close()


Report = Callable[[ReplayResult, Path], None]
"""Hears how far a replay has come, before each recording."""


def replay(
    job: ReplayJob,
    tables: TablePaths,
    *,
    also: Callable[[Bench, ExitStack], Taker] | None = None,
    report: Report | None = None,
) -> ReplayResult:
    """Replay recordings one after another; the tables appear when all is done.

    `also` makes a second taker, such as one that publishes. InputError ends the replay at a recording that cannot be
    read, unless it was found in a tree: then it is passed over and counted.
    """
    paths = job.recordings()
    result = ReplayResult()
    began_s = time.monotonic()
    with ExitStack() as stack:
        bench = stack.enter_context(seat_judges(plan_judges(job.judges)))
        written = Tables(tables, bench)
        stack.callback(written.discard)
        takers: list[Taker] = [written, *([] if also is None else [also(bench, stack)])]
        for path in paths:
            if report is not None:
                report(result, path)
            try:
                result.heard_s += _play(job, path, bench, takers, written=written)
            except InputError as exc:
                if not job.forgiving:
                    raise
                log.warning("passed over: %s", exc)
                result.bad.append(str(exc))
                continue
            result.n_recordings += 1
        if not result.n_recordings:
            raise InputError(f"none of the {len(paths)} recordings can be read: {result.bad[0]}")
        written.close()
    result.n_windows, result.n_events = written.n_windows, written.n_events
    result.wall_s = time.monotonic() - began_s
    return result


def _play(job: ReplayJob, path: Path, bench: Bench, takers: Sequence[Taker], *, written: Tables) -> float:
    """Run one recording through the line; return its length in seconds."""
    rate_hz = bench.grid.rate_hz
    source = FileSource(path, name=job.source, rate_hz=rate_hz, channel=job.channel, speed=job.speed)
    written.recording = Recording(job.label(path), rate_hz=rate_hz, origin_utc_ns=source.began_utc_ns)
    # Without a known start a paced replay is told as happening now, and a fast one as beginning now.
    paced = source.began_utc_ns is None and job.speed == 1.0
    clock = FrameClock(rate_hz, origin_utc_ns=None if paced else source.began_utc_ns or time.time_ns())
    doorbell = threading.Condition()
    capacity_frames = max(round(_RING_S * rate_hz), bench.grid.window_frames + bench.grid.hop_frames)
    ring = Ring(capacity_frames, policy="wait", doorbell=doorbell)
    reader = WindowReader(
        ring, source=job.source, window_frames=bench.grid.window_frames, hop_frames=bench.grid.hop_frames
    )
    with CaptureThread(source, ring, clock=clock) as thread:
        line = Line([Track(source, clock, ring, thread, reader)], bench.pipeline, doorbell=doorbell)
        all_takers = Several(takers)
        while line.running:
            line.step(all_takers, timeout_s=_WAIT_S)
    if thread.failure is not None:
        raise thread.failure
    if source.truncated:
        log.warning("%s ends before its header says; what there is was judged", path.name)
    return source.duration_s
