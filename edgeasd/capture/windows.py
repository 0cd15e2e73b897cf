"""From a ring of sound to windows on the hop grid, with every frame accounted for."""

from __future__ import annotations

import numpy as np

from edgeasd.capture.ring import Ring, Stretch
from edgeasd.records import LossReason, Skipped, Window


class WindowReader:
    """Cuts the contiguous sound of one source into windows, and says which frames no window holds.

    Every frame is in at least one window or in exactly one Skipped, never in both. The grid of hops starts with the
    first contiguous frame, and anew behind every gap: no window straddles one. With more than `max_backlog_windows`
    complete windows waiting, the oldest are dropped (LATE, counted in `late_windows`); None never drops.
    """

    def __init__(
        self,
        ring: Ring,
        *,
        source: str,
        window_frames: int,
        hop_frames: int,
        max_backlog_windows: int | None = None,
    ) -> None:
        assert 0 < hop_frames <= window_frames, "frames between windows would not be accounted for"
        assert ring.capacity_frames >= window_frames + hop_frames, "the ring must hold a window while the next arrives"
        assert max_backlog_windows is None or max_backlog_windows > 0
        self._ring = ring
        self._source = source
        self._window_frames = window_frames
        self._hop_frames = hop_frames
        self._max_backlog_windows = max_backlog_windows
        self._next_frame = 0  # where the next window starts, or where to look for contiguous sound
        self._covered_frame = 0  # every frame before it is accounted for
        self._follows = False
        self._late_windows = 0
        self._overwritten_frames = 0

    @property
    def overwritten_frames(self) -> int:
        """Return how many frames were lost because the ring was overwritten; each is in a loss that was handed out."""
        return self._overwritten_frames

    @property
    def late_windows(self) -> int:
        """Return how many complete windows were dropped because the scorer was behind."""
        return self._late_windows

    @property
    def backlog_frames(self) -> int:
        """Return how much sound waits to be cut into windows."""
        stretch = self._ring.stretch(self._next_frame)
        return 0 if stretch is None else stretch.backlog_frames

    @property
    def has_ready(self) -> bool:
        """Return whether `ready` would make headway; a scorer waits on the doorbell for this, or for `exhausted`."""
        stretch = self._ring.stretch(self._next_frame)
        if stretch is None:
            return False
        whole = stretch.end_frame - self._next_frame >= self._window_frames
        return whole or stretch.closed or stretch.reason is not None

    @property
    def exhausted(self) -> bool:
        """Return whether the source has ended and all its frames have been handed out."""
        return self._ring.finished and self._next_frame == self._ring.head_frame

    def ready(self, limit: int) -> list[Window | Skipped]:
        """Return up to `limit` windows and losses, in order of their first frames; never waits."""
        items: list[Window | Skipped] = []
        while len(items) < limit:
            stretch = self._ring.stretch(self._next_frame)
            if stretch is None:
                break
            if stretch.reason is not None:
                self._pass_over(stretch.end_frame, stretch.reason, items)
            elif (n_late := self._late(stretch)) > 0:
                self._late_windows += n_late
                self._pass_over(self._next_frame + n_late * self._hop_frames, LossReason.LATE, items)
            elif self._whole_windows(stretch) > 0:
                self._cut(stretch, items, limit=limit)
            elif stretch.closed:
                ended = self._ring.finished and stretch.end_frame == self._ring.head_frame
                self._pass_over(stretch.end_frame, LossReason.TAIL if ended else LossReason.GAP, items)
            else:
                break
        self._ring.release(self._next_frame)
        return items

    def _whole_windows(self, stretch: Stretch) -> int:
        return max(0, (stretch.end_frame - self._next_frame - self._window_frames) // self._hop_frames + 1)

    def _late(self, stretch: Stretch) -> int:
        """Return how many of the windows of this stretch to drop."""
        if self._max_backlog_windows is None:
            return 0
        n_waiting = (stretch.backlog_frames - self._window_frames) // self._hop_frames + 1
        return min(n_waiting - self._max_backlog_windows, self._whole_windows(stretch))

    def _cut(self, stretch: Stretch, items: list[Window | Skipped], *, limit: int) -> None:
        n_windows = min(self._whole_windows(stretch), limit - len(items))
        samples = np.empty((n_windows - 1) * self._hop_frames + self._window_frames, dtype=np.float32)
        if not self._ring.read(self._next_frame, samples):
            return  # overwritten since the stretch was measured
        firsts = range(0, n_windows * self._hop_frames, self._hop_frames)
        arrivals_ns = self._ring.captured_ns(self._next_frame + first + self._window_frames for first in firsts)
        for first, captured_ns in zip(firsts, arrivals_ns, strict=True):
            own = samples[first : first + self._window_frames]
            items.append(Window(self._source, self._next_frame, own, captured_ns, self._follows))
            self._next_frame += self._hop_frames
            self._follows = True
        self._covered_frame = self._next_frame - self._hop_frames + self._window_frames

    def _pass_over(self, end_frame: int, reason: LossReason, items: list[Window | Skipped]) -> None:
        """Go on at `end_frame`; what lies before it and is in no window yet is lost for `reason`."""
        if end_frame > self._covered_frame:
            n_frames = end_frame - self._covered_frame
            items.append(Skipped(self._source, self._covered_frame, n_frames, reason))
            if reason is LossReason.OVERWRITTEN:
                self._overwritten_frames += n_frames
            self._covered_frame = end_frame
        self._next_frame = end_frame
        self._follows = False
