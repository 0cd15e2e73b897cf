"""Acceptance: what every publisher does to a message before anything else happens to it."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Literal, assert_never

from edgeasd.publish.identity import Identity
from edgeasd.publish.message import Kind, Message, Parcel
from edgeasd.publish.payload import encode, score_rank, stamped

ScoresMode = Literal["window", "second", "off"]
"""Every score, the highest of each second (a valid one before any invalid one), or none."""


class Intake:
    """Thins scores, numbers what is numbered, and encodes.

    `id` counts over all topics of this boot; `seq` counts per topic from 1 without holes, so that a subscriber of one
    topic sees from it alone what was lost. With `second` one score a topic is held back until the next second begins.
    """

    def __init__(self, identity: Identity, *, scores: ScoresMode = "window") -> None:
        self._identity = identity
        self._scores: ScoresMode = scores
        self._lock = threading.Lock()
        self._number = 0
        self._seqs: Counter[str] = Counter()
        self._best: dict[str, Message] = {}

    def accept(self, message: Message) -> list[Parcel]:
        """Return the parcels to be sent now on account of `message`: usually one."""
        with self._lock:
            chosen = self._thinned(message) if message.kind is Kind.SCORE else message
            return [] if chosen is None else [self._parcel(chosen)]

    def flush(self) -> list[Parcel]:
        """Return what thinning still held back."""
        with self._lock:
            held, self._best = list(self._best.values()), {}
            return [self._parcel(message) for message in held]

    def _thinned(self, message: Message) -> Message | None:
        match self._scores:
            case "window":
                return message
            case "off":
                return None
            case "second":
                return self._best_of_second(message)
            case _:
                assert_never(self._scores)

    def _best_of_second(self, message: Message) -> Message | None:
        held = self._best.get(message.topic)
        if held is None:
            self._best[message.topic] = message
            return None
        assert not isinstance(held.payload, str)
        assert not isinstance(message.payload, str)
        held_second, *held_rank = score_rank(held.payload)
        second, *rank = score_rank(message.payload)
        if second == held_second:
            self._best[message.topic] = max((held_rank, held), (rank, message), key=lambda pair: pair[0])[1]
            return None
        self._best[message.topic] = message
        return held

    def _parcel(self, message: Message) -> Parcel:
        if not message.kind.numbered:
            return Parcel(message.topic, message.kind, encode(message.payload), message.qos, message.retain)
        assert not isinstance(message.payload, str)
        number = self._number + 1
        seq = self._seqs[message.topic] + 1
        message_id = self._identity.message_id(number)
        body = encode(stamped(message.payload, message_id=message_id, seq=seq))
        self._number = number  # only now: what could not be encoded leaves no hole
        self._seqs[message.topic] = seq
        return Parcel(message.topic, message.kind, body, message.qos, message.retain, message_id, number)
