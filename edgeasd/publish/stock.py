"""What waits to be sent: the outbox and a little memory, as one supply in the order of sending."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

from edgeasd.publish.lanes import LANES, Lane, lane_of
from edgeasd.publish.message import Kind, Parcel
from edgeasd.publish.outbox import Outbox
from edgeasd.publish.payload import marked_late

_AHEAD_ROWS = 32
_SPILL_EVERY_S = 5.0
_SPILL_AT = 64
_REFUSED_S = 1.0
"""How long a disk that took nothing is left alone."""


class Stock:
    """Takes parcels from any thread and hands them, most urgent first, to the one thread that sends.

    Order: retained state, events the disk would not take, events from the outbox, scores from the outbox, scores in
    memory. So an alarm never waits behind a backlog of scores, and scores keep their order among themselves, but for
    those in flight on a line that stopped answering: later ones have gone to the outbox meanwhile and come first.

    Bound: `max_waiting` parcels in memory, besides one retained message per topic. Policy: the oldest score goes
    first, then the oldest level or health report, then the oldest event the disk would not take. Counters: `dropped`
    by way of the outbox, and `discarded` for levels and health reports. While the broker is away scores are moved to
    the outbox every five seconds or 64 messages, so that flash is written in batches; likewise after five seconds of
    a broker that is there and takes them too slowly. A kill -9 costs at most five seconds of scores, besides those in
    flight to a broker that does not answer, and no event.
    """

    def __init__(self, outbox: Outbox, *, max_waiting: int, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._outbox = outbox
        self._max_waiting = max_waiting
        self._monotonic_s = monotonic_s
        self._lock = threading.Lock()
        self._moving = threading.Lock()  # scores on their way to the outbox must not be overtaken by later ones
        self._states: dict[str, Parcel] = {}
        self._unsaid: dict[str, None] = {}  # topics whose latest state the broker does not have, in order
        self._events: deque[Parcel] = deque()
        self._scores: deque[Parcel] = deque()
        self._passing: deque[Parcel] = deque()
        self._lost_ids: list[str] = []
        self._last_number = 0
        self._waiting_since_s: float | None = None
        self._not_before_s = monotonic_s()
        self._ahead: dict[Lane, deque[Parcel]] = {lane: deque() for lane in LANES}
        self._cursor: dict[Lane, int] = dict.fromkeys(LANES, 0)
        self._late_row: dict[Lane, int] = {lane: outbox.last_row(lane) for lane in LANES}
        self._late_number = 0
        self.discarded = 0

    @property
    def crowded(self) -> bool:
        """Return whether memory is half full, or long not empty of scores: time to spill, connected or not."""
        return self._monotonic_s() >= self._not_before_s and (self.waiting > self._max_waiting // 2 or self._overdue)

    @property
    def waiting(self) -> int:
        """Return how many parcels wait in memory."""
        return len(self._events) + len(self._scores) + len(self._passing)

    def offer(self, parcel: Parcel, *, connected: bool) -> None:
        """Take a parcel; an event lies on disk when this returns, unless the disk refused it."""
        committed = parcel.kind.committed and self._outbox.put([parcel], durable=True)
        with self._lock:
            self._last_number = max(self._last_number, parcel.number)
            if parcel.kind is Kind.STATE:
                self._states[parcel.topic] = parcel
                self._unsaid[parcel.topic] = None
            elif parcel.kind is Kind.SCORE:
                self._scores.append(parcel)
            elif parcel.kind.committed:
                self._events.extend([] if committed else [parcel])
            elif connected:
                self._passing.append(parcel)
            else:
                self.discarded += 1
            self._keep_bound()
            self._note_waiting()

    def passing(self) -> list[Parcel]:
        """Take what is only worth sending at once."""
        with self._lock:
            taken = list(self._passing)
            self._passing.clear()
        return taken

    def discard(self, parcel: Parcel) -> None:
        """Count a parcel from `passing` that was not worth the sending."""
        assert not parcel.kind.numbered, f"{parcel.kind} is not for throwing away"
        with self._lock:
            self.discarded += 1

    def next(self, *, backlog: bool = True) -> Parcel | None:
        """Take the next parcel to send; without `backlog` a backlog of scores in the outbox stays where it is."""
        with self._lock:
            if self._unsaid:
                topic = next(iter(self._unsaid))
                del self._unsaid[topic]
                return self._states[topic]
            urgent = self._events.popleft() if self._events else None
        parcel = urgent or self._from_outbox("event") or self._next_score(backlog=backlog)
        return parcel if parcel is None or not self._is_late(parcel) else replace(parcel, body=marked_late(parcel.body))

    def put_back(self, parcels: Sequence[Parcel]) -> None:
        """Take parcels back, in the order in which they were handed out, to be sent again before all others."""
        with self._lock:
            for parcel in reversed(parcels):
                if parcel.kind is Kind.STATE:
                    self._unsaid[parcel.topic] = None
                elif parcel.row:
                    self._ahead[lane_of(parcel)].appendleft(parcel)
                else:
                    (self._scores if parcel.kind is Kind.SCORE else self._events).appendleft(parcel)
            self._note_waiting()

    def connected(self) -> None:
        """Take note of a new connection: all states are due again, and what was accepted before it is late."""
        with self._lock:
            self._unsaid = dict.fromkeys(self._states)
            self._late_number = self._last_number
            self._late_row = {lane: self._outbox.last_row(lane) for lane in LANES}

    def disconnected(self, unacknowledged: Sequence[Parcel]) -> None:
        """Take back what a lost connection left unacknowledged, and read the outbox from its beginning again."""
        self.put_back([parcel for parcel in unacknowledged if not parcel.row])
        for lane in LANES:
            self._ahead[lane].clear()
            self._cursor[lane] = 0

    def spill(self, *, force: bool = False) -> None:
        """Move the scores from memory to the outbox, when they are many, or old, or it is forced."""
        with self._moving:
            with self._lock:
                if not (force or self._due):
                    return
                scores, events, lost_ids = list(self._scores), list(self._events), self._lost_ids
                self._scores.clear()
                self._events.clear()
                self._lost_ids = []
                self._note_waiting()
            if events and self._outbox.put(events, durable=True):
                events = []
            if scores and self._outbox.put(scores, durable=False):
                scores = []
            if events or scores:
                self._not_before_s = self._monotonic_s() + _REFUSED_S
                self.put_back([*events, *scores])
            if lost_ids:
                self._outbox.note_dropped(lost_ids)

    def forget_state(self, topic: str) -> None:
        """Stop saying the state of a topic: the broker will not have it."""
        with self._lock:
            self._states.pop(topic, None)
            self._unsaid.pop(topic, None)

    @property
    def _overdue(self) -> bool:
        since_s = self._waiting_since_s
        return since_s is not None and self._monotonic_s() - since_s >= _SPILL_EVERY_S

    @property
    def _due(self) -> bool:
        return (len(self._scores) >= _SPILL_AT or self._overdue) and self._monotonic_s() >= self._not_before_s

    def _note_waiting(self) -> None:
        """Keep the time since when there has always been a score in memory."""
        if not self._scores:
            self._waiting_since_s = None
        elif self._waiting_since_s is None:
            self._waiting_since_s = self._monotonic_s()

    def _keep_bound(self) -> None:
        while self.waiting > self._max_waiting:
            if self._scores:
                self._lost_ids.append(self._scores.popleft().id)
            elif self._passing:
                self._passing.popleft()
                self.discarded += 1
            else:
                self._lost_ids.append(self._events.popleft().id)

    def _next_score(self, *, backlog: bool) -> Parcel | None:
        with self._moving:
            if not backlog and (self._ahead["score"] or self._cursor["score"] < self._outbox.last_row("score")):
                return None  # what is in memory belongs behind what stays in the outbox
            parcel = self._from_outbox("score")
            if parcel is None:
                with self._lock:
                    parcel = self._scores.popleft() if self._scores else None
                    self._note_waiting()
        return parcel

    def _from_outbox(self, lane: Lane) -> Parcel | None:
        ahead = self._ahead[lane]
        last_row = self._outbox.last_row(lane)
        if not ahead and self._cursor[lane] < last_row:
            found = self._outbox.rows(lane, after_row=self._cursor[lane], limit=_AHEAD_ROWS)
            if found is None:
                return None
            ahead.extend(found)
            self._cursor[lane] = ahead[-1].row if ahead else last_row
        return ahead.popleft() if ahead else None

    def _is_late(self, parcel: Parcel) -> bool:
        if parcel.row:
            return parcel.row <= self._late_row[lane_of(parcel)]
        return 0 < parcel.number <= self._late_number
