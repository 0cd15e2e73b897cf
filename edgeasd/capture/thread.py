"""The thread that moves sound from one source into its ring."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from edgeasd.capture.ring import Ring
from edgeasd.capture.source import Source
from edgeasd.clock import NS_PER_S, FrameClock
from edgeasd.errors import EdgeasdError
from edgeasd.records import AudioBlock, Gap, LossReason

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CaptureStats:
    """What has come from a source so far."""

    frames: int = 0
    """Captured; not the ones in gaps."""
    gap_frames: dict[LossReason, int] = field(default_factory=dict)
    gaps: dict[LossReason, int] = field(default_factory=dict)
    """How many gap records; an absence is told about once a second."""
    reopens: int = 0
    """How often sound came back after the device had been absent."""


class CaptureThread:
    """Pulls blocks from a source and writes them to a ring, in a thread of its own that starts at once.

    It ends with the source, on `stop`, or by an error of the source, which is kept in `failure`; in each case the ring
    is told that the source has ended, so that the scorer wakes up. A source that hangs inside the sound system cannot
    be interrupted: `stalled_s` shows it, and only the end of the process cures it (use os._exit: the thread is not a
    daemon thread and would hold up an orderly exit).
    """

    def __init__(
        self,
        source: Source,
        ring: Ring,
        *,
        clock: FrameClock | None = None,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._source = source
        self._ring = ring
        self._clock = clock
        self._monotonic_ns = monotonic_ns
        self._frames = 0
        self._gap_frames: dict[LossReason, int] = {}
        self._gaps: dict[LossReason, int] = {}
        self._reopens = 0
        self._was_absent = False
        self._failure: Exception | None = None
        self._last_block_ns: int | None = None
        self._last_progress_ns = monotonic_ns()
        self._pulling = True
        self._stop_ns: int | None = None
        self._thread = threading.Thread(target=self._run, name=f"capture-{source.name}", daemon=False)
        self._thread.start()

    def __enter__(self) -> Self:
        """Return the running thread."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it and wait for its end, five seconds at most."""
        self.stop()
        self.join(5.0)

    @property
    def name(self) -> str:
        """Return the name of the thread."""
        return self._thread.name

    @property
    def alive(self) -> bool:
        """Return whether the thread still runs."""
        return self._thread.is_alive()

    @property
    def failure(self) -> Exception | None:
        """Return what ended the source, if it was an error."""
        return self._failure

    @property
    def stats(self) -> CaptureStats:
        """Return the counters."""
        return CaptureStats(self._frames, dict(self._gap_frames), dict(self._gaps), self._reopens)

    @property
    def last_block_ns(self) -> int | None:
        """Return the monotonic time when sound last came; None before the first block."""
        return self._last_block_ns

    @property
    def last_progress_ns(self) -> int:
        """Return the monotonic time when the source last gave anything, a gap included."""
        return self._last_progress_ns

    def stalled_s(self) -> float:
        """Return for how long the source has been giving nothing at all, not even a gap; 0 once it has ended.

        A microphone speaks at least every second or two, present or not: more than five mean a hung sound system.
        Time spent waiting for room in the ring does not count.
        """
        if not self._pulling:
            return 0.0
        return (self._monotonic_ns() - self._last_progress_ns) / NS_PER_S

    def stopping_s(self) -> float:
        """Return how long ago the thread was first asked to end; 0 when it was not."""
        return 0.0 if self._stop_ns is None else (self._monotonic_ns() - self._stop_ns) / NS_PER_S

    def stop(self) -> None:
        """Ask the thread to end; it does within a block unless the sound system hangs."""
        if self._stop_ns is None:
            self._stop_ns = self._monotonic_ns()
        self._source.close()
        self._ring.close()

    def join(self, deadline_s: float) -> bool:
        """Wait for the end of the thread; False when it still runs after `deadline_s`."""
        self._thread.join(max(0.0, deadline_s))
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._move()
        except Exception as failure:  # noqa: BLE001  # the root of the thread: it must not die unnoticed
            self._failure = failure
            if isinstance(failure, EdgeasdError):
                return  # said in one line by whoever asks for `failure`
            _log.exception("capture ended by an error source=%s", self._source.name)
        finally:
            self._pulling = False
            self._ring.finish()

    def _move(self) -> None:
        for item in self._source.blocks():
            self._pulling = False
            if isinstance(item, AudioBlock):
                self._take_block(item)
            else:
                self._take_gap(item)
            self._last_progress_ns = self._monotonic_ns()
            self._pulling = True

    def _take_block(self, block: AudioBlock) -> None:
        if self._was_absent:
            self._was_absent = False
            self._reopens += 1
            if self._clock is not None:
                self._clock.reset()
        self._frames += len(block.samples)
        self._last_block_ns = block.captured_ns
        if self._clock is not None:
            self._clock.observe(block.first_frame + len(block.samples), block.captured_ns)
        self._ring.write(block)

    def _take_gap(self, gap: Gap) -> None:
        self._gap_frames[gap.reason] = self._gap_frames.get(gap.reason, 0) + gap.n_frames
        self._gaps[gap.reason] = self._gaps.get(gap.reason, 0) + 1
        self._was_absent = self._was_absent or gap.reason is LossReason.DEVICE_ABSENT
        self._ring.mark_gap(gap)
