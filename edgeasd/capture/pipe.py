"""A pipe as a source: raw samples that another program writes, be it a radio, a decoder or a client of the network."""

from __future__ import annotations

import fcntl
import logging
import os
import select
import stat
import struct
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

import numpy as np

from edgeasd.capture.arrivals import Arrivals
from edgeasd.capture.convert import RateConverter
from edgeasd.capture.source import FIFO, STDIN, SourceSpec
from edgeasd.clock import NS_PER_S, steady_ns
from edgeasd.errors import SettingsError
from edgeasd.records import AudioBlock, FloatArray, Gap, LossReason

_log = logging.getLogger(__name__)

_SAMPLE_BYTES = 2
_TO_FLOAT = np.float32(2.0**-15)
_ABSENCE_STEP_S = 0.5
_SILENT_S = 1.0
"""A writer that gives nothing for so long is away, whether it holds the pipe open or not."""
_DRIBLET_S = 0.05
"""Less than this is waited for as it comes, more is slept through: to read each driblet would cost more than it."""
_PIPE_BYTES = 1 << 18
"""Asked of the kernel, which holds so much sound for us while we are held up."""


class PipeSource:
    """Reads s16le mono at `native_rate_hz`, by default the model's rate, from a FIFO or from stdin.

    The writer keeps the time: it writes as the sound comes. When it gives nothing for a second it counts as away, and
    gaps follow one another (DEVICE_ABSENT), so that the frame index keeps to the monotonic clock; sound that is missing
    though the writer is there becomes a gap too (OVERRUN, see Arrivals). Writers of a FIFO may come and go, and so may
    the FIFO; stdin ends with its writer. SettingsError for a channel other than 0.
    """

    def __init__(self, spec: SourceSpec, *, monotonic_ns: Callable[[], int] = steady_ns) -> None:
        if spec.channel != 0:
            raise SettingsError(f"sources: {spec.name}: a pipe has one channel, no channel {spec.channel}")
        self.name = spec.name
        self.rate_hz = spec.rate_hz
        self._spec = spec
        self._is_stdin = spec.device == STDIN
        self._path = "/dev/stdin" if self._is_stdin else spec.device.removeprefix(FIFO)
        self._native_rate_hz = spec.native_rate_hz or spec.rate_hz
        self._monotonic_ns = monotonic_ns
        self._stop = threading.Event()
        self._arrivals = Arrivals(spec.rate_hz, block_frames=spec.block_frames)
        self._next_frame = 0
        self._marked = False  # whether a gap is the last thing that was told
        self._trouble = ""

    def close(self) -> None:
        """End `blocks` within a block, or half a second."""
        self._stop.set()

    def blocks(self) -> Iterator[AudioBlock | Gap]:
        """Yield sound and gaps until `close`, or the end of stdin."""
        while not self._stop.is_set():
            try:
                descriptor = _open(self._path, os.O_RDONLY if self._is_stdin else os.O_RDWR)  # RDWR: without an end
            except OSError as exc:
                self._note(exc.strerror or str(exc))
                yield from self._stay_absent()
                continue
            try:
                yield from self._listen(descriptor)
            finally:
                os.close(descriptor)
            if self._is_stdin:
                return

    def _listen(self, descriptor: int) -> Iterator[AudioBlock | Gap]:
        """Yield sound, and gaps while there is none, until the end of the pipe or another in its place."""
        converter = RateConverter(self._native_rate_hz, self.rate_hz)
        pending = bytearray()
        base_frame: int | None = None  # where the contiguous stretch began
        while not self._stop.is_set():
            n_bytes = converter.until(self._spec.block_frames) * _SAMPLE_BYTES
            came = self._fill(pending, n_bytes, descriptor)
            now_ns = self._monotonic_ns() - self._waiting_ns(descriptor)
            if came == "end":
                break
            if came == "nothing":
                yield from self._block(converter.finish(), now_ns)
                base_frame = None
                self._note("nobody writes to it")
                yield from self._catch_up(now_ns, n_in_hand=0)
                if not _is_at(self._path, descriptor):
                    break
                pending.clear()
                continue
            samples = np.frombuffer(bytes(pending), "<i2") * _TO_FLOAT
            pending.clear()
            if base_frame is None:
                yield from self._begin(len(samples) * self.rate_hz / self._native_rate_hz, now_ns)
                base_frame = self._next_frame
            samples = converter.push(samples)
            yield from self._block(samples, now_ns - round(converter.lag * NS_PER_S / self.rate_hz))
            n_lost = self._arrivals.observe(base_frame + converter.position, now_ns)
            if n_lost:
                yield from self._block(converter.finish(), now_ns)
                yield self._gap(n_lost, LossReason.OVERRUN)
                base_frame = self._next_frame
        yield from self._block(converter.finish(), self._monotonic_ns())

    def _fill(self, pending: bytearray, n_bytes: int, descriptor: int) -> Literal["enough", "nothing", "end"]:
        """Wait until `pending` holds `n_bytes`, unless nothing comes for a second, or nothing more."""
        silent_since_ns = self._monotonic_ns()
        while len(pending) < n_bytes and not self._stop.is_set():
            try:
                got = os.read(descriptor, n_bytes - len(pending))
            except BlockingIOError:
                if self._monotonic_ns() - silent_since_ns > _SILENT_S * NS_PER_S:
                    return "nothing"
                missing_s = (n_bytes - len(pending)) / (_SAMPLE_BYTES * self._native_rate_hz)
                if missing_s > _DRIBLET_S:
                    self._stop.wait(missing_s)
                else:
                    select.select([descriptor], [], [], _ABSENCE_STEP_S)
                continue
            if not got:
                return "end"
            pending += got
            silent_since_ns = self._monotonic_ns()
        return "enough" if len(pending) >= n_bytes else "end"

    def _waiting_ns(self, descriptor: int) -> int:
        """Return how much sound has come behind what was read last."""
        (n_bytes,) = struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)))
        return int(n_bytes) * NS_PER_S // (_SAMPLE_BYTES * self._native_rate_hz)

    def _begin(self, n_in_hand: float, now_ns: int) -> Iterator[Gap]:
        """Account for the time until the first block of a writer, which is in hand now."""
        if self._arrivals.started:
            yield from self._catch_up(now_ns, n_in_hand=round(n_in_hand))
            if not self._marked:
                yield self._gap(1, LossReason.DEVICE_ABSENT)
        self._arrivals.start(self._next_frame + n_in_hand, now_ns)
        self._trouble = ""
        _log.info("capture open source=%s device=%s rate_hz=%d", self.name, self._spec.device, self._native_rate_hz)

    def _stay_absent(self) -> Iterator[Gap]:
        if not self._arrivals.started:
            self._arrivals.start(0, self._monotonic_ns())
        self._stop.wait(_ABSENCE_STEP_S)
        if not self._stop.is_set():
            yield from self._catch_up(self._monotonic_ns(), n_in_hand=0)

    def _catch_up(self, now_ns: int, *, n_in_hand: int) -> Iterator[Gap]:
        """Account for the sound that is missing until now, or until what is in hand."""
        if not self._arrivals.started:
            self._arrivals.start(0, now_ns)
        n_missed = self._arrivals.frame_at(now_ns) - n_in_hand - self._next_frame
        if n_missed > 0:
            yield self._gap(n_missed, LossReason.DEVICE_ABSENT)

    def _note(self, trouble: str) -> None:
        """Log what is wrong, once for as long as it stays the same."""
        if trouble != self._trouble:
            _log.warning("capture waits source=%s: %s: %s", self.name, self._spec.device, trouble)
        self._trouble = trouble

    def _block(self, samples: FloatArray, captured_ns: int) -> Iterator[AudioBlock]:
        if len(samples):
            block = AudioBlock(self._next_frame, samples, captured_ns)
            self._next_frame += len(samples)
            self._marked = False
            yield block

    def _gap(self, n_frames: int, reason: LossReason) -> Gap:
        gap = Gap(self._next_frame, n_frames, reason)
        self._next_frame += n_frames
        self._marked = True
        return gap


def _is_at(path: str, descriptor: int) -> bool:
    try:
        return os.path.samestat(Path(path).stat(), os.fstat(descriptor))
    except OSError:
        return False


def _open(path: str, access: int) -> int:
    descriptor = os.open(path, access | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path} is no pipe")
    with suppress(OSError):  # beyond what a user may have: then it stays at 64 KiB
        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    return descriptor
