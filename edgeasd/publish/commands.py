"""Commands from a broker: what may be written to a command topic, and the box in which they wait.

Whoever may write to the broker's command topics speaks here, so that nothing is taken on trust: known sources and
verbs only, small payloads, strict forms, a bounded box. A refusal says why in fixed words: what a stranger wrote is
never repeated in a log line.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from typing import Any

from edgeasd.publish.backoff import Complaints
from edgeasd.publish.message import Command, Feedback, SetEnabled, SetThreshold, Verb, Verdict
from edgeasd.publish.wire import Wire

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 1024
MAX_NOTE_CHARS = 200
THRESHOLD_RANGE = (1.0, 20.0)
"""-log10 p: from every tenth window to beyond anything that can be told from never."""
_MAX_WAITING = 32
_SHUT_S = 300.0

_DECIMAL = re.compile(r"[0-9]{1,3}(\.[0-9]{1,18})?", re.ASCII)
_ULID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}", re.ASCII)
_FEEDBACK_KEYS = frozenset({"event_id", "verdict", "note"})


class RefusedCommandError(Exception):
    """Raised when a command is none, or may not be; its text is one of a few fixed ones."""


def parse_command(source: str, verb: Verb, body: bytes) -> Command:
    """Return what a payload asks for; raise RefusedCommandError for whatever is no command."""
    if len(body) > MAX_BODY_BYTES:
        raise RefusedCommandError(f"longer than {MAX_BODY_BYTES} bytes")
    try:
        text = body.decode().strip()
    except UnicodeDecodeError:
        raise RefusedCommandError("not UTF-8") from None
    if verb is Verb.THRESHOLD:
        return SetThreshold(source, _score(text))
    if verb is Verb.ENABLED:
        if text not in ("ON", "OFF"):
            raise RefusedCommandError("neither ON nor OFF")
        return SetEnabled(source, text == "ON")
    return _feedback(source, text)


def is_threshold(value: object) -> bool:
    """Return whether a source may have this threshold of its own."""
    low, high = THRESHOLD_RANGE
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _score(text: str) -> float | None:
    if text == "auto":
        return None
    low, high = THRESHOLD_RANGE
    if not _DECIMAL.fullmatch(text) or not is_threshold(float(text)):
        raise RefusedCommandError(f"neither auto nor a number from {low:g} to {high:g}")
    return float(text)


def _feedback(source: str, text: str) -> Feedback:
    if text in list(Verdict):
        return Feedback(source, Verdict(text))
    try:
        said: Any = json.loads(text)
    except (ValueError, RecursionError):
        raise RefusedCommandError("neither a verdict nor JSON") from None
    if not isinstance(said, dict) or "verdict" not in said or not said.keys() <= _FEEDBACK_KEYS:
        raise RefusedCommandError("feedback is verdict, event_id and note, and nothing else")
    verdict, event_id, note = said["verdict"], said.get("event_id"), said.get("note", "")
    if verdict not in list(Verdict):
        raise RefusedCommandError("verdict is neither false_alarm nor real")
    if event_id is not None and not (isinstance(event_id, str) and _ULID.fullmatch(event_id)):
        raise RefusedCommandError("event_id is no ULID")
    if not isinstance(note, str) or len(note) > MAX_NOTE_CHARS:
        raise RefusedCommandError(f"note is no text of at most {MAX_NOTE_CHARS} characters")
    return Feedback(source, Verdict(verdict), event_id, note)


class CommandBox:
    """Holds commands between the thread that owns the connection and the one that carries them out.

    Bound: 32 that wait. Policy: the oldest goes first, so that of a flood the last word counts. Counters: `taken`,
    `refused`; what goes is refused too. Whoever empties the box says how often that is.
    """

    def __init__(
        self, wire: Wire, *, sources: Collection[str], monotonic_s: Callable[[], float] = time.monotonic
    ) -> None:
        self.filters = wire.command_filters
        self._wire = wire
        self._sources = frozenset(sources)
        self._monotonic_s = monotonic_s
        self._shut_until_s = monotonic_s()
        self._lock = threading.Lock()
        self._waiting: deque[Command] = deque()
        self._complaints = Complaints(log)
        self.taken = 0
        self.refused = 0

    @property
    def open(self) -> bool:
        """Return whether commands are wanted now."""
        return self._monotonic_s() >= self._shut_until_s

    @property
    def waiting(self) -> int:
        """Return how many commands wait."""
        return len(self._waiting)

    def swamped(self) -> None:
        """Take note of a packet so large that it cost the connection: subscribing again at once would bring it back."""
        self._shut_until_s = self._monotonic_s() + _SHUT_S
        self.refuse(f"a packet far too large for one; the node listens again in {_SHUT_S:.0f} s")

    def denied(self) -> None:
        """Take note that the broker does not let us subscribe."""
        self._complaints.warn("the broker does not let this node subscribe to its command topics: none will come")

    def put(self, topic: str, body: bytes, *, retained: bool) -> None:
        """Take in what came from the broker, whatever it is; never raises, never waits."""
        try:
            command = self._read(topic, body, retained=retained)
        except RefusedCommandError as exc:
            self.refuse(str(exc))
            return
        with self._lock:
            crowded = self.waiting >= _MAX_WAITING
            if crowded:
                self._waiting.popleft()
            self._waiting.append(command)
        if crowded:
            self.refuse("too many at once, the last ones count")

    def take(self) -> list[Command]:
        """Return what waits, in order, and empty the box."""
        with self._lock:
            taken = list(self._waiting)
            self._waiting.clear()
        self.taken += len(taken)
        return taken

    def refuse(self, reason: str) -> None:
        """Count a command that is not carried out, and say why, now and then."""
        with self._lock:
            self.refused += 1
            self._complaints.warn(f"command refused: {reason}")

    def _read(self, topic: str, body: bytes, *, retained: bool) -> Command:
        if retained:
            raise RefusedCommandError("retained, so that it would be obeyed again on every connect")
        addressed = self._wire.addressed(topic)
        if addressed is None:
            raise RefusedCommandError("unknown verb")
        source, verb = addressed
        if source not in self._sources:
            raise RefusedCommandError("unknown source")
        return parse_command(source, verb, body)
