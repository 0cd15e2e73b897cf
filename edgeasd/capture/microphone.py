"""A sound card as a source that never ends: it waits for the card, reopens it, and accounts for what was missed."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Iterator

from edgeasd.capture.alsa import Alsa
from edgeasd.capture.arrivals import Arrivals
from edgeasd.capture.convert import RateConverter
from edgeasd.capture.portaudio import SHARED, PortAudio
from edgeasd.capture.soundserver import SoundServer, sound_server_of
from edgeasd.capture.source import SourceSpec
from edgeasd.capture.stream import AppearedError, InputStream, open_stream
from edgeasd.clock import NS_PER_S, steady_ns
from edgeasd.errors import EdgeasdError, NoPermissionError, UnavailableError
from edgeasd.records import AudioBlock, FloatArray, Gap, LossReason

_log = logging.getLogger(__name__)

_BACKOFF_FIRST_S, _BACKOFF_LIMIT_S = 0.5, 30.0
_ABSENCE_STEP_S = 0.5
_HOLE_S = 1.0
"""A stream that goes on behind a longer hole is opened anew by name: nobody knows what is at its other end now."""


class Backoff:
    """Doubles from half a second to thirty, each time give or take a quarter, so that sources do not march in step."""

    def __init__(self, uniform: Callable[[], float] = random.random) -> None:
        self._uniform = uniform
        self._next_s = _BACKOFF_FIRST_S

    def next_s(self) -> float:
        """Return how long to wait before the next attempt."""
        delay_s = self._next_s * (0.75 + 0.5 * self._uniform())
        self._next_s = min(_BACKOFF_LIMIT_S, 2 * self._next_s)
        return min(_BACKOFF_LIMIT_S, max(_BACKOFF_FIRST_S, delay_s))

    def reset(self) -> None:
        """Begin anew: the last attempt has worked."""
        self._next_s = _BACKOFF_FIRST_S


class MicrophoneSource:
    """Captures from a device by blocking reads, from any rate and channel it has, until `close`.

    While the device is absent, lost or in use a gap of about half a second follows another (DEVICE_ABSENT), so that the
    frame index keeps to the monotonic clock; `trouble` says what is wrong, None while sound comes. Lost sound is
    judged by the frame count against the clock (see Arrivals) and becomes a gap (OVERRUN). PortAudio's overflow flag
    only marks the spot, with a gap of one frame: no window may hold the splice, and the clock will tell the length.
    A device that delivers at another rate than it promised is tried at its other rates; with none left it counts as
    absent until cards change. A stream that the sound server moves to another microphone, or that goes on behind a hole
    of more than a second, is closed and opened again by name (SoundServer). If the sound system hangs, `blocks` hangs,
    and so does whoever closes the stream: watch `CaptureThread.stalled_s`.
    """

    def __init__(
        self,
        spec: SourceSpec,
        *,
        audio: PortAudio = SHARED,
        alsa: Alsa | None = None,
        monotonic_ns: Callable[[], int] = steady_ns,
        pause: Callable[[threading.Event, float], object] = threading.Event.wait,
        server_of: Callable[[str], SoundServer | None] = sound_server_of,
    ) -> None:
        """`monotonic_ns` and `pause`, which waits for an event or so many seconds, are how time passes."""
        self.name = spec.name
        self.rate_hz = spec.rate_hz
        self._spec = spec
        self._audio = audio
        self._alsa = alsa or Alsa()
        self._monotonic_ns = monotonic_ns
        self._pause = pause
        self._stop = threading.Event()
        self._backoff = Backoff()
        self._arrivals = Arrivals(spec.rate_hz, block_frames=spec.block_frames)
        self._refused_rates_hz: set[int] = set()
        self._next_frame = 0
        self._marked = False  # whether a gap is the last thing that was told
        self._trouble: EdgeasdError | None = None
        self._absent_since_ns: int | None = None
        self._server_of = server_of
        self._server: SoundServer | None = None
        self._server_device = ""

    @property
    def trouble(self) -> EdgeasdError | None:
        """Return why no sound comes; None while it does."""
        return self._trouble

    def blocks(self) -> Iterator[AudioBlock | Gap]:
        """Yield sound and gaps until `close`."""
        try:
            yield from self._blocks()
        finally:
            if self._server is not None:
                self._server.close()

    def close(self) -> None:
        """End `blocks` within a block, or at once while the device is absent."""
        self._stop.set()

    def _blocks(self) -> Iterator[AudioBlock | Gap]:
        while not self._stop.is_set():
            try:
                stream = open_stream(
                    self._spec, audio=self._audio, alsa=self._alsa, refused_rates_hz=self._refused_rates_hz
                )
            except (UnavailableError, NoPermissionError) as trouble:
                self._note(trouble)
                self._look_to(self._server_device or self._spec.device)
                if isinstance(trouble, AppearedError):
                    self._backoff.reset()
                yield from self._stay_absent()
                continue
            began_frame = self._next_frame
            try:
                yield from self._listen(stream)
            finally:
                self._audio.close(stream.raw)
            if self._next_frame == began_frame:  # it opens, but gives nothing: do not try again in a tight loop
                yield from self._stay_absent()

    def _listen(self, stream: InputStream) -> Iterator[AudioBlock | Gap]:
        """Yield sound until the stream is lost, recalled or refused, or the source is closed."""
        converter = RateConverter(stream.native_rate_hz, self.rate_hz)
        base_frame: int | None = None  # where the contiguous stretch began
        while not (self._stop.is_set() or self._audio.recalled):
            try:
                samples, overflowed = stream.read(converter.until(self._spec.block_frames))
            except UnavailableError as trouble:
                self._note(trouble)
                break
            waiting_ns = round(stream.waiting_s() * NS_PER_S)  # before the clock: held up here it is late, never early
            now_ns = self._monotonic_ns() - waiting_ns
            if base_frame is None:
                yield from self._return(stream, len(samples), now_ns)
                base_frame = self._next_frame
            elif self._server is not None and self._server.strayed():  # what was just read may be another room already
                self._note(UnavailableError(f"{self._spec.device}: gone, and the sound server went on with another"))
                break
            elif overflowed:
                yield from self._splice(converter, 1, now_ns)
                base_frame = self._next_frame
            samples = converter.push(samples)
            yield from self._block(samples, now_ns - round(converter.lag * NS_PER_S / self.rate_hz))
            n_lost = self._arrivals.observe(base_frame + converter.position, now_ns)
            if n_lost:
                yield from self._splice(converter, n_lost, now_ns)
                base_frame = self._next_frame
            if n_lost > _HOLE_S * self.rate_hz:
                self._note(UnavailableError(f"{self._spec.device}: silent for {n_lost / self.rate_hz:.1f} s"))
                break
            if self._arrivals.rate_error is not None:
                self._refuse_rate(stream, self._arrivals.rate_error)
                break
        now_ns = self._monotonic_ns()
        yield from self._block(converter.finish(), now_ns)
        if base_frame is not None and self._trouble is not None:  # told at once: closing and opening take their time
            yield self._gap(max(1, self._arrivals.frame_at(now_ns) - self._next_frame), LossReason.DEVICE_ABSENT)

    def _return(self, stream: InputStream, n_samples: int, now_ns: int) -> Iterator[Gap]:
        """Account for the time until the first block of a stream, which is in hand now."""
        n_frames = n_samples * self.rate_hz / stream.native_rate_hz
        if self._arrivals.started:
            n_missed = self._arrivals.frame_at(now_ns) - round(n_frames) - self._next_frame
            if n_missed > 0 or not self._marked:
                yield self._gap(max(1, n_missed), LossReason.DEVICE_ABSENT)
        self._arrivals.start(self._next_frame + n_frames, now_ns)
        self._look_to(stream.device_name)
        if self._server is not None:
            self._server.opened()
        self._backoff.reset()
        waited_s = 0.0 if self._absent_since_ns is None else (now_ns - self._absent_since_ns) / NS_PER_S
        self._absent_since_ns = None
        self._trouble = None
        _log.info(
            "capture open after %.1f s source=%s device=%s rate_hz=%d channels=%d",
            waited_s,
            self.name,
            stream.device_name,
            stream.native_rate_hz,
            stream.n_channels,
        )

    def _splice(self, converter: RateConverter, n_lost: int, now_ns: int) -> Iterator[AudioBlock | Gap]:
        """End the contiguous stretch with a loss."""
        yield from self._block(converter.finish(), now_ns)
        yield self._gap(n_lost, LossReason.OVERRUN)

    def _stay_absent(self) -> Iterator[Gap]:
        """Yield about two gaps a second until it is time for the next attempt, at once when a card comes or goes."""
        now_ns = self._monotonic_ns()
        if not self._arrivals.started:
            self._arrivals.start(0, now_ns)
        cards = self._alsa.cards()
        due_ns = now_ns + round(self._backoff.next_s() * NS_PER_S)
        while now_ns < due_ns:
            self._pause(self._stop, min(_ABSENCE_STEP_S, (due_ns - now_ns) / NS_PER_S))
            if self._stop.is_set():
                return
            now_ns = self._monotonic_ns()
            n_missed = self._arrivals.frame_at(now_ns) - self._next_frame
            if n_missed > 0:
                yield self._gap(n_missed, LossReason.DEVICE_ABSENT)
            if self._alsa.cards() != cards or (self._server is not None and self._server.news()):
                self._audio.outdate()
                self._refused_rates_hz.clear()
                self._backoff.reset()
                return

    def _look_to(self, device_name: str) -> None:
        """Look to the sound server behind a device from now on, if there is one."""
        if device_name == self._server_device:
            return
        if self._server is not None:
            self._server.close()
        with self._audio.call():
            self._server, self._server_device = self._server_of(device_name), device_name

    def _refuse_rate(self, stream: InputStream, error: float) -> None:
        self._refused_rates_hz.add(stream.native_rate_hz)
        delivered_hz = round(stream.native_rate_hz * (1 + error))
        self._note(
            UnavailableError(
                f"{self._spec.device}: delivers {delivered_hz} frames a second where it promised "
                f"{stream.native_rate_hz}; set native_rate_hz to what the card really has"
            )
        )

    def _note(self, trouble: EdgeasdError) -> None:
        """Keep and log what is wrong, once for as long as it stays the same."""
        if str(trouble) != str(self._trouble):
            _log.warning("capture waits source=%s: %s", self.name, trouble)
        self._trouble = trouble
        if self._absent_since_ns is None:
            self._absent_since_ns = self._monotonic_ns()

    def _block(self, samples: FloatArray, now_ns: int) -> Iterator[AudioBlock]:
        if len(samples):
            block = AudioBlock(self._next_frame, samples, now_ns)
            self._next_frame += len(samples)
            self._marked = False
            yield block

    def _gap(self, n_frames: int, reason: LossReason) -> Gap:
        gap = Gap(self._next_frame, n_frames, reason)
        self._next_frame += n_frames
        self._marked = True
        return gap
