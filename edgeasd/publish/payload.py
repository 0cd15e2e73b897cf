"""What payloads of the wire are made of: times, numbers, the parts that recur, and their bytes."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping

from edgeasd.clock import NS_PER_S
from edgeasd.publish.message import AccountLike, Override, PublisherStats
from edgeasd.records import Confirmation, Opinion

UtcOf = Callable[[int], int]
"""Frame index of a source -> UTC nanoseconds, as `FrameClock.utc_ns`."""

_JSON = json.JSONEncoder(allow_nan=False, separators=(",", ":"))


def utc_text(utc_ns: int) -> str:
    """Return RFC 3339 in UTC with microseconds."""
    seconds, ns = divmod(utc_ns, NS_PER_S)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{ns // 1000:06d}Z"


def encode(payload: Mapping[str, object] | str) -> bytes:
    """Return the bytes of a payload; a number that JSON cannot say is our own mistake."""
    if isinstance(payload, str):
        return payload.encode()
    try:
        return _JSON.encode(payload).encode()
    except ValueError as exc:
        raise AssertionError(f"a payload holds a number that is not finite: {payload!r}") from exc


def stamped(payload: Mapping[str, object], *, message_id: str, seq: int) -> dict[str, object]:
    """Return a numbered payload with its identity filled in."""
    assert payload.keys() >= {"id", "seq"}, f"not a numbered payload: {payload!r}"
    return {**payload, "seq": seq, "id": message_id}


def marked_late(body: bytes) -> bytes:
    """Return an encoded payload that says it was accepted before the present connection was made."""
    payload = json.loads(body)
    if "late" not in payload:
        return body
    return encode({**payload, "late": True})


def score_rank(payload: Mapping[str, object]) -> tuple[int, bool, float]:
    """Return (UTC second, valid, score) of a score payload: what thinning to one a second goes by."""
    ts_ns, score = payload["ts_ns"], payload["score"]
    assert isinstance(ts_ns, int), f"not a score payload: {payload!r}"
    assert isinstance(score, float), f"not a score payload: {payload!r}"
    return ts_ns // NS_PER_S, bool(payload["valid"]), score


def number(value: float) -> float:
    """Return a finite float with the seven digits that a float32 is worth."""
    if not math.isfinite(value):
        raise AssertionError(f"a number that is not finite was to be published: {value!r}")
    return float(f"{value:.7g}")


def opinion_part(opinion: Opinion | None) -> dict[str, float] | None:
    """Return one judge's opinion, null where there is none."""
    if opinion is None:
        return None
    return {"score": number(opinion.score), "p_value": number(opinion.p_value)}


def confirmed_part(confirmation: Confirmation | None, utc_ns: UtcOf) -> dict[str, object] | None:
    """Return the second look at an older window, null while there is none."""
    if confirmation is None:
        return None
    return {
        "sample0": confirmation.first_frame,
        "n": confirmation.n_frames,
        "ts": utc_text(utc_ns(confirmation.first_frame)),
        **(opinion_part(confirmation.opinion) or {}),
    }


def override_part(override: Override) -> dict[str, object]:
    """Return what was set by command for one source."""
    threshold = None if override.threshold is None else number(override.threshold)
    return {"threshold": threshold, "enabled": override.enabled}


def publisher_part(stats: PublisherStats) -> dict[str, object]:
    """Return how publishing fares."""
    return {
        "connected": stats.connected,
        "protocol": stats.protocol,
        "reconnects": stats.reconnects,
        "published": stats.published,
        "in_flight": stats.in_flight,
        "waiting": stats.waiting,
        "dropped": stats.dropped,
        "discarded": stats.discarded,
        "quarantined": stats.quarantined,
        "stalls": stats.stalls,
        "commands": stats.commands,
        "commands_refused": stats.commands_refused,
        "durable": stats.durable,
    }


def account_part(account: AccountLike) -> dict[str, object]:
    """Return what became of the sound of one source."""
    return {
        "scored_s": round(account.scored_s, 3),
        "dropped_s": {reason: round(seconds, 3) for reason, seconds in account.dropped_s.items()},
        "absent_s": {reason: round(seconds, 3) for reason, seconds in account.absent_s.items()},
        "unexplained_s": round(account.unexplained_s, 3),
    }
