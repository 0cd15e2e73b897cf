"""Publishing without a broker: one JSON line a message."""

from __future__ import annotations

import json
import logging
import os
import threading
from typing import TextIO

from edgeasd.errors import InputOutputError
from edgeasd.publish.identity import Identity, passing_identity
from edgeasd.publish.intake import Intake, ScoresMode
from edgeasd.publish.message import Message, Parcel, PublisherStats

log = logging.getLogger(__name__)


class JsonLinesPublisher:
    """Writes `{"topic":..,"payload":..}` lines, each flushed, to a stream that the caller owns.

    There is no queue: a reader that does not read holds the writer up, as in any pipe. A reader that has gone away
    (EPIPE) ends the writing, not the process: later messages are counted as dropped and `connected` turns false.
    """

    def __init__(self, stream: TextIO, *, identity: Identity | None = None, scores: ScoresMode = "window") -> None:
        self.commands = None
        self._stream = stream
        self._intake = Intake(identity or passing_identity(), scores=scores)
        self._lock = threading.Lock()
        self._open = True
        self._closed = False
        self._published = 0
        self._dropped = 0

    def publish(self, message: Message) -> None:
        """Write the message."""
        assert not self._closed, "publish after close"
        self._write(self._intake.accept(message))

    def stats(self) -> PublisherStats:
        """Return how much was written."""
        return PublisherStats(
            connected=self._open, protocol="jsonl", published=self._published, dropped=self._dropped, durable=False
        )

    def stalled_s(self) -> float:
        """Return 0: the caller's thread does the writing."""
        return 0.0

    def close(self, deadline_s: float, *, farewell: bool = True) -> bool:  # noqa: ARG002 - the protocol's
        """Write what thinning held back; the stream stays open."""
        if not self._closed:
            self._closed = True
            self._write(self._intake.flush())
        return True

    def _write(self, parcels: list[Parcel]) -> None:
        with self._lock:
            for parcel in parcels:
                self._write_line(parcel)

    def _write_line(self, parcel: Parcel) -> None:
        if not self._open:
            self._dropped += 1
            return
        text = parcel.body.decode()
        payload = text if text.startswith("{") else json.dumps(text)
        try:
            self._stream.write(f'{{"topic":{json.dumps(parcel.topic)},"payload":{payload}}}\n')
            self._stream.flush()
        except BrokenPipeError:
            self._dropped += 1
            self._give_up()
        except OSError as exc:
            raise InputOutputError(f"messages cannot be written: {exc.strerror}") from exc
        else:
            self._published += 1

    def _give_up(self) -> None:
        self._open = False
        log.info("the reader of the messages has gone away")
        # What the stream still buffers would raise again when the interpreter flushes it at exit.
        null_fd = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null_fd, self._stream.fileno())
        os.close(null_fd)
