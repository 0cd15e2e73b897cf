"""Metrics as a scraper sees them, over HTTP."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from edgeasd.errors import UnavailableError
from edgeasd.health.metrics import Metrics, NodeFigures, SourceFigures
from edgeasd.health.scrape import MetricsServer
from edgeasd.records import Event, EventType, Fault, Level, LossReason, Score, Skipped

SCORE = Score(
    source="mic0",
    first_frame=0,
    n_frames=16_000,
    captured_ns=0,
    score=1.5,
    p_value=0.2,
    threshold=4.0,
    model=None,
    prompt=None,
    confirmed=None,
    level=Level(-31.5, -12.0, 0.5, 0.0),
    fault=None,
    warmup=False,
)
EVENT = Event(EventType.START, "e", "mic0", 0, 16_000, 5.0, 0, 0.001, (), None)


@dataclass(frozen=True)
class Publishing:
    connected: bool = True
    reconnects: int = 2
    published: int = 70
    spool_rows: int = 3
    dropped: int = 1
    quarantined: int = 4
    commands_refused: int = 5


class Probe:
    """A node that is ready or not, and what its server answers."""

    def __init__(self) -> None:
        self.metrics = Metrics(version="0.1.0", bundle="fan-ae@3f2a9c", backend="onnx")
        self.ready = False
        self.server = MetricsServer(self.metrics, port=0, ready=lambda: self.ready)

    def get(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=5.0)
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read().decode()
        connection.close()
        return answer.status, body

    def samples(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        status, text = self.get("/metrics")
        assert status == 200
        families = text_string_to_metric_families(text)
        return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}

    def value(self, name: str, **labels: str) -> float:
        return self.samples()[f"edgeasd_{name}", frozenset(labels.items())]


@pytest.fixture
def probe() -> Iterator[Probe]:
    probe = Probe()
    with probe.server:
        yield probe


def test_windows_are_counted_by_what_became_of_them(probe: Probe) -> None:
    probe.metrics.scored(SCORE, infer_ms=0.9, latency_s=0.004)
    probe.metrics.scored(SCORE, infer_ms=0.9, latency_s=0.004)
    probe.metrics.scored(replace(SCORE, warmup=True), infer_ms=0.9, latency_s=0.004)
    probe.metrics.scored(replace(SCORE, fault=Fault.DEAD), infer_ms=0.9, latency_s=0.004)
    probe.metrics.skipped(Skipped("mic0", 0, 800, LossReason.GAP))
    probe.metrics.skipped(Skipped("mic0", 0, 8000, LossReason.LATE))
    counted = {result: probe.value("windows_total", source="mic0", result=result) for result in RESULTS}
    assert counted == {"scored": 2, "skipped_warmup": 1, "skipped_fault": 1, "skipped_gap": 1, "late": 1}
    assert probe.value("audio_dropped_samples_total", source="mic0") == 8000
    assert probe.value("audio_clipped_samples_total", source="mic0") == 4 * 80
    assert probe.value("inference_duration_seconds_bucket", source="mic0", le="0.001") == 4
    assert probe.value("end_to_end_latency_seconds_sum", source="mic0") == pytest.approx(0.016)


RESULTS = ("scored", "skipped_warmup", "skipped_fault", "skipped_gap", "late")


def test_last_score_its_level_and_the_alarm_show(probe: Probe) -> None:
    probe.metrics.scored(SCORE, infer_ms=0.9, latency_s=0.004)
    probe.metrics.event(EVENT)
    assert probe.value("score", source="mic0") == 1.5
    assert probe.value("threshold", source="mic0") == 4.0
    assert probe.value("audio_rms_dbfs", source="mic0") == -31.5
    assert probe.value("alarm_active", source="mic0") == 1
    probe.metrics.event(replace(EVENT, event_type=EventType.END))
    assert probe.value("alarm_active", source="mic0") == 0
    assert probe.value("events_total", source="mic0", type="start") == 1
    assert probe.value("events_total", source="mic0", type="end") == 1


def test_figures_of_capture_publisher_and_node_show_once_they_are_known(probe: Probe) -> None:
    assert {name for name, _ in probe.samples()} == {"edgeasd_build_info"}
    probe.metrics.source("mic0", SourceFigures(True, 16_000, 2, 1, 0.25, 1_795_165_590.5))
    probe.metrics.publisher(Publishing())
    probe.metrics.node(NodeFigures(realtime_factor=800.0, disk_free_bytes=10**9))
    assert probe.value("build_info", version="0.1.0", bundle="fan-ae@3f2a9c", backend="onnx") == 1
    expected = {
        "audio_samples_total": 16_000,
        "audio_xruns_total": 2,
        "audio_reopens_total": 1,
        "audio_source_up": 1,
        "audio_last_frame_timestamp_seconds": 1_795_165_590.5,
        "ring_backlog_seconds": 0.25,
    }
    assert {name: probe.value(name, source="mic0") for name in expected} == expected
    alone = {
        "mqtt_connected": 1,
        "mqtt_reconnects_total": 2,
        "mqtt_published_total": 70,
        "mqtt_spool_messages": 3,
        "mqtt_spool_dropped_total": 1,
        "mqtt_quarantined_total": 4,
        "mqtt_commands_refused_total": 5,
        "realtime_factor": 800,
        "disk_free_bytes": 10**9,
    }
    assert {name: probe.value(name) for name in alone} == alone
    assert not any("gpu" in name for name, _ in probe.samples())


def test_health_and_readiness_are_asked_of_the_node(probe: Probe) -> None:
    assert probe.get("/healthz") == (200, "ok\n")
    assert probe.get("/readyz") == (503, "not ok\n")
    probe.ready = True
    assert probe.get("/readyz?verbose") == (200, "ok\n")
    assert probe.get("/")[0] == 404


def test_only_loopback_is_served_unless_told_otherwise(probe: Probe) -> None:
    assert probe.server._server.server_address[0] == "127.0.0.1"


def test_client_that_says_nothing_does_not_block_the_next(probe: Probe) -> None:
    with socket.create_connection(("127.0.0.1", probe.server.port)):
        assert probe.get("/healthz")[0] == 200


def test_port_in_use_is_told_in_one_line(probe: Probe) -> None:
    with pytest.raises(UnavailableError, match=rf"cannot listen on 127\.0\.0\.1:{probe.server.port}"):
        MetricsServer(probe.metrics, port=probe.server.port)
