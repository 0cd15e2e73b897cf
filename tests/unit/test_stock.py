"""The stock before a real outbox: what is sent first, what is given up, what comes again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeasd.publish.message import Kind, Parcel
from edgeasd.publish.outbox import Outbox
from edgeasd.publish.stock import Stock


def parcel(number: int, kind: Kind = Kind.SCORE, *, n_bytes: int = 0) -> Parcel:
    body = json.dumps({"n": number, "late": False, "pad": "x" * n_bytes}).encode()
    return Parcel(f"edgeasd/w/mic0/{kind}", kind, body, id=f"u:1:{number}", number=number)


def scores(*numbers: int) -> list[Parcel]:
    return [parcel(number) for number in numbers]


def events(*numbers: int) -> list[Parcel]:
    return [parcel(number, Kind.EVENT) for number in numbers]


def ids(parcels: list[Parcel] | None) -> list[str]:
    assert parcels is not None
    return [each.id for each in parcels]


def held(outbox: Outbox) -> list[str]:
    return [
        message_id for lane in ("event", "score") for message_id in ids(outbox.rows(lane, after_row=0, limit=10_000))
    ]


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    with Outbox(tmp_path / "state") as opened:
        yield opened


def drain(stock: Stock, *, backlog: bool = True) -> list[Parcel]:
    taken = []
    while (each := stock.next(backlog=backlog)) is not None:
        taken.append(each)
    return taken


def state(topic: str, word: str) -> Parcel:
    return Parcel(topic, Kind.STATE, word.encode(), retain=True)


def test_states_go_before_events_and_events_before_any_score(outbox: Outbox) -> None:
    stock = Stock(outbox, max_waiting=100)
    outbox.put(scores(1, 2), durable=False)
    for each in (*scores(3), *events(4), *scores(5), state("s", "ON")):
        stock.offer(each, connected=True)
    assert [each.id or each.topic for each in drain(stock)] == ["s", "u:1:4", "u:1:1", "u:1:2", "u:1:3", "u:1:5"]


def test_event_lies_on_disk_when_offer_returns(outbox: Outbox) -> None:
    Stock(outbox, max_waiting=100).offer(parcel(1, Kind.EVENT), connected=True)
    assert held(outbox) == ["u:1:1"]


def test_only_the_latest_state_of_a_topic_is_said_and_said_again_on_every_connection(outbox: Outbox) -> None:
    stock = Stock(outbox, max_waiting=100)
    for topic, word in (("a", "OFF"), ("b", "ON"), ("a", "ON")):
        stock.offer(state(topic, word), connected=False)
    assert [(each.topic, each.body) for each in drain(stock)] == [("a", b"ON"), ("b", b"ON")]
    assert drain(stock) == []
    stock.connected()
    assert [each.topic for each in drain(stock)] == ["a", "b"]


def test_memory_bound_costs_the_oldest_scores_and_leaves_a_gap_record(outbox: Outbox) -> None:
    stock = Stock(outbox, max_waiting=3, monotonic_s=lambda: 0.0)
    for each in scores(1, 2, 3, 4, 5):
        stock.offer(each, connected=True)
    assert stock.waiting == 3
    stock.spill(force=True)
    assert held(outbox) == ["u:1:3", "u:1:4", "u:1:5"]
    gap = outbox.gap()
    assert gap is not None
    assert (gap.from_id, gap.to_id, gap.count, outbox.dropped) == ("u:1:1", "u:1:2", 2, 2)


def test_scores_are_spilled_in_batches(outbox: Outbox) -> None:
    now_s = 0.0
    stock = Stock(outbox, max_waiting=1000, monotonic_s=lambda: now_s)
    for each in scores(*range(1, 11)):
        stock.offer(each, connected=False)
        stock.spill()
    assert outbox.depth() == 0
    now_s = 5.0
    stock.spill()
    assert outbox.depth() == 10
    for each in scores(*range(11, 76)):
        stock.offer(each, connected=False)
        stock.spill()
    assert outbox.depth() == 74


def test_scores_that_a_slow_broker_does_not_take_are_spilled_after_five_seconds(outbox: Outbox) -> None:
    clock, crowded = [0.0], []
    stock = Stock(outbox, max_waiting=1000, monotonic_s=lambda: clock[0])
    for number, clock[0] in enumerate((0.0, 3.0, 6.0)):  # memory is empty in between: nothing has waited
        stock.offer(parcel(number), connected=True)
        crowded.append(stock.crowded)
        drain(stock)
    for number in (11, 12, 13):
        stock.offer(parcel(number), connected=True)
    assert stock.next() == parcel(11)
    clock[0] = 11.5
    crowded.append(stock.crowded)
    stock.spill()
    crowded.append(stock.crowded)
    assert held(outbox) == ["u:1:12", "u:1:13"]
    assert crowded == [False, False, False, True, False]


def test_disk_that_refuses_is_left_alone_for_a_moment(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: list[int] = []
    clock = [0.0]
    monkeypatch.setattr(outbox, "put", lambda parcels, **_: attempts.append(len(parcels)))
    stock = Stock(outbox, max_waiting=1000, monotonic_s=lambda: clock[0])
    for each in scores(*range(1, 71)):
        stock.offer(each, connected=False)
        stock.spill()
    clock[0] = 1.1
    stock.spill()
    assert attempts == [64, 70]
    assert ids(drain(stock)) == ids(scores(*range(1, 71)))


def test_what_is_only_worth_sending_at_once_is_discarded_and_counted_without_a_connection(outbox: Outbox) -> None:
    stock = Stock(outbox, max_waiting=10)
    level = Parcel("l", Kind.LEVEL, b"{}", qos=0)
    stock.offer(level, connected=False)
    stock.offer(level, connected=True)
    assert stock.passing() == [level]
    assert stock.passing() == []
    assert stock.discarded == 1


def test_what_a_lost_connection_left_comes_again_first_and_marked_late(outbox: Outbox) -> None:
    stock = Stock(outbox, max_waiting=100)
    for each in (*events(1), *scores(2, 3)):
        stock.offer(each, connected=True)
    first = drain(stock)
    assert [json.loads(each.body)["late"] for each in first] == [False, False, False]
    stock.disconnected(first)
    stock.offer(parcel(4), connected=False)
    stock.connected()
    stock.offer(parcel(5), connected=True)
    stock.offer(parcel(6, Kind.EVENT), connected=True)
    again = [(each.id, json.loads(each.body)["late"]) for each in drain(stock)]
    assert again == [
        ("u:1:1", True),
        ("u:1:6", False),
        ("u:1:2", True),
        ("u:1:3", True),
        ("u:1:4", True),
        ("u:1:5", False),
    ]


def test_without_backlog_newer_scores_do_not_overtake_older_ones(outbox: Outbox) -> None:
    outbox.put(scores(1), durable=False)
    stock = Stock(outbox, max_waiting=100)
    stock.offer(parcel(2), connected=True)
    assert drain(stock, backlog=False) == []
    assert ids(drain(stock)) == ["u:1:1", "u:1:2"]
