"""Replay: recordings through the very line that hears microphones, into tables and, if wanted, to a broker."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime
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
from edgeasd.scoring.alarm import make_ulid
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

    def trees(self) -> list[Path]:
        """Return the folders among the paths; with any, a bad recording is passed over and counted."""
        return [path for path in self.paths if path.is_dir()]


def label_of(path: Path, trees: Sequence[Path]) -> str:
    """Return what a recording is called in the tables: its path below the folder it was found in."""
    tree = next((tree for tree in trees if path.is_relative_to(tree)), None)
    return path.name if tree is None else path.relative_to(tree).as_posix()


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
    n_before: int = 0
    """Of these, what an earlier replay had done that was gone on with."""
    n_missing: int = 0
    """Recordings of other shards that are not done: while there are any, there are no tables."""
    n_windows: int = 0
    n_events: int = 0
    """Events that ended and were not taken back."""
    bad: list[str] = field(default_factory=list)
    """One line for each recording that could not be read."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What came of one recording."""

    duration_s: float
    truncated: bool
    """True when it ended before its header says."""


class Tables:
    """Writes what is said of one recording after another.

    Events bear the names of their messages with `named_elsewhere`; else names that follow from what is said of them, so
    that a replay that is repeated gives the same table.
    """

    def __init__(self, paths: TablePaths, bench: Bench, *, named_elsewhere: bool = False) -> None:
        self._named_elsewhere = named_elsewhere
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
                self._events.take(self.recording, said if self._named_elsewhere else _named(said, self.recording))
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


def _named(event: Event, recording: Recording) -> Event:
    """Return an event under a ULID of its start and of what is told of it."""
    utc = recording.utc(event.start_frame)
    told = f"{recording.file}\0{utc}\0{event.start_frame}\0{event.end_frame}\0{event.peak_score:.6g}"
    rest = int.from_bytes(hashlib.sha256(told.encode(errors="surrogateescape")).digest()[:10], "big")
    since_s = datetime.fromisoformat(utc).timestamp() if utc else float(recording.seconds(event.start_frame))
    return replace(event, event_id=make_ulid(round(1e3 * since_s), rest))


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
    paths, trees = job.recordings(), job.trees()
    result = ReplayResult()
    began_s = time.monotonic()
    with ExitStack() as stack:
        bench = stack.enter_context(seat_judges(plan_judges(job.judges)))
        written = Tables(tables, bench, named_elsewhere=also is not None)
        stack.callback(written.discard)
        takers: list[Taker] = [written, *([] if also is None else [also(bench, stack)])]
        for path in paths:
            if report is not None:
                report(result, path)
            try:
                heard = play(job, path, bench, takers, written=written, label=label_of(path, trees))
            except InputError as exc:
                if not trees:
                    raise
                log.warning("passed over: %s", exc)
                result.bad.append(str(exc))
                continue
            result.n_recordings += 1
            result.heard_s += heard.duration_s
            if heard.truncated:
                warn_of_truncation(path)
        if not result.n_recordings:
            raise InputError(f"none of the {len(paths)} recordings can be read: {result.bad[0]}")
        written.close()
    result.n_windows, result.n_events = written.n_windows, written.n_events
    result.wall_s = time.monotonic() - began_s
    return result


def warn_of_truncation(path: Path) -> None:
    """Say that a recording was judged as far as it goes."""
    log.warning("%s ends before its header says; what there is was judged", path.name)


def play(job: ReplayJob, path: Path, bench: Bench, takers: Sequence[Taker], *, written: Tables, label: str) -> Heard:
    """Run one recording through the line; InputError when it cannot be read, or not to its end.

    The judges know nothing of it afterwards, whatever happened.
    """
    rate_hz = bench.grid.rate_hz
    source = FileSource(path, name=job.source, rate_hz=rate_hz, channel=job.channel, speed=job.speed)
    written.recording = Recording(label, rate_hz=rate_hz, origin_utc_ns=source.began_utc_ns)
    # Without a known start a paced replay is told as happening now, and a fast one as beginning now.
    paced = source.began_utc_ns is None and job.speed == 1.0
    clock = FrameClock(rate_hz, origin_utc_ns=None if paced else source.began_utc_ns or time.time_ns())
    doorbell = threading.Condition()
    capacity_frames = max(round(_RING_S * rate_hz), bench.grid.window_frames + bench.grid.hop_frames)
    ring = Ring(capacity_frames, policy="wait", doorbell=doorbell)
    reader = WindowReader(
        ring, source=job.source, window_frames=bench.grid.window_frames, hop_frames=bench.grid.hop_frames
    )
    with ExitStack() as stack:
        stack.callback(bench.pipeline.finish, job.source)  # after an error; the line has done so otherwise
        thread = stack.enter_context(CaptureThread(source, ring, clock=clock))
        line = Line([Track(source, clock, ring, thread, reader)], bench.pipeline, doorbell=doorbell)
        all_takers = Several(takers)
        while line.running:
            line.step(all_takers, timeout_s=_WAIT_S)
    if thread.failure is not None:
        raise thread.failure
    return Heard(source.duration_s, source.truncated)
