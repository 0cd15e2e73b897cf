"""P11: a judge that falls behind loses the oldest whole windows, counted, and never gets one that is torn."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from edgeasd.capture.ring import Ring
from edgeasd.capture.source import Source, SourceSpec, open_source
from edgeasd.capture.thread import CaptureThread
from edgeasd.capture.windows import WindowReader
from edgeasd.clock import FrameClock, steady_ns
from edgeasd.line import Line, Track
from edgeasd.records import AudioBlock, Gap, LossReason, Skipped, Window
from edgeasd.scoring.listener import Said
from edgeasd.scoring.pipeline import Pipeline
from tests.rig.promise import Measured, Promise
from tests.rig.pulse import PulseRig, available

_RATE_HZ = 16_000
_WINDOW_FRAMES = 16_000
_BACKLOG_WINDOWS = 2
_STAMPS = 2**23
"""Frame numbers beyond this begin anew: float32 holds them exactly."""
_STEP_S = 0.05
_JUDGING_S = 0.02


class _Stamped:
    """Puts its frame number in the place of each sample of a source."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.name, self.rate_hz = source.name, source.rate_hz

    def blocks(self) -> Iterator[AudioBlock | Gap]:
        """Yield the blocks of the source, as they come."""
        for item in self._source.blocks():
            yield item if isinstance(item, Gap) else _stamped(item)

    def close(self) -> None:
        """End the source."""
        self._source.close()


def _stamped(block: AudioBlock) -> AudioBlock:
    return AudioBlock(block.first_frame, _stamps(block.first_frame, len(block.samples)), block.captured_ns)


def _stamps(first_frame: int, n_frames: int) -> Any:
    return (np.arange(first_frame, first_frame + n_frames) % _STAMPS).astype(np.float32)


@dataclass(slots=True)
class _SlowJudge:
    """Stands in for the pipeline: looks whether windows are whole, and stalls when told to."""

    stall_s: float = 0.0
    stalled_until_s: float = 0.0
    n_windows: int = 0
    n_torn: int = 0
    recovered_s: float | None = None

    def process(self, items: Sequence[Window | Skipped]) -> list[tuple[str, Said]]:
        """Look at each window."""
        for item in items:
            if isinstance(item, Window):
                time.sleep(_JUDGING_S)
                self.n_windows += 1
                self.n_torn += not np.array_equal(item.samples, _stamps(item.first_frame, len(item.samples)))
                self._note_latency((steady_ns() - item.captured_ns) / 1e9)
        if self.stall_s:
            stall_s, self.stall_s = self.stall_s, 0.0
            time.sleep(stall_s)
            self.stalled_until_s, self.recovered_s = time.monotonic(), None
        return []

    def finish(self, _source: str) -> list[Said]:
        """Have no last word."""
        return []

    def _note_latency(self, latency_s: float) -> None:
        if self.recovered_s is None and latency_s < 0.5:
            self.recovered_s = time.monotonic() - self.stalled_until_s


@dataclass(slots=True)
class _Books:
    """Takes note of what was passed over."""

    lost: Counter[LossReason] = field(default_factory=Counter)

    def skipped(self, _track: Track, skipped: Skipped) -> None:
        """Count frames by reason."""
        self.lost[skipped.reason] += skipped.n_frames

    def said(self, _track: Track, _said: Said, *, infer_ms: float) -> None:
        """Hear nothing."""

    def ended(self, _track: Track) -> None:
        """Have nothing to end."""


def judge_slowly(scratch: Path, *, stalls: int, stall_s: float) -> Measured:
    """Stall the judge before a microphone, then before a flood far faster than real time."""
    with PulseRig(scratch, "mic_a", rate_hz=_RATE_HZ):
        with (scratch / "home/.asoundrc").open("a") as rc:
            rc.write(_flood_device(scratch))
        paced = _Run("mic_a", between_s=2.0, stalls=stalls, stall_s=stall_s)
        paced.listen()
        flood = _Run("flood", between_s=0.3, stalls=stalls, stall_s=stall_s / 3)
        flood.listen()
    n_torn = paced.judge.n_torn + flood.judge.n_torn
    exact = paced.adds_up() and flood.adds_up()
    recovered_s = max(paced.recovered_s)
    return Measured(
        f"{stalls} stalls of {stall_s:g} s and as many of {stall_s / 3:g} s: of {paced.judge.n_windows} windows of a "
        f"microphone and {flood.judge.n_windows} of a flood of {flood.speed:.0f} times real time {n_torn} torn; "
        f"{paced.n_dropped + flood.n_dropped} frames dropped, counters {'equal' if exact else 'DIFFER'}; "
        f"latency below 0.5 s again after {recovered_s:.2f} s",
        kept=not n_torn and exact and recovered_s <= 2.0 and flood.n_dropped > 0 and paced.n_dropped > 0,
    )


