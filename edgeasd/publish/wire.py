"""The wire format: every topic and every payload key that edgeasd says, and where it listens.

What payloads are made of is in `edgeasd.publish.payload`, what may be written to a command topic in
`edgeasd.publish.commands`.

Times in payloads are UTC: `ts` as RFC 3339 with microseconds, `ts_ns` as integer nanoseconds since 1970, both of the
first frame that a message speaks of. The golden files under tests/golden/wire hold this format: keys may be added,
never renamed, removed or given another form.
"""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Literal

from edgeasd.errors import SettingsError
from edgeasd.publish.message import GapRecord, Kind, Message, NodeHealth, NodeInfo, Verb
from edgeasd.publish.payload import (
    UtcOf,
    account_part,
    confirmed_part,
    number,
    opinion_part,
    override_part,
    publisher_part,
    utc_text,
)
from edgeasd.records import Event, EventType, Fault, Level, Score, StateNotice

SCHEMA_VERSION = 1

_NAME = re.compile(r"[a-z0-9_-]+")
_BASE_TOPIC = re.compile(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*")


class Wire:
    """Encodes records of one node into messages."""

    def __init__(
        self, node: str, *, base_topic: str = "edgeasd", model: str | None = None, backend: str | None = None
    ) -> None:
        if not _BASE_TOPIC.fullmatch(base_topic):
            raise SettingsError(f"mqtt.base_topic: {base_topic!r} is not levels of [A-Za-z0-9_.-] joined by '/'")
        self.node = checked_name(node, what="node name")
        self._root = f"{base_topic}/{self.node}"
        self._model = model
        self._backend = backend

    def node_status(self, status: Literal["online", "stopped", "offline"]) -> Message:
        """Say that the node runs, was stopped, or (as its last will) was lost."""
        return _state(f"{self._root}/status", status)

    def source_status(self, source: str, status: Literal["online", "offline", "disabled"]) -> Message:
        """Say whether a source delivers sound."""
        return _state(f"{self._of(source)}/status", status)

    def alarm(self, source: str, *, active: bool) -> Message:
        """Say whether an event is going on."""
        return _state(f"{self._of(source)}/state", "ON" if active else "OFF")

    def threshold(self, source: str, threshold: float) -> Message:
        """Say the score at which an event starts."""
        return _state(f"{self._of(source)}/threshold/state", repr(number(threshold)))

    def enabled(self, source: str, *, enabled: bool) -> Message:
        """Say whether a source is judged."""
        return _state(f"{self._of(source)}/enabled/state", "ON" if enabled else "OFF")

    @property
    def command_filters(self) -> tuple[str, ...]:
        """Return what to subscribe to for the commands of all sources."""
        return tuple(f"{self._root}/+/{verb}/set" for verb in Verb)

    def addressed(self, topic: str) -> tuple[str, Verb] | None:
        """Return (source, verb) of a command topic, None for any other; the source may be one that nobody knows."""
        levels = topic.removeprefix(f"{self._root}/").split("/") if topic.startswith(f"{self._root}/") else []
        if len(levels) != 3 or levels[1] not in list(Verb) or levels[2] != "set":
            return None
        return levels[0], Verb(levels[1])

    def fault(self, source: str, fault: Fault | None, *, since_ns: int) -> tuple[Message, Message]:
        """Say whether the input is broken (ON, OFF), and in which way and since when (the attributes)."""
        attributes = {
            "v": SCHEMA_VERSION,
            "node": self.node,
            "src": source,
            "fault": fault,
            "since": utc_text(since_ns),
            "since_ns": since_ns,
        }
        topic = f"{self._of(source)}/fault"
        word = "OFF" if fault is None else "ON"
        return _state(topic, word), Message(f"{topic}/attributes", attributes, Kind.STATE, qos=1, retain=True)

    def info(self, info: NodeInfo) -> Message:
        """Say what the node is."""
        payload = {
            "v": SCHEMA_VERSION,
            "node": self.node,
            "version": info.version,
            "bundle": info.bundle,
            "bundle_sha256": info.bundle_sha256,
            "backend": info.backend,
            "gpu": None if info.engine is None or info.engine.device == "cpu" else info.engine.device,
            "engine": None if info.engine is None else asdict(info.engine),
            "sources": list(info.sources),
            "config_sha256": info.config_sha256,
            "mqtt_protocol": info.mqtt_protocol,
            "warnings": list(info.warnings),
            "overrides": {source: override_part(override) for source, override in info.overrides.items()},
            "model": None if info.model is None else asdict(info.model),
        }
        return Message(f"{self._root}/info", payload, Kind.STATE, qos=1, retain=True)

    def health(self, health: NodeHealth, *, ts_ns: int) -> Message:
        """Say how the node fares."""
        payload = {
            "v": SCHEMA_VERSION,
            "node": self.node,
            "ts": utc_text(ts_ns),
            "ts_ns": ts_ns,
            "uptime_s": round(health.uptime_s, 3),
            "rtf": number(health.realtime_factor),
            "backlog_s": number(health.backlog_s),
            "xruns": health.overruns,
            "dropped": health.dropped_frames,
            "mem": health.rss_bytes,
            "gpu_temp": None if health.gpu_temperature_c is None else number(health.gpu_temperature_c),
            "clock_synced": health.clock_synced,
            "spool_depth": health.publisher.spool_rows,
            "mqtt": publisher_part(health.publisher),
            "sources": {source: account_part(account) for source, account in health.accounts.items()},
        }
        return Message(f"{self._root}/health", payload, Kind.HEALTH, qos=0, retain=False)

    def gap(self, gap: GapRecord, *, ts_ns: int) -> Message:
        """Say which messages were given up because the outbox was full."""
        payload = {
            "v": SCHEMA_VERSION,
            "node": self.node,
            "seq": 0,
            "id": "",
            "ts": utc_text(ts_ns),
            "ts_ns": ts_ns,
            "from_id": gap.from_id,
            "to_id": gap.to_id,
            "count": gap.count,
        }
        return Message(f"{self._root}/gap", payload, Kind.GAP, qos=1, retain=False)

    def level(self, source: str, level: Level, *, ts_ns: int) -> Message:
        """Say how loud it is."""
        payload = {
            "v": SCHEMA_VERSION,
            "node": self.node,
            "src": source,
            "ts": utc_text(ts_ns),
            "ts_ns": ts_ns,
            "rms_dbfs": number(level.rms_dbfs),
            "peak_dbfs": number(level.peak_dbfs),
            "clip_pct": number(level.clip_pct),
            "dc": number(level.dc),
        }
        return Message(f"{self._of(source)}/level", payload, Kind.LEVEL, qos=0, retain=False)

    def score(self, score: Score, *, utc_ns: UtcOf, rate_hz: int, infer_ms: float) -> Message:
        """Say what is thought of one window."""
        payload = {
            **self._head(score.source, utc_ns(score.first_frame)),
            "sample0": score.first_frame,
            "n": score.n_frames,
            "rate": rate_hz,
            "score": number(score.score),
            "threshold": number(score.threshold),
            "p_value": number(score.p_value),
            "anomaly": score.valid and not score.warmup and score.score >= score.threshold,
            "contiguous": True,
            "warmup": score.warmup,
            "late": False,
            "valid": score.valid,
            "fault": score.fault,
            "model": self._model,
            "backend": self._backend,
            "infer_ms": number(infer_ms),
            "opinions": {"model": opinion_part(score.model), "prompt": opinion_part(score.prompt)},
            "confirmed": confirmed_part(score.confirmed, utc_ns),
        }
        return Message(f"{self._of(score.source)}/score", payload, Kind.SCORE, qos=1, retain=False)

    def event(self, event: Event, *, utc_ns: UtcOf, rate_hz: int, threshold: float) -> Message:
        """Say that an event starts, has changed, or is over; `end` is null until it is."""
        over = event.event_type is EventType.END
        start_ns = utc_ns(event.start_frame)
        payload = {
            **self._head(event.source, start_ns),
            "event_type": event.event_type,
            "event_id": event.event_id,
            "sample0": event.start_frame,
            "n": event.end_frame - event.start_frame,
            "rate": rate_hz,
            "score": number(event.peak_score),
            "threshold": number(threshold),
            "p_value": number(event.p_value),
            "anomaly": not over,
            "contiguous": True,
            "warmup": False,
            "late": False,
            "valid": True,
            "model": self._model,
            "backend": self._backend,
            "start": utc_text(start_ns),
            "end": utc_text(utc_ns(event.end_frame)) if over else None,
            "duration_s": number((event.end_frame - event.start_frame) / rate_hz),
            "peak": utc_text(utc_ns(event.peak_frame)),
            "peak_score": number(event.peak_score),
            "confirmed": event.confirmed,
            "bands": [
                {"hz": [number(band.low_hz), number(band.high_hz)], "share": number(band.share)} for band in event.bands
            ],
        }
        return Message(f"{self._of(event.source)}/event", payload, Kind.EVENT, qos=1, retain=False)

    def notice(self, notice: StateNotice, *, utc_ns: UtcOf, rate_hz: int) -> Message:
        """Say that what is heard has become a lasting state unlike the last minutes."""
        payload = {
            **self._head(notice.source, utc_ns(notice.first_frame)),
            "sample0": notice.first_frame,
            "rate": rate_hz,
            "late": False,
            "distance_db": number(notice.distance_db),
        }
        return Message(f"{self._of(notice.source)}/notice", payload, Kind.NOTICE, qos=1, retain=False)

    def _of(self, source: str) -> str:
        return f"{self._root}/{checked_name(source, what='source name')}"

    def _head(self, source: str, ts_ns: int) -> dict[str, object]:
        """Return the keys that open a numbered payload; `seq` and `id` are filled in on acceptance."""
        return {
            "v": SCHEMA_VERSION,
            "node": self.node,
            "src": source,
            "seq": 0,
            "id": "",
            "ts": utc_text(ts_ns),
            "ts_ns": ts_ns,
        }


def checked_name(name: str, *, what: str) -> str:
    """Return `name`, or raise SettingsError when it cannot be one level of a topic."""
    if not _NAME.fullmatch(name):
        raise SettingsError(f"{what}: {name!r} is not made of a-z, 0-9, '_' and '-'")
    return name


def _state(topic: str, word: str) -> Message:
    return Message(topic, word, Kind.STATE, qos=1, retain=True)
