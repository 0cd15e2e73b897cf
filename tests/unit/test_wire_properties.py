"""Properties of the wire: what leaves is strict JSON of bounded size, and what comes in is a command or a refusal."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgeasd.errors import SettingsError
from edgeasd.publish.commands import MAX_NOTE_CHARS, THRESHOLD_RANGE, CommandBox, RefusedCommandError, parse_command
from edgeasd.publish.identity import Identity
from edgeasd.publish.intake import Intake
from edgeasd.publish.message import Feedback, Message, SetThreshold, Verb
from edgeasd.publish.payload import encode, marked_late
from edgeasd.publish.target import MqttOptions
from edgeasd.publish.wire import Wire
from edgeasd.records import Band, Confirmation, Event, EventType, Fault, Level, Opinion, Score, StateNotice

MAX_BYTES = MqttOptions().max_payload_bytes
SOURCE = "s" * 64
WIRE = Wire("n" * 64, base_topic="b" * 128, model="m" * 64 + "@3f2a9c", backend="onnx")
TOPIC = re.compile(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*")
QUICK = settings(max_examples=100, deadline=None, database=None, derandomize=True)

Record = Score | Event | Level | StateNotice
frames = st.integers(0, 2**62)


def records(numbers: st.SearchStrategy[float]) -> st.SearchStrategy[Record]:
    """Return records of any kind whose numbers are such."""
    opinions = st.builds(Opinion, numbers, numbers)
    levels = st.builds(Level, numbers, numbers, numbers, numbers)
    scores = st.builds(
        Score,
        source=st.just(SOURCE),
        first_frame=frames,
        n_frames=st.integers(0, 2**31),
        captured_ns=frames,
        score=numbers,
        p_value=numbers,
        threshold=numbers,
        model=st.none() | opinions,
        prompt=st.none() | opinions,
        confirmed=st.none() | st.builds(Confirmation, frames, frames, opinions),
        level=levels,
        fault=st.none() | st.sampled_from(Fault),
        warmup=st.booleans(),
    )
    events = st.builds(
        Event,
        event_type=st.sampled_from(EventType),
        event_id=st.text("0123456789ABCDEFGHJKMNPQRSTVWXYZ", min_size=26, max_size=26),
        source=st.just(SOURCE),
        start_frame=frames,
        end_frame=frames,
        peak_score=numbers,
        peak_frame=frames,
        p_value=numbers,
        bands=st.lists(st.builds(Band, numbers, numbers, numbers), max_size=8).map(tuple),
        confirmed=st.none() | st.booleans(),
    )
    return scores | events | levels | st.builds(StateNotice, st.just(SOURCE), frames, numbers)


def utc_ns(frame: int) -> int:
    return frame


def told(record: Record) -> Message:
    if isinstance(record, Score):
        return WIRE.score(record, utc_ns=utc_ns, rate_hz=16_000, infer_ms=record.p_value)
    if isinstance(record, Event):
        return WIRE.event(record, utc_ns=utc_ns, rate_hz=16_000, threshold=record.p_value)
    if isinstance(record, Level):
        return WIRE.level(SOURCE, record, ts_ns=0)
    return WIRE.notice(record, utc_ns=utc_ns, rate_hz=16_000)


def no_constant(word: str) -> None:
    raise AssertionError(f"{word} is no JSON")


def finite(value: Any) -> bool:
    if isinstance(value, dict | list | tuple):
        return all(finite(each) for each in (value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)


@QUICK
@given(records(st.floats(allow_nan=False, allow_infinity=False)))
def test_a_record_becomes_bounded_strict_json(record: Record) -> None:
    (parcel,) = Intake(Identity("6f0c5c1e-0000-4000-8000-000000000000", 2**31)).accept(told(record))
    assert len(marked_late(parcel.body)) <= MAX_BYTES
    payload = json.loads(parcel.body.decode("ascii"), parse_constant=no_constant)
    assert finite(payload)
    assert TOPIC.fullmatch(parcel.topic)


@QUICK
@given(records(st.floats(allow_nan=False) | st.just(math.nan)))
def test_what_is_not_finite_is_refused_in_so_many_words(record: Record) -> None:
    try:
        body = encode(told(record).payload)
    except AssertionError as exc:
        refusal = str(exc)
    else:
        refusal = ""
        json.loads(body, parse_constant=no_constant)
    assert not refusal or "not finite" in refusal


@QUICK
@given(st.text(max_size=80), st.text(max_size=80), st.text(max_size=160))
def test_a_topic_is_valid_or_its_parts_are_refused(node: str, source: str, base_topic: str) -> None:
    try:
        topic = Wire(node, base_topic=base_topic).alarm(source, active=True).topic
    except SettingsError:
        return
    assert TOPIC.fullmatch(topic)


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=6,
)
feedback_like = st.dictionaries(
    st.sampled_from(("event_id", "verdict", "note", "x")),
    json_values | st.sampled_from(("real", "false_alarm", "01KAFX4E8N0V4S7R8JX9M5T2QZ")),
).map(lambda value: json.dumps(value).encode())
bodies = (
    st.binary(max_size=1200)
    | st.text(max_size=40).map(lambda text: text.encode(errors="surrogatepass"))
    | st.from_regex(r"[-+ ]?[0-9_]{0,4}([.,][0-9]{0,4})?([eE][0-9]{1,3})?").map(str.encode)
    | json_values.map(lambda value: json.dumps(value).encode())
    | feedback_like
)


@settings(QUICK, max_examples=250)
@given(st.sampled_from(Verb), bodies)
@example(Verb.FEEDBACK, b"[" * 1024)
@example(Verb.FEEDBACK, b'{"verdict":' * 90)
@example(Verb.FEEDBACK, b'{"verdict":["real"]}')
@example(Verb.FEEDBACK, b"1" * 1024)
@example(Verb.THRESHOLD, "\u0664".encode())  # a digit, but none of ours
@example(Verb.THRESHOLD, b"nan")
@example(Verb.THRESHOLD, b"1e9999")
@example(Verb.ENABLED, b"\x00ON")
def test_any_payload_is_a_command_or_a_refusal(verb: Verb, body: bytes) -> None:
    try:
        command = parse_command("mic0", verb, body)
    except RefusedCommandError:
        return
    assert command.source == "mic0"
    if isinstance(command, SetThreshold) and command.score is not None:
        assert THRESHOLD_RANGE[0] <= command.score <= THRESHOLD_RANGE[1]
    if isinstance(command, Feedback):
        assert len(command.note) <= MAX_NOTE_CHARS
        assert command.event_id is None or len(command.event_id) == 26


@QUICK
@given(
    st.text(max_size=60)
    | st.lists(st.sampled_from(("mic0", "..", "", "threshold", "enabled", "set", "+", "#")), max_size=5).map(
        lambda levels: "edgeasd/w097/" + "/".join(levels)
    ),
    bodies,
    st.booleans(),
)
def test_a_box_counts_whatever_comes_as_taken_or_refused(topic: str, body: bytes, retained: bool) -> None:
    box = CommandBox(Wire("w097"), sources=["mic0"])
    box.put(topic, body, retained=retained)
    commands = box.take()
    assert len(commands) + box.refused == 1
    if commands:
        assert topic in {f"edgeasd/w097/mic0/{verb}/set" for verb in Verb}
        assert not retained


@pytest.mark.parametrize(
    ("verb", "body"),
    [
        (Verb.THRESHOLD, b" 4.5\n"),
        (Verb.THRESHOLD, b"auto"),
        (Verb.ENABLED, b"OFF"),
        (Verb.FEEDBACK, b"false_alarm"),
        (Verb.FEEDBACK, b'{"event_id":"01KAFX4E8N0V4S7R8JX9M5T2QZ","verdict":"real","note":"a bird"}'),
    ],
)
def test_what_the_documentation_says_is_a_command(verb: Verb, body: bytes) -> None:
    parse_command("mic0", verb, body)
