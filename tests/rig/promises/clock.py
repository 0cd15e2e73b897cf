"""P19: clocks that jump."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from deploy.demo.soundscape import RATE_HZ
from tests.rig.broker import Received
from tests.rig.promise import Measured, Promise
from tests.rig.stage import hall, needs, staged

_NS = 1_000_000_000


def _faketime() -> Path | None:
    return next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))), None)


def _needs_faketime() -> str | None:
    return needs() or (None if _faketime() else "needs the package libfaketime")


def _offset_s(moment: datetime) -> float:
    return moment.timestamp() - time.time()


def keep_time(scratch: Path, *, rounds: int, dwell_s: float) -> Measured:
    """Step the wall clock of a running node: an hour on, an hour back, to 1970, over the end of summer time."""
    offsets_s = [0.0]
    steps = (
        3600.0,
        -3600.0,
        _offset_s(datetime(1970, 1, 1, 0, 20, tzinfo=UTC)),
        _offset_s(datetime(2026, 10, 25, 0, 59, 57, tzinfo=UTC)),
        0.0,
    )
    offset_file = scratch / "offset"
    offset_file.write_text("+0\n")
    environment = {
        "LD_PRELOAD": str(_faketime()),
        "FAKETIME_TIMESTAMP_FILE": str(offset_file),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
        "TZ": "Europe/Berlin",
    }
    with staged(scratch, environment=environment) as stage:
        # To the end and beyond: a null sink whose player ends moves by a quarter of a second.
        n_minutes = 2 + int(len(steps) * rounds * (dwell_s + 2.0) / 60.0)
        stage.microphone.play(np.tile(hall(60.0), n_minutes), RATE_HZ)
        stage.wait("mic0/score")
        time.sleep(dwell_s)
        for offset_s in steps * rounds:
            offsets_s.append(offset_s)
            replacement = scratch / "offset.new"
            replacement.write_text(f"{offset_s:+.3f}\n")
            replacement.replace(offset_file)
            stepped_ns = time.monotonic_ns()
            time.sleep(dwell_s)
            stage.wait("mic0/score", since_ns=stepped_ns + _NS // 5)
        code, _ = stage.node.stop()
        scores = stage.heard("mic0/score")
        numbered = [each for each in stage.subscriber.messages() if re.search(r"/(score|event|notice)$", each.topic)]
    return _timed(scores, numbered, offsets_s, code)


def _timed(scores: Sequence[Received], numbered: Sequence[Received], offsets_s: Sequence[float], code: int) -> Measured:
    payloads = [each.json for each in scores]
    starts = [payload["sample0"] for payload in payloads]
    uneven = sum(after - before != RATE_HZ // 2 for before, after in pairwise(starts))
    odd = sum(payload["n"] != RATE_HZ for payload in payloads)
    errors_ms = _stamp_errors_ms(payloads, offsets_s)
    reached = {min(offsets_s, key=lambda offset_s: abs(error - offset_s)) for error in _places_s(payloads)}
    ids = [each.json["id"] for each in numbered]
    seqs = [payload["seq"] for payload in payloads]
    repeated = len(ids) - len(set(ids)) + sum(after != before + 1 for before, after in pairwise(seqs))
    return Measured(
        f"{len(offsets_s) - 1} steps (an hour on and back, 1970, end of summer time): {len(payloads)} windows, {odd} "
        f"not of {RATE_HZ} samples, {uneven} not one hop after the last; ts off by {max(errors_ms):.1f} ms at most; "
        f"{repeated} ids or seqs repeated or out of order",
        kept=not (odd or uneven or repeated) and max(errors_ms) <= 50.0 and reached == set(offsets_s) and code == 0,
    )


def _places_s(payloads: Sequence[dict[str, Any]]) -> list[float]:
    """Return by how much each `ts` is off the first one and the count of frames since, s."""
    first = payloads[0]
    return [
        (each["ts_ns"] - first["ts_ns"]) / _NS - (each["sample0"] - first["sample0"]) / RATE_HZ for each in payloads
    ]


def _stamp_errors_ms(payloads: Sequence[dict[str, Any]], offsets_s: Sequence[float]) -> list[float]:
    """Return how far each `ts` is from where some clock that was in force puts it."""
    return [1e3 * min(abs(place_s - offset_s) for offset_s in offsets_s) for place_s in _places_s(payloads)]


PROMISES = (
    Promise(
        "P19",
        "time stamps outlive steps of the clock",
        "windows of exactly 1 s of samples; ts off <= 50 ms; no seq or id twice",
        keep_time,
        short={"rounds": 1, "dwell_s": 0.5},
        long={"rounds": 10, "dwell_s": 5},
        needs=_needs_faketime,
    ),
)
