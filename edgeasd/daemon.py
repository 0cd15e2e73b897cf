"""The daemon: opens everything in order, listens until told to stop, closes in reverse. The first file to read."""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeasd.assembly import Bench, JudgeOptions, plan_judges, seat_judges
from edgeasd.capture.ring import Ring
from edgeasd.capture.source import SourceSpec, open_source
from edgeasd.capture.thread import CaptureThread
from edgeasd.capture.windows import WindowReader
from edgeasd.clock import FrameClock
from edgeasd.errors import SettingsError
from edgeasd.health.notify import Notifier, watchdog_s
from edgeasd.line import HungError, Line, Several, Taker, Track
from edgeasd.models.choosing import Choice, beginning, trust_of
from edgeasd.models.store import ModelStore
from edgeasd.node import Attendant, Node
from edgeasd.reloading import Reloading, policy_of
from edgeasd.scoring.jury import Grid
from edgeasd.settings import Settings
from edgeasd.steering.attendant import Steering
from edgeasd.watchdog import Watchdog

if TYPE_CHECKING:
    from edgeasd.exporting import Exporter
    from edgeasd.models.swapping import Swapping
    from edgeasd.reporter import Reporter

log = logging.getLogger(__name__)

_STEP_S = 0.5
_CARE_S = 1.0
_STOP_S = 3.0
_MAX_BACKLOG_BYTES = 512 << 20
"""Of the sound of all sources that waits to be judged."""
_MIN_BLOCK_S, _MAX_BLOCK_S = 0.02, 0.5
"""Sound is read in blocks of a hop, or of a part or multiple of it within these bounds: so windows end with blocks."""
_STATUS_S = 2.0


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How long to listen."""

    duration_s: float | None = None
    """None listens until told to stop."""
    once: bool = False
    """End when every source has been judged once."""
    load_again: Callable[[], Settings] | None = None
    """Gives the settings anew on SIGHUP; None takes no notice of it."""


def judge_options(settings: Settings, choice: Choice | None = None) -> JudgeOptions:
    """Return what the settings say about judging; `choice` in place of the bundle that they name."""
    return JudgeOptions(
        bundle=settings.bundle if choice is None else choice.bundle,
        trust=trust_of(settings) if choice is None and settings.bundle is not None else None,
        engine=settings.engine,
        precision=settings.precision,
        cache_dir=settings.engine_cache_dir,
        hop_s=settings.windows.hop_s,
        novelty=settings.novelty.enabled,
        policy=policy_of(settings),
        state_dir=settings.state_dir,
    )


def run(settings: Settings, options: RunOptions) -> None:
    """Listen until told to stop.

    UnavailableError when a microphone hangs inside the sound system: the process must end, for its thread cannot.
    """
    if not settings.sources:
        raise SettingsError(
            "sources: none; give --device NAME, or sources in the settings (`edgeasd devices` lists them)"
        )
    stop, hangup = threading.Event(), threading.Event()
    notifier = Notifier(os.environ.get("NOTIFY_SOCKET"))
    with ExitStack() as stack:
        stack.enter_context(_signals_heeded(stop, hangup))
        notifier.status("starting: reading the bundle")
        store = ModelStore(settings.state_dir)
        start = stack.enter_context(beginning(settings, store))
        plan = plan_judges(judge_options(settings, start.choice))
        doorbell = threading.Condition()
        # Capture comes first: sound cards take their time to open, and the first window its length to fill.
        tracks = stack.enter_context(capturing(settings, plan.grid, doorbell))
        from edgeasd.models.swapping import LOOKED_AFTER, Swapping  # noqa: PLC0415  # with all that they bring
        from edgeasd.reporter import reporting  # noqa: PLC0415

        swapping = Swapping(store, start)
        load = options.load_again or (lambda: settings)
        reloading = Reloading(load, listeners=[swapping.reload], theirs=LOOKED_AFTER, asked=hangup)
        with notifier.patience("starting: the model is loaded and tested"):
            bench = stack.enter_context(seat_judges(plan))
        names = [source.name for source in settings.sources]
        reporter = stack.enter_context(reporting(settings, bench, names))
        exporter = stack.enter_context(_exporting(settings, reporter))
        line = Line(tracks, bench.pipeline, doorbell=doorbell)
        node = Node(settings, bench, line, reporter, notifier)
        log.info("listening to %s, judged by %s", ", ".join(names), _judges(bench))
        notifier.ready(f"listening to {', '.join(names)}")
        _Loop(node, exporter, attendants=_attendants(reloading, swapping), options=options).run(stop)
        notifier.stopping()


def _attendants(reloading: Reloading, swapping: Swapping) -> Sequence[Attendant]:
    """Return whoever looks after the node while it runs, in the order in which they are asked."""
    return (Steering(), reloading, swapping, Watchdog(watchdog_s(os.environ.get("WATCHDOG_USEC"))))


@contextmanager
def _exporting(settings: Settings, reporter: Reporter) -> Iterator[Exporter | None]:
    """Serve figures where a port is set; prometheus_client loads only there."""
    if settings.metrics.port is None:
        yield None
        return
    from edgeasd.exporting import exporting  # noqa: PLC0415

    with exporting(settings, reporter, port=settings.metrics.port) as exporter:
        yield exporter


@contextmanager
def _signals_heeded(stop: threading.Event, hangup: threading.Event) -> Iterator[None]:
    def request_stop(number: int, _frame: object) -> None:
        log.info("stopping on %s", signal.Signals(number).name)
        stop.set()

    def request_reload(_number: int, _frame: object) -> None:
        hangup.set()

    heeded = {signal.SIGTERM: request_stop, signal.SIGINT: request_stop, signal.SIGHUP: request_reload}
    before = {number: signal.signal(number, handler) for number, handler in heeded.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def capturing(settings: Settings, grid: Grid, doorbell: threading.Condition) -> Iterator[list[Track]]:
    """Capture every source of the settings; on leaving, HungError when a thread does not end."""
    _check_memory(settings, grid)
    tracks: list[Track] = []
    try:
        for wanted in settings.sources:
            spec = SourceSpec(
                name=wanted.name,
                device=wanted.device,
                rate_hz=grid.rate_hz,
                channel=wanted.channel,
                native_rate_hz=wanted.native_rate_hz,
                block_frames=_block_frames(grid),
            )
            tracks.append(_open_track(spec, grid, doorbell, max_backlog_s=settings.windows.max_backlog_s))
        yield tracks
    finally:
        for track in tracks:
            track.thread.stop()
        hung = isinstance(sys.exception(), HungError)
        patience_s = 0.0 if hung else _STOP_S
        left = [track for track in tracks if not track.thread.join(patience_s - track.thread.stopping_s())]
        if left and not hung:
            raise HungError(left[0], stalled_s=_STOP_S)


def _block_frames(grid: Grid) -> int:
    hop_s = grid.hop_frames / grid.rate_hz
    return math.ceil(grid.hop_frames * math.ceil(_MIN_BLOCK_S / hop_s) / math.ceil(hop_s / _MAX_BLOCK_S))


def _check_memory(settings: Settings, grid: Grid) -> None:
    backlog_s, n_sources = settings.windows.max_backlog_s, len(settings.sources)
    n_bytes = 4 * n_sources * (round(backlog_s * grid.rate_hz) + 2 * grid.window_frames)
    if n_bytes > _MAX_BACKLOG_BYTES:
        raise SettingsError(
            f"windows.max_backlog_s: {backlog_s:g} s of {n_sources} sources at {grid.rate_hz} Hz take "
            f"{n_bytes >> 20} MiB of memory; the limit is {_MAX_BACKLOG_BYTES >> 20}"
        )


def _open_track(spec: SourceSpec, grid: Grid, doorbell: threading.Condition, *, max_backlog_s: float) -> Track:
    backlog_frames = round(max_backlog_s * grid.rate_hz)
    source = open_source(spec)
    clock = FrameClock(grid.rate_hz)
    ring = Ring(backlog_frames + 2 * grid.window_frames, policy="overwrite", doorbell=doorbell)
    reader = WindowReader(
        ring,
        source=spec.name,
        window_frames=grid.window_frames,
        hop_frames=grid.hop_frames,
        max_backlog_windows=max(1, backlog_frames // grid.hop_frames),
    )
    return Track(source, clock, ring, CaptureThread(source, ring, clock=clock), reader)


def _judges(bench: Bench) -> str:
    if bench.bundle is None:
        return "the untrained second opinion alone"
    manifest = bench.bundle.manifest
    site = ", calibrated on site" if bench.calibrated_on_site else ""
    return f"{manifest.name} version {manifest.version} on {bench.engine_name}{site}"


class _Loop:
    """Judges, and looks after the node, until it is time to stop."""

    def __init__(
        self, node: Node, exporter: Exporter | None, *, attendants: Sequence[Attendant], options: RunOptions
    ) -> None:
        self._node = node
        self._exporter = exporter
        self._taker: Taker = node.reporter if exporter is None else Several([node.reporter, exporter])
        self._attendants = attendants
        self._options = options
        self._care_due_s = self._status_due_s = 0.0
        self._health_due_s = time.monotonic() + node.settings.health_interval_s
        self._until_s = None if options.duration_s is None else time.monotonic() + options.duration_s

    def run(self, stop: threading.Event) -> None:
        """Judge what comes until `stop`, the end of the duration, or the end of all sources."""
        line, reporter = self._node.line, self._node.reporter
        self._look_after(time.monotonic())  # what was set before this start holds from the first window on
        while not stop.is_set() and line.running and not self._over():
            line.step(self._taker, timeout_s=self._step_s())
            self._look_after(time.monotonic())
        line.check()  # a source that died of an error has ended too, and must not look like a clean stop
        line.finish(self._taker)
        reporter.health(line)

    def _over(self) -> bool:
        line, heard = self._node.line, self._node.reporter.heard
        names = [track.source.name for track in line.tracks if line.switches.is_on(track.source.name)]
        if self._options.once and all(heard(name) for name in names):
            return True
        return self._until_s is not None and time.monotonic() >= self._until_s

    def _step_s(self) -> float:
        return _STEP_S if self._until_s is None else max(0.0, min(_STEP_S, self._until_s - time.monotonic()))

    def _look_after(self, now_s: float) -> None:
        if now_s < self._care_due_s:
            return
        self._care_due_s = now_s + _CARE_S
        node, reporter = self._node, self._node.reporter
        try:
            node.line.check()
        except HungError as exc:
            reporter.device_hung(exc.track)
            raise
        for attendant in self._attendants:
            attendant.attend(node, now_s)
        reporter.info(node.settings)
        if self._exporter is not None:
            self._exporter.refresh(node.line)
        if now_s >= self._status_due_s:
            self._status_due_s = now_s + _STATUS_S
            node.notifier.status(reporter.status_line())
        self._health_due_s = min(self._health_due_s, now_s + node.settings.health_interval_s)  # it may have got shorter
        if now_s >= self._health_due_s:
            self._health_due_s = now_s + node.settings.health_interval_s
            reporter.health(node.line)
