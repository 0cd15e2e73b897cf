"""The buffer between a capture thread and the scorer, addressed by absolute frame index."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgeasd.records import AudioBlock, FloatArray, Gap, LossReason

_MAX_SEGMENTS = 256


@dataclass(slots=True, eq=False)
class _Segment:
    first_frame: int
    end_frame: int
    reason: LossReason | None
    """Why these frames are missing; None: they are here."""
    address: int
    """Count of frames of sound written before the first one; where they lie in the buffer follows from it."""

    def cut_front(self, n_frames: int) -> None:
        self.first_frame += n_frames
        self.address += n_frames


@dataclass(frozen=True, slots=True)
class Stretch:
    """What there is from a frame on, up to where that changes: sound, or frames lost for one reason."""

    end_frame: int
    reason: LossReason | None
    """None: the frames are there to be read."""
    closed: bool
    """True when the stretch will not grow any more."""
    backlog_frames: int
    """Sound from the frame on to the head of the ring, behind later gaps too."""


class Ring:
    """Keeps the sound of one source, preallocated, from `write` until the reader has passed it with `release`.

    One writer, one reader, a lock held over the copies. A gap takes an index range but no room.
    Bound: `capacity_frames` of sound in at most 256 stretches. Policy when full: "overwrite" turns the oldest unread
    sound into a loss (OVERWRITTEN, counted by the reader); "wait" blocks the writer until the reader has
    moved on or `close` is called. Each write, gap and end rings the doorbell that all rings of a scorer share.
    """

    def __init__(
        self, capacity_frames: int, *, policy: Literal["overwrite", "wait"], doorbell: threading.Condition
    ) -> None:
        assert capacity_frames > 0
        self.capacity_frames = capacity_frames
        self._waits = policy == "wait"
        self._doorbell = doorbell
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._buffer: FloatArray = np.full(capacity_frames, 0.0, dtype=np.float32)  # written: no page faults later
        self._segments: list[_Segment] = []  # contiguous in frame index, from the reader's position to the head
        self._arrivals: deque[tuple[int, int]] = deque()  # (end frame, captured_ns) of each block with unread sound
        self._n_written = 0
        self._head_frame = 0
        self._finished = False
        self._closed = False

    @property
    def head_frame(self) -> int:
        """Return the index just past the newest frame, captured or lost."""
        return self._head_frame

    @property
    def tail_frame(self) -> int:
        """Return the index of the oldest frame that can still be read; the head when there is none."""
        with self._lock:
            sound = self._oldest_sound()
            return self._head_frame if sound is None else sound.first_frame

    @property
    def finished(self) -> bool:
        """Return whether the source has ended: what is in the ring is all there will be."""
        return self._finished

    def write(self, block: AudioBlock) -> None:
        """Append a block, shape (n_frames,), of any length; dropped once the ring is closed."""
        if self._closed:
            return
        assert block.first_frame == self._head_frame, "a source may not skip frames without a gap"
        start, n_frames = 0, len(block.samples)
        while start < n_frames:
            with self._lock:
                stop = start + min(n_frames - start, self._wait_for_room())
                if stop == start:
                    return  # closed meanwhile
                self._append(block.samples[start:stop], block.captured_ns)
                start = stop
            self._ring_doorbell()

    def mark_gap(self, gap: Gap) -> None:
        """Note that the frames of `gap` were lost on the way here; dropped once the ring is closed."""
        if self._closed:
            return
        assert gap.first_frame == self._head_frame, "a source may not skip frames without a gap"
        with self._lock:
            if self._wait_for_room() == 0:
                return
            self._extend(gap.n_frames, gap.reason)
        self._ring_doorbell()

    def finish(self) -> None:
        """Note that the source has ended."""
        with self._lock:
            self._finished = True
        self._ring_doorbell()

    def close(self) -> None:
        """Let go of a waiting writer: nobody will read any more."""
        with self._lock:
            self._closed = True
            self._room.notify_all()

    def stretch(self, frame: int) -> Stretch | None:
        """Return what there is from `frame` on; None when nothing has come yet. `frame` must not be released."""
        with self._lock:
            for index, segment in enumerate(self._segments):
                if frame < segment.end_frame:
                    closed = self._finished or index < len(self._segments) - 1
                    return Stretch(segment.end_frame, segment.reason, closed, self._sound_from(index, frame))
            return None

    def read(self, first_frame: int, out: FloatArray) -> bool:
        """Copy frames into `out`, shape (n_frames,); False when they are not all here in one contiguous stretch."""
        with self._lock:
            for segment in self._segments:
                if first_frame < segment.end_frame:
                    break
            else:
                return False
            fits = segment.first_frame <= first_frame and first_frame + len(out) <= segment.end_frame
            if segment.reason is not None or not fits:
                return False
            self._copy_out(segment.address + first_frame - segment.first_frame, out)
            return True

    def captured_ns(self, end_frames: Iterable[int]) -> list[int]:
        """Return the monotonic time when the last frame before each of `end_frames`, rising, was in our hands."""
        found: list[int] = []
        with self._lock:
            arrivals = iter(self._arrivals)
            arrived_end_frame, captured_ns = 0, 0
            for end_frame in end_frames:
                while arrived_end_frame < end_frame:
                    arrived_end_frame, captured_ns = next(arrivals)
                found.append(captured_ns)
        return found

    def release(self, frame: int) -> None:
        """Give up everything before `frame`: the reader will not come back to it."""
        with self._lock:
            while self._segments and self._segments[0].end_frame <= frame:
                del self._segments[0]
            if self._segments and self._segments[0].first_frame < frame:
                self._segments[0].cut_front(frame - self._segments[0].first_frame)
            self._forget_arrivals(frame)
            if self._waits:
                self._room.notify_all()

    def _ring_doorbell(self) -> None:
        with self._doorbell:
            self._doorbell.notify_all()

    def _wait_for_room(self) -> int:
        """Return how many frames may be written now; 0 when the ring was closed. The lock is held."""
        if not self._waits:
            return 0 if self._closed else self.capacity_frames
        while not self._closed:
            sound = self._oldest_sound()
            n_unread = 0 if sound is None else self._n_written - sound.address
            if n_unread < self.capacity_frames and len(self._segments) < _MAX_SEGMENTS:
                return self.capacity_frames - n_unread
            self._room.wait()
        return 0

    def _append(self, samples: FloatArray, captured_ns: int) -> None:
        n_frames = len(samples)
        self._overwrite(self._n_written + n_frames - self.capacity_frames)
        start = self._n_written % self.capacity_frames
        n_before_wrap = min(n_frames, self.capacity_frames - start)
        self._buffer[start : start + n_before_wrap] = samples[:n_before_wrap]
        self._buffer[: n_frames - n_before_wrap] = samples[n_before_wrap:]
        self._extend(n_frames, None)
        self._n_written += n_frames
        self._arrivals.append((self._head_frame, captured_ns))

    def _extend(self, n_frames: int, reason: LossReason | None) -> None:
        last = self._segments[-1] if self._segments else None
        if last is not None and last.reason == reason:
            last.end_frame += n_frames
        else:
            end_frame = self._head_frame + n_frames
            self._segments.append(_Segment(self._head_frame, end_frame, reason, self._n_written))
        self._head_frame += n_frames
        while len(self._segments) > _MAX_SEGMENTS:
            self._lose_oldest_stretch()

    def _overwrite(self, end_address: int) -> None:
        """Turn the unread sound before `end_address` into a loss."""
        while (sound := self._oldest_sound()) is not None and sound.address < end_address:
            n_frames = min(end_address - sound.address, sound.end_frame - sound.first_frame)
            index = self._segments.index(sound)
            before = self._segments[index - 1] if index else None
            if before is not None and before.reason is LossReason.OVERWRITTEN:
                before.end_frame += n_frames
            else:
                lost = _Segment(sound.first_frame, sound.first_frame + n_frames, LossReason.OVERWRITTEN, 0)
                self._segments.insert(index, lost)
            sound.cut_front(n_frames)
            if sound.first_frame == sound.end_frame:
                self._segments.remove(sound)
            self._forget_arrivals(sound.first_frame)

    def _lose_oldest_stretch(self) -> None:
        """Join the two oldest stretches into one loss: a reader this far behind has lost them."""
        first, second = self._segments[:2]
        self._segments[:2] = [_Segment(first.first_frame, second.end_frame, LossReason.OVERWRITTEN, 0)]
        self._forget_arrivals(second.end_frame)

    def _forget_arrivals(self, frame: int) -> None:
        while self._arrivals and self._arrivals[0][0] <= frame:
            self._arrivals.popleft()

    def _oldest_sound(self) -> _Segment | None:
        for segment in self._segments:
            if segment.reason is None:
                return segment
        return None

    def _sound_from(self, index: int, frame: int) -> int:
        segments = self._segments[index:]
        n_frames = sum(segment.end_frame - segment.first_frame for segment in segments if segment.reason is None)
        skipped = max(0, frame - segments[0].first_frame)
        return n_frames - (skipped if segments[0].reason is None else 0)

    def _copy_out(self, address: int, out: FloatArray) -> None:
        start = address % self.capacity_frames
        n_before_wrap = min(len(out), self.capacity_frames - start)
        out[:n_before_wrap] = self._buffer[start : start + n_before_wrap]
        out[n_before_wrap:] = self._buffer[: len(out) - n_before_wrap]
