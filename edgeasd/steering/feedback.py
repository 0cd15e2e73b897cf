"""What people say of events: the last events of the node, and the file in which their judgement is kept."""

from __future__ import annotations

import errno
import json
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgeasd.publish.message import Feedback
from edgeasd.publish.payload import utc_text

FEEDBACK_FILE = "feedback.jsonl"
MAX_FEEDBACK_BYTES = 4 << 20
_MAX_EVENTS = 256
_KEPT_KEYS = ("start", "end", "duration_s", "sample0", "n", "rate", "peak_score", "bands", "model")


class EventHistory:
    """Keeps the latest message of each of the last 256 events; the oldest is forgotten first."""

    def __init__(self) -> None:
        self._events: OrderedDict[tuple[str, str], Mapping[str, object]] = OrderedDict()

    def note(self, source: str, event_id: str, payload: Mapping[str, object]) -> None:
        """Take note of what was published of an event."""
        self._events[source, event_id] = payload
        self._events.move_to_end((source, event_id))
        if len(self._events) > _MAX_EVENTS:
            self._events.popitem(last=False)

    def find(self, source: str, event_id: str | None) -> Mapping[str, object] | None:
        """Return what was last published of an event, of the source's latest one without an id; None if unknown."""
        if event_id is not None:
            return self._events.get((source, event_id))
        return next((said for (of, _), said in reversed(self._events.items()) if of == source), None)


def feedback_line(said: Feedback, event: Mapping[str, object] | None, *, utc_ns: int) -> bytes:
    """Return one line of the file: who said what when, and of which sound, as far as the node still knows."""
    known = {key: event[key] for key in _KEPT_KEYS if key in event} if event is not None else {}
    record = {
        "v": 1,
        "ts": utc_text(utc_ns),
        "src": said.source,
        "event_id": said.event_id if event is None else event["event_id"],
        "verdict": said.verdict,
        "note": said.note,
        "known": event is not None,
        **known,
    }
    return json.dumps(record, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def append_feedback(directory: Path, lines: Sequence[bytes]) -> None:
    """Add lines to the file, all or none, on disk when this returns; OSError when it is full or cannot be written.

    Bound: 4 MiB. Policy: what is there stays, for it was said of sound that nobody hears again.
    """
    data = b"".join(lines)
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(directory / FEEDBACK_FILE, flags, 0o600)
    try:
        n_before = os.fstat(descriptor).st_size
        if n_before and os.pread(descriptor, 1, n_before - 1) != b"\n":
            data = b"\n" + data  # a power cut tore the last line: it must not take ours with it
        if n_before + len(data) > MAX_FEEDBACK_BYTES:
            raise OSError(errno.EFBIG, f"{FEEDBACK_FILE} holds {MAX_FEEDBACK_BYTES >> 20} MiB: move it away")
        if os.write(descriptor, data) != len(data):
            os.ftruncate(descriptor, n_before)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
