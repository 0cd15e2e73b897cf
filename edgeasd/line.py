"""The line from sources to what is said about them: rings fed by capture threads, read by one judge."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

from edgeasd.capture.ring import Ring
from edgeasd.capture.source import Source
from edgeasd.capture.thread import CaptureThread
from edgeasd.capture.windows import WindowReader
from edgeasd.clock import FrameClock
from edgeasd.errors import UnavailableError
from edgeasd.records import Skipped, Window
from edgeasd.scoring.listener import Said
from edgeasd.scoring.pipeline import Pipeline
from edgeasd.steering.switches import Switches

HUNG_S = 5.0
"""A microphone speaks every second or two, present or not: one silent for longer hangs inside the sound system."""
_BATCH_WINDOWS = 64
"""Most windows judged at once: bounds what the first of them waits for the last, and other sources for a backlog."""


@dataclass(frozen=True, slots=True)
class Track:
    """One source on the line, from its thread to its reader."""

    source: Source
    clock: FrameClock
    ring: Ring
    thread: CaptureThread
    reader: WindowReader


class Taker(Protocol):
    """Whoever hears what is said, in order."""

    def skipped(self, track: Track, skipped: Skipped) -> None:
        """Take note of frames that were passed over."""
        ...

    def said(self, track: Track, said: Said, *, infer_ms: float) -> None:
        """Take what is said about a source; `infer_ms` is the cost of one window of the batch."""
        ...

    def ended(self, track: Track) -> None:
        """Take note that the sound of a source has ended and all is said."""
        ...


class HungError(UnavailableError):
    """Raised when a microphone can neither be used nor let go: the process must end without waiting for its thread."""

    def __init__(self, track: Track, *, stalled_s: float) -> None:
        super().__init__(f"{track.source.name}: the sound system has not answered for {stalled_s:.0f} s")
        self.track = track


class Several:
    """Hands everything on to several takers, in order."""

    def __init__(self, takers: Sequence[Taker]) -> None:
        self._takers = takers

    def skipped(self, track: Track, skipped: Skipped) -> None:
        """Hand on."""
        for taker in self._takers:
            taker.skipped(track, skipped)

    def said(self, track: Track, said: Said, *, infer_ms: float) -> None:
        """Hand on."""
        for taker in self._takers:
            taker.said(track, said, infer_ms=infer_ms)

    def ended(self, track: Track) -> None:
        """Hand on."""
        for taker in self._takers:
            taker.ended(track)


class Line:
    """Runs sources through rings and windows into one pipeline; the caller's thread does the judging.

    The capture threads run already. `step` waits for sound, judges what is ready and hands on what is said.
    """

    def __init__(self, tracks: Sequence[Track], pipeline: Pipeline, *, doorbell: threading.Condition) -> None:
        self.tracks = tuple(tracks)
        self._by_name = {track.source.name: track for track in tracks}
        self._open = deque(tracks)
        self._seen_frames: dict[str, int] = {}
        self._pipeline = pipeline
        self._doorbell = doorbell
        self.switches = Switches()
        """Which sources are judged."""
        self.judging_s = 0.0
        """Seconds of computing spent on judging."""

    @property
    def running(self) -> bool:
        """Return whether any source may still bring sound."""
        return bool(self._open)

    def step(self, taker: Taker, *, timeout_s: float) -> bool:
        """Judge what is ready, waiting up to `timeout_s` for it; return whether there was anything."""
        items = self._collect()
        if not items:
            with self._doorbell:  # looked at once more under the lock: sound that came in between has rung already
                if not any(map(self._has_news, self._open)):
                    self._doorbell.wait(timeout_s)
            items = self._collect()
        self._judge(items, taker)
        for track in [track for track in self._open if track.reader.exhausted]:
            self._end(track, taker)
        return bool(items)

    def finish(self, taker: Taker) -> None:
        """Say the last word on sources that are still open, and ask all of them to end.

        Whoever closes them joins their threads later: one that hangs is not waited for twice.
        """
        for track in self.tracks:
            track.thread.stop()
        for track in list(self._open):
            self._end(track, taker)

    def check(self) -> None:
        """Raise what ended a source by an error; HungError when one hangs inside the sound system."""
        for track in self.tracks:
            if track.thread.failure is not None:
                raise track.thread.failure
            if track.thread.stalled_s() > HUNG_S:
                raise HungError(track, stalled_s=HUNG_S)

    def _end(self, track: Track, taker: Taker) -> None:
        self._open.remove(track)
        for said in self._pipeline.finish(track.source.name):
            taker.said(track, said, infer_ms=0.0)
        taker.ended(track)

    def _collect(self) -> list[Window | Skipped]:
        """Take what is ready, of each source that has news its share, the next time from the next source on."""
        news = [track for track in self._open if self._has_news(track)]
        found: list[Window | Skipped] = []
        share = max(2, _BATCH_WINDOWS // max(1, len(news)))  # who gives fewer than its share has no more
        served = news[: _BATCH_WINDOWS // share]
        for track in served:
            head_frame, ready = track.ring.head_frame, track.reader.ready(share)
            if len(ready) < share:
                self._seen_frames[track.source.name] = head_frame
            found += ready
        if len(served) < len(news):
            self._open.rotate(-1 - self._open.index(served[-1]))
        return [self.switches.passed(item) for item in found]

    def _has_news(self, track: Track) -> bool:
        """Return whether anything has come since all that was ready was taken."""
        return track.ring.finished or track.ring.head_frame != self._seen_frames.get(track.source.name, 0)

    def _judge(self, items: Sequence[Window | Skipped], taker: Taker) -> None:
        for is_lost, group in groupby(items, lambda item: isinstance(item, Skipped)):
            run = list(group)
            for item in run:
                if isinstance(item, Skipped):
                    taker.skipped(self._by_name[item.source], item)
            began_s = time.perf_counter()
            told = self._pipeline.process(run)
            spent_s = time.perf_counter() - began_s
            self.judging_s += spent_s
            infer_ms = 0.0 if is_lost else 1e3 * spent_s / len(run)
            for source, said in told:
                taker.said(self._by_name[source], said, infer_ms=infer_ms)
