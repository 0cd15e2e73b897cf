"""What is known of the nodes of a broker, from nothing but their messages."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_MAX_PARTS = 256
"""Nodes, and sources, that are kept; a broker may carry topics of strangers."""
_MAX_PAYLOAD_BYTES = 64 * 1024
_N_SCORES = 48
_N_EVENTS = 12


@dataclass(slots=True)
class SourceView:
    """The latest of one source."""

    status: str = "?"
    scores: deque[float] = field(default_factory=lambda: deque(maxlen=_N_SCORES))
    """Newest last."""
    threshold: float | None = None
    p_value: float | None = None
    alarm: bool = False
    fault: bool = False
    rms_dbfs: float | None = None


@dataclass(slots=True)
class NodeView:
    """The latest of one node."""

    status: str = "?"
    info: Mapping[str, Any] = field(default_factory=dict)
    health: Mapping[str, Any] = field(default_factory=dict)
    sources: dict[str, SourceView] = field(default_factory=dict)


class Board:
    """Takes messages in any order and keeps the latest; bounded however much a broker sends."""

    def __init__(self, base_topic: str, *, node: str | None = None) -> None:
        self._prefix = f"{base_topic}/"
        self._only = node
        self.nodes: dict[str, NodeView] = {}
        self.events: deque[str] = deque(maxlen=_N_EVENTS)
        """One line an event message, newest last."""
        self.n_messages = 0
        self.n_strange = 0
        """Messages that no edgeasd of this version would send."""

    def take(self, topic: str, payload: bytes) -> str | None:
        """Take note of a message; return one line about it when a reader would want it, else None."""
        levels = topic.removeprefix(self._prefix).split("/")
        if self._only is not None and levels[0] != self._only:
            return None
        self.n_messages += 1
        try:
            return self._take(clean(levels[0]), [clean(level) for level in levels[1:]], payload)
        except (ValueError, TypeError, KeyError, RecursionError):
            self.n_strange += 1
            return None

    def _take(self, name: str, levels: list[str], payload: bytes) -> str | None:
        if len(payload) > _MAX_PAYLOAD_BYTES or (name not in self.nodes and len(self.nodes) >= _MAX_PARTS):
            raise ValueError("more than we keep")
        node = self.nodes.setdefault(name, NodeView())
        match levels:
            case ["status"]:
                node.status = clean(payload.decode())
                return f"{name} {node.status}"
            case ["info"]:
                node.info = _record(payload)
            case ["health"]:
                node.health = _record(payload)
            case ["gap"]:
                return self._note(f"{name} lost {int(_record(payload)['count'])} messages: its outbox was full")
            case [source, *leaf]:
                if source not in node.sources and len(node.sources) >= _MAX_PARTS:
                    raise ValueError("more than we keep")
                view = node.sources.setdefault(source, SourceView())
                return self._of_source(f"{name}/{source}", view, "/".join(leaf), payload)
        return None

    def _of_source(self, label: str, view: SourceView, leaf: str, payload: bytes) -> str | None:
        match leaf:
            case "status":
                view.status = clean(payload.decode())
                return f"{label} {view.status}"
            case "state":
                view.alarm = payload == b"ON"
            case "fault":
                view.fault = payload == b"ON"
                return f"{label} FAULT" if view.fault else f"{label} fault over"
            case "threshold/state":
                view.threshold = float(payload)
            case "level":
                view.rms_dbfs = float(_record(payload)["rms_dbfs"])
            case "score":
                return _score(label, view, _record(payload))
            case "event":
                return self._note(event_line(label, _record(payload)))
            case "notice":
                return self._note(f"{label} {_time(_record(payload))} new lasting state")
        return None

    def _note(self, line: str) -> str:
        self.events.append(line)
        return line


def clean(text: str) -> str:
    """Return text that a terminal shows as it is: no escape sequences from strangers, not longer than a line."""
    return "".join(char if char.isprintable() else "?" for char in text[:80])


def event_line(label: str, event: Mapping[str, Any]) -> str:
    """Return one line about an event message."""
    bands = ", ".join(
        f"{float(band['hz'][0]):.0f}-{float(band['hz'][1]):.0f} Hz {100 * float(band['share']):.0f} %"
        for band in event["bands"][:3]
    )
    confirmed = {"True": " confirmed", "False": " not confirmed"}.get(str(event.get("confirmed")), "")
    return (
        f"{label} {_time(event)} event {clean(str(event['event_type']))}{confirmed}"
        f" peak {float(event['peak_score']):.2f} p {float(event['p_value']):.1e}"
        f" {float(event['duration_s']):.1f} s" + (f" [{bands}]" if bands else "")
    )


def _score(label: str, view: SourceView, score: Mapping[str, Any]) -> str:
    view.scores.append(float(score["score"]))
    view.threshold, view.p_value = float(score["threshold"]), float(score["p_value"])
    flags = "".join(f" {flag}" for flag in ("anomaly", "warmup", "late") if score.get(flag) is True)
    flags += "" if score.get("valid", True) else f" invalid ({clean(str(score.get('fault')))})"
    return f"{label} {_time(score)} score {view.scores[-1]:.3f} p {view.p_value:.1e}{flags}"


def _time(record: Mapping[str, Any]) -> str:
    return clean(str(record["ts"]))[:19] + "Z"


def _record(payload: bytes) -> dict[str, Any]:
    found = json.loads(payload)
    if not isinstance(found, dict):
        raise TypeError("not a JSON object")
    return found
