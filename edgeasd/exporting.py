"""Figures for Prometheus, where a port is set: a second taker beside the reporter."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from edgeasd import __version__
from edgeasd.clock import NS_PER_S, steady_ns
from edgeasd.health.metrics import Metrics, NodeFigures, SourceFigures
from edgeasd.health.scrape import MetricsServer
from edgeasd.line import Line, Track
from edgeasd.records import Event, LossReason, Score, Skipped
from edgeasd.reporter import Reporter
from edgeasd.scoring.listener import Said
from edgeasd.settings import Settings

_STUCK_S = 10.0


class Exporter:
    """Keeps the figures up to date."""

    def __init__(
        self,
        metrics: Metrics,
        reporter: Reporter,
        settings: Settings,
        *,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._metrics = metrics
        self._monotonic_s = monotonic_s
        self._turned_s: float | None = None
        self._reporter = reporter
        self._state_dir = settings.state_dir

    def skipped(self, track: Track, skipped: Skipped) -> None:  # noqa: ARG002  # the protocol's
        """Count frames that nobody judged."""
        self._metrics.skipped(skipped)

    def said(self, track: Track, said: Said, *, infer_ms: float) -> None:  # noqa: ARG002  # the protocol's
        """Count windows and events."""
        if isinstance(said, Score):
            latency_s = (steady_ns() - said.captured_ns) / NS_PER_S
            self._metrics.scored(said, infer_ms=infer_ms, latency_s=latency_s)
        elif isinstance(said, Event):
            self._metrics.event(said)

    def ended(self, track: Track) -> None:
        """Leave the last figures standing."""

    @property
    def ready(self) -> bool:
        """Return whether the node judges; it waits for no microphone and no broker to do so."""
        return self._turned_s is not None

    @property
    def healthy(self) -> bool:
        """Return whether the judging loop still turns; whether sound comes is told by the figures, not by this."""
        return self._turned_s is not None and self._monotonic_s() - self._turned_s < _STUCK_S

    def refresh(self, line: Line) -> None:
        """Take note of what is only known by asking, and that the loop has turned; called every second."""
        self._turned_s = self._monotonic_s()
        for track in line.tracks:
            stats, last_ns = track.thread.stats, track.thread.last_block_ns
            age_s = 0.0 if last_ns is None else (steady_ns() - last_ns) / NS_PER_S
            self._metrics.source(
                track.source.name,
                SourceFigures(
                    up=self._reporter.heard(track.source.name),
                    frames=stats.frames,
                    overruns=stats.gaps.get(LossReason.OVERRUN, 0),
                    reopens=stats.reopens,
                    backlog_s=track.reader.backlog_frames / track.source.rate_hz,
                    last_frame_utc_s=0.0 if last_ns is None else time.time() - age_s,
                ),
            )
        self._metrics.judged_by(self._reporter.bundle_label, self._reporter.engine_name)
        self._metrics.publisher(self._reporter.publisher.stats())
        disk_free_bytes = shutil.disk_usage(self._state_dir).free if self._state_dir.exists() else None
        self._metrics.node(NodeFigures(self._reporter.realtime_factor(line), disk_free_bytes=disk_free_bytes))


@contextmanager
def exporting(settings: Settings, reporter: Reporter, *, port: int) -> Iterator[Exporter]:
    """Serve /metrics, /healthz and /readyz while this is entered."""
    metrics = Metrics(version=__version__, bundle=reporter.bundle_label, backend=reporter.engine_name)
    exporter = Exporter(metrics, reporter, settings)
    with MetricsServer(
        metrics,
        port=port,
        address=settings.metrics.host,
        healthy=lambda: exporter.healthy,
        ready=lambda: exporter.ready,
    ):
        yield exporter
