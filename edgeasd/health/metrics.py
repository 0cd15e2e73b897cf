"""Prometheus metrics: base units, `_total` on counters, `source` as the label, filled from plain records.

Counters are totals that other parts keep anyway: they are noted here and shown when somebody asks, so that a window
costs two histogram observations and a few assignments, and a node that nobody scrapes pays nothing more. To be
imported only where a port is set: it brings prometheus_client.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import Metric

from edgeasd.records import Event, EventType, LossReason, Score, Skipped

Samples = Iterable[tuple[Mapping[str, str], float]]
"""Labels and value of each sample of a metric."""

_PREFIX = "edgeasd_"
_INFERENCE_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
_LATENCY_BUCKETS_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_RESULTS = {
    LossReason.GAP: "skipped_gap",
    LossReason.DISABLED: "skipped_disabled",
    LossReason.LATE: "late",
    LossReason.OVERWRITTEN: "late",
}
_DROPPED = (LossReason.OVERRUN, LossReason.OVERWRITTEN, LossReason.LATE)


class PublisherFigures(Protocol):
    """What is read of a publisher; `edgeasd.publish.PublisherStats` is one."""

    @property
    def connected(self) -> bool:
        """Return whether the broker is there."""
        ...

    @property
    def reconnects(self) -> int:
        """Return how often the connection came back."""
        ...

    @property
    def published(self) -> int:
        """Return how many messages the broker took."""
        ...

    @property
    def spool_rows(self) -> int:
        """Return how many messages wait in the outbox."""
        ...

    @property
    def dropped(self) -> int:
        """Return how many messages were given up."""
        ...

    @property
    def quarantined(self) -> int:
        """Return how many messages were set aside."""
        ...

    @property
    def commands_refused(self) -> int:
        """Return how many commands were not carried out."""
        ...


@dataclass(frozen=True, slots=True)
class SourceFigures:
    """What capture knows of one source; counters run from the start of the process."""

    up: bool
    frames: int
    overruns: int
    reopens: int
    backlog_s: float
    """Sound in the ring that has not been scored."""
    last_frame_utc_s: float
    """When the last frame came, seconds since 1970."""


@dataclass(frozen=True, slots=True)
class NodeFigures:
    """What is known of the node as a whole."""

    realtime_factor: float
    """Seconds of sound judged in a second of computing."""
    disk_free_bytes: int | None = None
    gpu_memory_bytes: int | None = None
    gpu_temperature_c: float | None = None


@dataclass(slots=True)
class _SourceTotals:
    figures: SourceFigures | None = None
    windows: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    dropped_frames: int = 0
    clipped_frames: float = 0.0
    score: Score | None = None
    alarm_active: bool = False


class Metrics:
    """Takes note of records from any thread, in a registry of its own."""

    def __init__(self, *, version: str, bundle: str | None, backend: str | None) -> None:
        self.registry: CollectorRegistry = CollectorRegistry(auto_describe=False)
        self._build = {"version": version}
        self.judged_by(bundle, backend)
        self._lock = threading.Lock()
        self._sources: dict[str, _SourceTotals] = {}
        self._publisher: PublisherFigures | None = None
        self._node: NodeFigures | None = None
        self._inference = Histogram(
            f"{_PREFIX}inference_duration_seconds",
            "Computing per window, front end included",
            ["source"],
            buckets=_INFERENCE_BUCKETS_S,
            registry=self.registry,
        )
        self._latency = Histogram(
            f"{_PREFIX}end_to_end_latency_seconds",
            "From the last frame of a window in hand to its score handed to the publisher",
            ["source"],
            buckets=_LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self.registry.register(_OnDemand(self))

    def judged_by(self, bundle: str | None, backend: str | None) -> None:
        """Take note of what judges."""
        self._build = {**self._build, "bundle": bundle or "none", "backend": backend or "none"}

    def scored(self, score: Score, *, infer_ms: float, latency_s: float) -> None:
        """Take note of a judged window, what its judging cost, and how long after its last frame it was judged."""
        with self._lock:
            totals = self._totals(score.source)
            totals.windows[_result(score)] += 1
            totals.clipped_frames += score.level.clip_pct / 100.0 * score.n_frames
            totals.score = score
        self._inference.labels(score.source).observe(infer_ms / 1000.0)
        self._latency.labels(score.source).observe(latency_s)

    def skipped(self, skipped: Skipped) -> None:
        """Take note of frames that were passed over."""
        with self._lock:
            totals = self._totals(skipped.source)
            if skipped.reason in _RESULTS:
                totals.windows[_RESULTS[skipped.reason]] += 1
            if skipped.reason in _DROPPED:
                totals.dropped_frames += skipped.n_frames

    def event(self, event: Event) -> None:
        """Take note of a message in the life of an event."""
        with self._lock:
            totals = self._totals(event.source)
            totals.events[event.event_type.value] += 1
            totals.alarm_active = event.event_type is not EventType.END

    def source(self, name: str, figures: SourceFigures) -> None:
        """Take note of how a source fares."""
        with self._lock:
            self._totals(name).figures = figures

    def publisher(self, figures: PublisherFigures) -> None:
        """Take note of how publishing fares."""
        self._publisher = figures

    def node(self, figures: NodeFigures) -> None:
        """Take note of how the node fares."""
        self._node = figures

    def _totals(self, source: str) -> _SourceTotals:
        return self._sources.setdefault(source, _SourceTotals())

    def collect(self) -> list[Metric]:
        """Return the totals as of now, as prometheus_client asks for them on a scrape."""
        found = [_metric("gauge", "build_info", "What runs", [(self._build, 1.0)])]
        with self._lock:
            found += _source_metrics(self._sources)
        if self._publisher is not None:
            found += _publisher_metrics(self._publisher)
        if self._node is not None:
            found += _node_metrics(self._node)
        return found


class _OnDemand:
    """What prometheus_client calls a collector."""

    def __init__(self, metrics: Metrics) -> None:
        self.collect = metrics.collect


def _result(score: Score) -> str:
    if score.fault is not None:
        return "skipped_fault"
    return "skipped_warmup" if score.warmup else "scored"


def _source_metrics(sources: Mapping[str, _SourceTotals]) -> Iterator[Metric]:
    figures = {name: totals.figures for name, totals in sources.items() if totals.figures is not None}
    scores = {name: totals.score for name, totals in sources.items() if totals.score is not None}
    yield _counter("audio_samples", "Samples captured", {s: f.frames for s, f in figures.items()})
    yield _counter("audio_xruns", "Overruns of the sound card", {s: f.overruns for s, f in figures.items()})
    yield _counter("audio_reopens", "Times the device was opened again", {s: f.reopens for s, f in figures.items()})
    yield _counter("audio_dropped_samples", "Samples lost", {s: t.dropped_frames for s, t in sources.items()})
    yield _counter("audio_clipped_samples", "Samples at full scale", {s: t.clipped_frames for s, t in sources.items()})
    yield _gauge("audio_source_up", "Whether sound comes in", {s: f.up for s, f in figures.items()})
    yield _gauge("audio_rms_dbfs", "Level of the last window", {s: x.level.rms_dbfs for s, x in scores.items()})
    last_s = {s: f.last_frame_utc_s for s, f in figures.items()}
    yield _gauge("audio_last_frame_timestamp_seconds", "When the last frame came", last_s)
    yield _gauge("ring_backlog_seconds", "Sound not scored yet", {s: f.backlog_s for s, f in figures.items()})
    yield _gauge("score", "Score of the last window", {s: x.score for s, x in scores.items()})
    yield _gauge("threshold", "Score at which an event starts", {s: x.threshold for s, x in scores.items()})
    yield _gauge("alarm_active", "Whether an event is going on", {s: t.alarm_active for s, t in sources.items()})
    windows = [({"source": s, "result": r}, float(n)) for s, t in sources.items() for r, n in t.windows.items()]
    yield _metric("counter", "windows", "Windows by result", windows)
    events = [({"source": s, "type": e}, float(n)) for s, t in sources.items() for e, n in t.events.items()]
    yield _metric("counter", "events", "Event messages by type", events)


def _publisher_metrics(figures: PublisherFigures) -> Iterator[Metric]:
    for kind, name, documentation, value in (
        ("gauge", "mqtt_connected", "Whether the broker is there", figures.connected),
        ("counter", "mqtt_reconnects", "Connections after the first", figures.reconnects),
        ("counter", "mqtt_published", "Messages the broker took", figures.published),
        ("gauge", "mqtt_spool_messages", "Messages in the outbox", figures.spool_rows),
        ("counter", "mqtt_spool_dropped", "Messages given up", figures.dropped),
        ("counter", "mqtt_quarantined", "Messages set aside", figures.quarantined),
        ("counter", "mqtt_commands_refused", "Commands that were not carried out", figures.commands_refused),
    ):
        yield _metric(kind, name, documentation, [({}, float(value))])


def _node_metrics(figures: NodeFigures) -> Iterator[Metric]:
    for name, documentation, value in (
        ("realtime_factor", "Seconds of sound judged in a second of computing", figures.realtime_factor),
        ("disk_free_bytes", "Free space under the state directory", figures.disk_free_bytes),
        ("gpu_memory_bytes", "GPU memory in use", figures.gpu_memory_bytes),
        ("gpu_temperature_celsius", "GPU temperature", figures.gpu_temperature_c),
    ):
        if value is not None:
            yield _metric("gauge", name, documentation, [({}, float(value))])


def _counter(name: str, documentation: str, by_source: Mapping[str, float]) -> Metric:
    return _metric("counter", name, documentation, [({"source": s}, float(v)) for s, v in by_source.items()])


def _gauge(name: str, documentation: str, by_source: Mapping[str, float]) -> Metric:
    return _metric("gauge", name, documentation, [({"source": s}, float(v)) for s, v in by_source.items()])


def _metric(kind: str, name: str, documentation: str, samples: Samples) -> Metric:
    metric = Metric(_PREFIX + name, documentation, kind)
    suffix = "_total" if kind == "counter" else ""
    for labels, value in samples:
        metric.add_sample(_PREFIX + name + suffix, dict(labels), value)
    return metric
