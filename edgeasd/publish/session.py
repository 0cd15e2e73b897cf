"""What is said over one connection: the window in flight, its acknowledgements, and what they decide."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from edgeasd.publish.backoff import Backoff, Complaints
from edgeasd.publish.connection import Bell, Connection, Loss
from edgeasd.publish.message import Kind, Parcel
from edgeasd.publish.outbox import Outbox
from edgeasd.publish.stock import Stock

_FIRST_ERROR = 0x80
_QUOTA_EXCEEDED = 0x97
_PASSING_ERRORS = (0x80, 0x83, 0x91)
"""Unspecified, implementation-specific, packet id in use: the broker's trouble, not the message's."""
_MAX_STRIKES = 3
_GUILTY_WITHIN_S = 5.0
"""A connection closed so soon after a message was sent alone may have been closed because of it."""
_TICK_S = 1.0


@dataclass(slots=True)
class Suspicion:
    """Finds the message that makes a broker close the connection; outlives the connections it breaks.

    All that was in flight when a broker closed the connection is suspect. While there are suspects one message at a
    time is sent, so that the next time it is known which one it was; the third time it goes to quarantine.
    """

    suspects: set[str] = field(default_factory=set)
    strikes: Counter[str] = field(default_factory=Counter)

    def clear(self, parcel: Parcel) -> None:
        """Take note that the broker took a parcel."""
        self.suspects.discard(parcel.key)
        self.strikes.pop(parcel.key, None)

    def strike(self, parcel: Parcel) -> bool:
        """Hold a failure against a parcel; return whether it was the last one allowed."""
        self.strikes[parcel.key] += 1
        return self.strikes[parcel.key] >= _MAX_STRIKES


@dataclass(slots=True)
class Desk:
    """What all connections of one publisher share."""

    stock: Stock
    outbox: Outbox
    complaints: Complaints
    pause: Backoff
    ack_timeout_s: float
    suspicion: Suspicion = field(default_factory=Suspicion)
    published: int = 0
    stalls: int = 0


@dataclass(frozen=True, slots=True)
class _Sent:
    parcel: Parcel
    at_s: float


class Session:
    """Feeds one accepted connection from the stock; used by the thread that owns the connection.

    At most `max_in_flight` messages are unacknowledged, fewer where the broker says so. Only an acknowledgement below
    0x80 removes a message for good; a refused one is quarantined, unless the refusal is for lack of quota.
    """

    def __init__(
        self, connection: Connection, *, desk: Desk, monotonic_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._connection = connection
        self._desk = desk
        self._monotonic_s = monotonic_s
        self._in_flight: dict[int, _Sent] = {}
        self._progress_s = monotonic_s()
        self._paused_until_s = 0.0
        self._any_acknowledged = False
        self.productive = False
        """True once the broker took a message that is not mere state, or a message is suspected of the loss alone."""

    @property
    def in_flight(self) -> int:
        """Return how many messages are unacknowledged."""
        return len(self._in_flight)

    def turn(self, bell: Bell, *, backlog: bool = True, within_s: float = _TICK_S) -> bool:
        """Send what fits, wait for news, act on it; return whether there was anything to do."""
        sent = self._fill(backlog=backlog)
        busy = bool(sent or self._in_flight)
        pause_s = self._paused_until_s - self._monotonic_s()
        tick_s = min(pause_s, within_s) if pause_s > 0.0 else within_s
        self._connection.step(bell, timeout_s=tick_s if busy or backlog else 0.0)
        self._settle()
        self._watch()
        return busy

    def end(self, loss: Loss) -> list[Parcel]:
        """Return what is still unacknowledged, in the order of sending, having found whom to blame for the loss."""
        sent = list(self._in_flight.values())
        self._in_flight.clear()
        if not loss.by_peer or not self._any_acknowledged:
            return [each.parcel for each in sent]
        alone = len(sent) == 1 and self._monotonic_s() - sent[0].at_s < _GUILTY_WITHIN_S
        self.productive = self.productive or alone  # the next connection gets further, so that it need not wait
        if alone and self._desk.suspicion.strike(sent[0].parcel):
            self._quarantine(sent[0].parcel, f"broke the connection {_MAX_STRIKES} times: {loss.reason}")
            return []
        self._desk.suspicion.suspects.update(each.parcel.key for each in sent)
        return [each.parcel for each in sent]

    def _fill(self, *, backlog: bool) -> int:
        n_sent = 0
        self._say_passing()
        if self._monotonic_s() < self._paused_until_s:
            return n_sent
        room = 1 if self._desk.suspicion.suspects else self._connection.max_in_flight
        while len(self._in_flight) < room and self._connection.loss is None:
            parcel = self._desk.stock.next(backlog=backlog)
            if parcel is None:
                self._desk.suspicion.suspects.intersection_update(s.parcel.key for s in self._in_flight.values())
                break
            n_sent += self._send(parcel)
        return n_sent

    def _say_passing(self) -> None:
        """Send what is only worth something now, unless it would queue behind a full socket or break the connection."""
        for parcel in self._desk.stock.passing():
            if self._connection.clogged or not self._connection.fits(parcel):
                self._desk.stock.discard(parcel)
            else:
                self._connection.send(parcel)
                self._desk.published += 1

    def _send(self, parcel: Parcel) -> int:
        if not self._connection.fits(parcel):
            limit = self._connection.max_packet_bytes
            self._quarantine(parcel, f"{len(parcel.body)} bytes, the broker takes packets of {limit}")
            return 0
        now_s = self._monotonic_s()
        if not self._in_flight:
            self._progress_s = now_s
        self._in_flight[self._connection.send(parcel)] = _Sent(parcel, now_s)
        return 1

    def _settle(self) -> None:
        done: list[Parcel] = []
        for mid, code in self._connection.take_acknowledged():
            sent = self._in_flight.pop(mid, None)
            if sent is None:
                continue
            self._progress_s = self._monotonic_s()
            self._any_acknowledged = True
            self._desk.stalls = 0
            if code < _FIRST_ERROR:
                done.append(sent.parcel)
            else:
                self._refused(sent.parcel, code)
        self._accepted(done)

    def _accepted(self, done: Sequence[Parcel]) -> None:
        for parcel in done:
            self._desk.suspicion.clear(parcel)
            self.productive = self.productive or parcel.kind is not Kind.STATE
        stored = [parcel for parcel in done if parcel.row]
        if stored:
            self._desk.outbox.remove(stored)
        if done:  # counted when it is off the disk: whoever sees the count sees the outbox without it
            self._desk.published += len(done)
            self._desk.pause.reset()

    def _refused(self, parcel: Parcel, code: int) -> None:
        passing = code in _PASSING_ERRORS and not self._desk.suspicion.strike(parcel)
        if code == _QUOTA_EXCEEDED or passing:
            delay_s = self._desk.pause.next_s()
            self._desk.complaints.warn(f"the broker takes no more for now, code 0x{code:02x}; pausing")
            self._paused_until_s = self._monotonic_s() + delay_s
            self._desk.stock.put_back([parcel])
            return
        self._desk.suspicion.clear(parcel)
        self._quarantine(parcel, f"refused by the broker, code 0x{code:02x}")

    def _quarantine(self, parcel: Parcel, reason: str) -> None:
        self._desk.suspicion.clear(parcel)
        if parcel.kind is Kind.STATE:
            self._desk.stock.forget_state(parcel.topic)
        self._desk.outbox.quarantine(parcel, reason=reason)
        self._desk.complaints.warn(f"message quarantined: {reason} topic={parcel.topic}")

    def _watch(self) -> None:
        """Give up a connection that takes messages and says nothing, whatever its socket looks like."""
        if self._in_flight and self._monotonic_s() - self._progress_s > self._desk.ack_timeout_s:
            self._desk.stalls += 1
            self._connection.give_up(f"no acknowledgement for {self._desk.ack_timeout_s:.0f} s")
