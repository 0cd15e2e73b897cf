"""From scores and events to bytes: the wire and the outbox on a real disk."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from edgeasd.publish.identity import passing_identity
from edgeasd.publish.intake import Intake
from edgeasd.publish.message import Kind, Parcel
from edgeasd.publish.outbox import Outbox
from edgeasd.publish.wire import Wire
from edgeasd.records import Confirmation, Level, Opinion, Score

RATE_HZ = 16_000
_OPINION = Opinion(2.5, 0.003)
SCORE = Score(
    source="mic0",
    first_frame=8_000,
    n_frames=16_000,
    captured_ns=0,
    score=2.5,
    p_value=0.003,
    threshold=4.0,
    model=_OPINION,
    prompt=_OPINION,
    confirmed=Confirmation(0, 16_000, _OPINION),
    level=Level(-30.0, -10.0, 0.0, 0.0),
    fault=None,
    warmup=False,
)


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    """Return an outbox on disk."""
    with Outbox(tmp_path / "state") as opened:
        yield opened


def _parcels(kind: Kind, numbers: Iterator[int], n_parcels: int) -> list[Parcel]:
    body = b"{" + b" " * 700 + b"}"
    chosen = [next(numbers) for _ in range(n_parcels)]
    return [Parcel(f"edgeasd/w/mic0/{kind}", kind, body, id=f"u:1:{n}", number=n) for n in chosen]


def test_score_to_bytes(benchmark: BenchmarkFixture) -> None:
    """Measure a score from record to numbered, encoded parcel."""
    wire, intake = Wire("w097", model="m@1", backend="onnx"), Intake(passing_identity())

    def turn() -> list[Parcel]:
        message = wire.score(SCORE, utc_ns=lambda frame: 62_500 * frame, rate_hz=RATE_HZ, infer_ms=0.5)
        return intake.accept(message)

    (parcel,) = benchmark(turn)
    assert len(parcel.body) > 500


@pytest.mark.parametrize(("kind", "n_parcels"), [(Kind.EVENT, 1), (Kind.SCORE, 64)], ids=["event", "64 scores"])
def test_outbox_put_take_remove(benchmark: BenchmarkFixture, outbox: Outbox, kind: Kind, n_parcels: int) -> None:
    """Measure messages put, read back and removed: an event that survives a power cut, and scores in a batch."""
    numbers = count(1)
    lane, durable = ("event", True) if kind is Kind.EVENT else ("score", False)

    def turn() -> int:
        outbox.put(_parcels(kind, numbers, n_parcels), durable=durable)
        rows = outbox.rows("event" if lane == "event" else "score", after_row=0, limit=n_parcels)
        assert rows is not None
        outbox.remove(rows)
        return len(rows)

    assert benchmark(turn) == n_parcels
    assert outbox.depth() == 0