class _Run:
    """One source before one judge."""

    def __init__(self, device: str, *, between_s: float, stalls: int, stall_s: float) -> None:
        self.judge = _SlowJudge()
        self.recovered_s: list[float] = []
        self.speed = 0.0
        self.n_dropped = 0
        self._books = _Books()
        self._device, self._between_s, self._stalls, self._stall_s = device, between_s, stalls, stall_s

    def listen(self) -> None:
        """Judge between stalls, and after the last."""
        with _line(self._device, self.judge) as line:
            (self._track,) = line.tracks
            while not self.judge.n_windows and line.running:
                line.step(self._books, timeout_s=_STEP_S)
            began_s, began_frame = time.monotonic(), self._track.ring.head_frame
            for _ in range(self._stalls):
                self.judge.stall_s = self._stall_s
                self._judge_for(line, self._stall_s + self._between_s)
                self.recovered_s.append(float("inf") if self.judge.recovered_s is None else self.judge.recovered_s)
            self.speed = (self._track.ring.head_frame - began_frame) / _RATE_HZ / (time.monotonic() - began_s)
            self._track.thread.stop()
            while line.running:
                line.step(self._books, timeout_s=_STEP_S)
        lost = self._books.lost
        self.n_dropped = lost[LossReason.LATE] + lost[LossReason.OVERWRITTEN]

    def adds_up(self) -> bool:
        """Return whether the counters say what was dropped, and all frames are accounted for."""
        lost, track = self._books.lost, self._track
        counted = track.reader.late_windows * _WINDOW_FRAMES + track.reader.overwritten_frames
        in_windows = self.judge.n_windows * _WINDOW_FRAMES
        return counted == self.n_dropped and in_windows + sum(lost.values()) == track.ring.head_frame

    def _judge_for(self, line: Line, seconds: float) -> None:
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            line.step(self._books, timeout_s=_STEP_S)


@contextmanager
def _line(device: str, judge: _SlowJudge) -> Iterator[Line]:
    doorbell = threading.Condition()
    source = _Stamped(
        open_source(SourceSpec(name="mic0", device=device, rate_hz=_RATE_HZ, block_frames=_RATE_HZ // 10))
    )
    ring = Ring((_BACKLOG_WINDOWS + 2) * _WINDOW_FRAMES, policy="overwrite", doorbell=doorbell)
    reader = WindowReader(
        ring,
        source="mic0",
        window_frames=_WINDOW_FRAMES,
        hop_frames=_WINDOW_FRAMES,
        max_backlog_windows=_BACKLOG_WINDOWS,
    )
    with CaptureThread(source, ring) as thread:
        track = Track(source, FrameClock(_RATE_HZ), ring, thread, reader)
        yield Line([track], cast("Pipeline", judge), doorbell=doorbell)


def _flood_device(scratch: Path) -> str:
    """Return a device of ALSA that delivers as fast as it is read."""
    sound = scratch / "flood.raw"
    np.random.default_rng(1).normal(scale=0.1, size=2**20).astype("<f4").tofile(sound)
    return (
        f'pcm.flood {{ type file slave.pcm "null" file "/dev/null" infile "{sound}" format raw '
        'hint { show on description "flood" } }\n'
    )


PROMISES = (
    Promise(
        "P11",
        "a slow judge drops the oldest whole windows and tears none",
        "no torn window; drops equal the counters; latency recovers <= 2 s",
        judge_slowly,
        short={"stalls": 1, "stall_s": 3.0},
        long={"stalls": 10, "stall_s": 3.0},
        needs=available,
    ),
)
