"""The wire format, held by golden files.

Keys may be added: then run `python tests/unit/test_wire.py`, look at the difference, and commit it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from edgeasd.clock import FrameClock
from edgeasd.errors import SettingsError
from edgeasd.publish.identity import Identity
from edgeasd.publish.intake import Intake
from edgeasd.publish.message import (
    EngineInfo,
    GapRecord,
    Kind,
    Message,
    ModelInfo,
    NodeHealth,
    NodeInfo,
    Override,
    PublisherStats,
)
from edgeasd.publish.payload import encode, marked_late, utc_text
from edgeasd.publish.wire import Wire
from edgeasd.records import Band, Confirmation, Event, EventType, Fault, Level, Opinion, Score, StateNotice

GOLDEN = Path(__file__).parents[1] / "golden" / "wire"
UTC_NS = 1_795_165_590_500_000_000
RATE_HZ = 16_000
WIRE = Wire("w097", model="fan-ae@3f2a9c", backend="onnx")
SCORE = Score(
    source="mic0",
    first_frame=48_000_000,
    n_frames=16_000,
    captured_ns=0,
    score=12.41,
    p_value=0.0004,
    threshold=9.5,
    model=Opinion(12.41, 0.0004),
    prompt=Opinion(3.2, 0.011),
    confirmed=Confirmation(47_904_000, 16_000, Opinion(4.5, 0.002)),
    level=Level(-31.5, -12.25, 0.0, 0.001),
    fault=None,
    warmup=False,
)
EVENT = Event(
    event_type=EventType.END,
    event_id="01KAG6Y6T40000000000000000",
    source="mic0",
    start_frame=48_000_000,
    end_frame=48_040_000,
    peak_score=14.5,
    peak_frame=48_008_000,
    p_value=0.0001,
    bands=(Band(1800.0, 2300.0, 0.41), Band(300.0, 420.5, 0.2)),
    confirmed=True,
)
STATS = PublisherStats(
    connected=True,
    protocol="5",
    reconnects=2,
    published=81_234,
    in_flight=1,
    spool_rows=3,
    quarantined=1,
    commands=4,
    commands_refused=2,
)


@dataclass(frozen=True)
class Account:
    scored_s: float
    dropped_s: dict[str, float]
    absent_s: dict[str, float]
    unexplained_s: float


def utc_ns(frame: int) -> int:
    return FrameClock(RATE_HZ, origin_utc_ns=UTC_NS).utc_ns(frame - 48_000_000)


def score_message(score: Score = SCORE) -> Message:
    return WIRE.score(score, utc_ns=utc_ns, rate_hz=RATE_HZ, infer_ms=0.9)


def event_message(event: Event = EVENT) -> Message:
    return WIRE.event(event, utc_ns=utc_ns, rate_hz=RATE_HZ, threshold=9.5)


def messages() -> dict[str, Message]:
    fault, fault_attributes = WIRE.fault("mic0", Fault.CLIPPED, since_ns=UTC_NS)
    fault_over, fault_over_attributes = WIRE.fault("mic0", None, since_ns=UTC_NS)
    info = NodeInfo(
        version="0.1.0",
        backend="tensorrt",
        bundle="fan-ae",
        bundle_sha256="3f2a9c",
        config_sha256="77aa",
        sources=("mic0", "mic1"),
        mqtt_protocol="5",
        engine=EngineInfo("tensorrt", "fp16", "Orin", "measured at 0.2 ms a window (onnx fp16 0.9 ms)", 0.2),
        warnings=("calibration extrapolated 40x",),
        overrides={"mic0": Override(threshold=3.5), "mic1": Override(enabled=False)},
        model=ModelInfo(
            3, "installed", "it was installed", "hall (key 0123456789abcdef)", on_trial=True, shadow={"windows": 60}
        ),
    )
    health = NodeHealth(
        uptime_s=3600.0,
        realtime_factor=812.5,
        backlog_s=0.0,
        overruns=1,
        dropped_frames=48_000,
        rss_bytes=140_000_000,
        clock_synced=True,
        publisher=STATS,
        accounts={"mic0": Account(3591.5, {"late": 2.0, "gap": 1.0}, {"device_absent": 5.5}, 0.0)},
    )
    notice = StateNotice("mic0", 48_000_000, 7.25)
    return {
        "node_status": WIRE.node_status("online"),
        "source_status": WIRE.source_status("mic0", "offline"),
        "info": WIRE.info(info),
        "health": WIRE.health(health, ts_ns=UTC_NS),
        "score": score_message(),
        "score_without_bundle": Wire("w097").score(
            replace(SCORE, model=None, confirmed=None), utc_ns=utc_ns, rate_hz=RATE_HZ, infer_ms=0.0
        ),
        "score_invalid": score_message(replace(SCORE, fault=Fault.DEAD, confirmed=None)),
        "event_start": event_message(replace(EVENT, event_type=EventType.START, confirmed=None)),
        "event_update": event_message(replace(EVENT, event_type=EventType.UPDATE)),
        "event_end": event_message(),
        "notice": WIRE.notice(notice, utc_ns=utc_ns, rate_hz=RATE_HZ),
        "level": WIRE.level("mic0", SCORE.level, ts_ns=UTC_NS),
        "state": WIRE.alarm("mic0", active=True),
        "fault": fault,
        "fault_attributes": fault_attributes,
        "fault_over": fault_over,
        "fault_over_attributes": fault_over_attributes,
        "threshold": WIRE.threshold("mic0", 9.5),
        "enabled": WIRE.enabled("mic0", enabled=False),
        "gap": WIRE.gap(GapRecord("node:1:5", "node:1:90", 80), ts_ns=UTC_NS),
    }


def golden_text(message: Message) -> str:
    body = encode(message.payload).decode()
    payload = json.loads(body) if body.startswith("{") else body
    shown = {
        "topic": message.topic,
        "kind": message.kind,
        "qos": message.qos,
        "retain": message.retain,
        "payload": payload,
    }
    return json.dumps(shown, indent=2) + "\n"


@pytest.mark.parametrize("name", messages())
def test_message_is_as_published_before(name: str) -> None:
    assert golden_text(messages()[name]) == (GOLDEN / f"{name}.json").read_text(encoding="ascii")


def test_every_golden_file_has_its_message() -> None:
    assert {path.stem for path in GOLDEN.glob("*.json")} == messages().keys()


def test_retained_and_lossy_are_told_apart_by_kind() -> None:
    for name, message in messages().items():
        assert message.retain is (message.kind is Kind.STATE), name
        assert message.qos == (0 if message.kind in (Kind.LEVEL, Kind.HEALTH) else 1), name


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_number_that_is_not_finite_never_leaves(value: float) -> None:
    with pytest.raises(AssertionError, match="not finite"):
        score_message(replace(SCORE, p_value=value))
    with pytest.raises(AssertionError, match="not finite"):
        encode({"score": value})


@pytest.mark.parametrize("name", ["", "Mic0", "mic 0", "mic/0", "mic+", "#", "mic\0", "m\u00fc"])
def test_name_that_cannot_be_a_topic_level_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match="source name"):
        WIRE.alarm(name, active=False)
    with pytest.raises(SettingsError, match="node name"):
        Wire(name)


@pytest.mark.parametrize("base_topic", ["", "/edgeasd", "a//b", "a/", "a/+/b", "a/#", "$SYS", "a b"])
def test_base_topic_with_wildcards_or_empty_levels_is_refused(base_topic: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(repr(base_topic))):
        Wire("w097", base_topic=base_topic)


def test_base_topic_of_several_levels_heads_every_topic() -> None:
    assert Wire("w097", base_topic="site-1/sound").alarm("mic0", active=True).topic == "site-1/sound/w097/mic0/state"


def test_anomaly_needs_a_valid_score_behind_warm_up() -> None:
    def anomaly(**changes: object) -> object:
        payload = score_message(replace(SCORE, **changes)).payload  # type: ignore[arg-type]
        assert not isinstance(payload, str)
        return payload["anomaly"]

    assert anomaly() is True
    assert anomaly(score=9.4) is False
    assert anomaly(fault=Fault.CLIPPED) is False
    assert anomaly(warmup=True) is False


def test_times_are_utc_with_microseconds_before_and_after_1970() -> None:
    assert utc_text(UTC_NS + 123_456_789) == "2026-11-20T09:06:30.623456Z"
    assert utc_text(-1) == "1969-12-31T23:59:59.999999Z"


def test_marking_late_changes_that_key_only() -> None:
    body = encode(score_message().payload)
    before, after = json.loads(body), json.loads(marked_late(body))
    assert after == {**before, "late": True}
    assert list(after) == list(before)
    assert marked_late(encode(messages()["gap"].payload)) == encode(messages()["gap"].payload)


def test_ids_count_over_all_topics_and_seq_without_holes_per_topic() -> None:
    intake = Intake(Identity("u", 7))
    accepted = [intake.accept(message)[0] for message in (score_message(), event_message(), score_message())]
    told = [(json.loads(parcel.body)["id"], json.loads(parcel.body)["seq"]) for parcel in accepted]
    assert told == [("u:7:1", 1), ("u:7:2", 1), ("u:7:3", 2)]


def test_message_that_cannot_be_encoded_leaves_no_hole_in_seq() -> None:
    intake = Intake(Identity("u", 7))
    broken = replace(score_message(), payload={**score_message().payload, "score": float("nan")})  # type: ignore[dict-item]
    with pytest.raises(AssertionError):
        intake.accept(broken)
    assert json.loads(intake.accept(score_message())[0].body)["seq"] == 1


def test_thinning_to_seconds_keeps_the_highest_valid_score() -> None:
    intake = Intake(Identity("u", 1), scores="second")

    def accept(second: float, score: float, *, fault: Fault | None = None) -> list[float]:
        frame = 48_000_000 + round((second - 0.5) * RATE_HZ)  # UTC_NS lies half a second into its second
        parcels = intake.accept(score_message(replace(SCORE, first_frame=frame, score=score, fault=fault)))
        return [json.loads(parcel.body)["score"] for parcel in parcels]

    assert accept(0.0, 1.0) == []
    assert accept(0.5, 3.0) == []
    assert accept(0.9, 99.0, fault=Fault.CLIPPED) == []
    assert accept(1.0, 2.0) == [3.0]
    assert accept(4.0, 5.0) == [2.0]
    assert [json.loads(parcel.body)["score"] for parcel in intake.flush()] == [5.0]
    assert intake.flush() == []


def test_no_scores_when_they_are_off_but_events() -> None:
    intake = Intake(Identity("u", 1), scores="off")
    assert intake.accept(score_message()) == []
    assert len(intake.accept(event_message())) == 1


if __name__ == "__main__":
    for golden_name, golden_message in messages().items():
        (GOLDEN / f"{golden_name}.json").write_text(golden_text(golden_message), encoding="ascii")
