"""Figures for Prometheus, where a port is set: a second taker beside the reporter."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager

from edgeasd import __version__
from edgeasd.clock import NS_PER_S
from edgeasd.health.metrics import Metrics, NodeFigures, SourceFigures
from edgeasd.health.scrape import MetricsServer
from edgeasd.line import Line, Track
from edgeasd.records import Event, LossReason, Score, Skipped
from edgeasd.reporter import Reporter
from edgeasd.scoring.listener import Said
from edgeasd.settings import Settings


class Exporter:
    """Keeps the figures up to date."""

    def __init__(self, metrics: Metrics, reporter: Reporter, settings: Settings) -> None:
        self._metrics = metrics
        self._reporter = reporter
        self._state_dir = settings.state_dir

    def skipped(self, track: Track, skipped: Skipped) -> None:  # noqa: ARG002  # the protocol's
        """Count frames that nobody judged."""
        self._metrics.skipped(skipped)

    def said(self, track: Track, said: Said, *, infer_ms: float) -> None:  # noqa: ARG002  # the protocol's
        """Count windows and events."""
        if isinstance(said, Score):
            latency_s = (time.monotonic_ns() - said.captured_ns) / NS_PER_S
            self._metrics.scored(said, infer_ms=infer_ms, latency_s=latency_s)
        elif isinstance(said, Event):
            self._metrics.event(said)

    def ended(self, track: Track) -> None:
        """Leave the last figures standing."""

    def refresh(self, line: Line) -> None:
        """Take note of what is only known by asking; cheap enough for every step."""
        for track in line.tracks:
            stats, last_ns = track.thread.stats, track.thread.last_block_ns
            age_s = 0.0 if last_ns is None else (time.monotonic_ns() - last_ns) / NS_PER_S
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
        self._metrics.publisher(self._reporter.publisher.stats())
        disk_free_bytes = shutil.disk_usage(self._state_dir).free if self._state_dir.exists() else None
        self._metrics.node(NodeFigures(self._reporter.realtime_factor(line), disk_free_bytes=disk_free_bytes))


@contextmanager
def exporting(settings: Settings, reporter: Reporter, *, port: int) -> Iterator[Exporter]:
    """Serve /metrics, /healthz and /readyz while this is entered."""
    metrics = Metrics(version=__version__, bundle=reporter.bundle_label, backend=reporter.engine_name)
    with MetricsServer(metrics, port=port, address=settings.metrics.host):
        yield Exporter(metrics, reporter, settings)
