"""What commands do to a line that listens: a real pipeline and reporter, sound from a script, messages in a list."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from edgeasd.assembly import JudgeOptions, plan_judges, seat_judges
from edgeasd.capture.ring import Ring
from edgeasd.capture.thread import CaptureThread
from edgeasd.capture.windows import WindowReader
from edgeasd.clock import FrameClock
from edgeasd.health.notify import Notifier
from edgeasd.line import Line, Track
from edgeasd.node import Node
from edgeasd.publish import CommandBox, Message, Override, PublisherStats, Wire
from edgeasd.publish.payload import encode
from edgeasd.records import AudioBlock, FloatArray
from edgeasd.reporter import Reporter
from edgeasd.settings import Settings
from edgeasd.steering.attendant import Steering
from edgeasd.steering.feedback import FEEDBACK_FILE, MAX_FEEDBACK_BYTES, EventHistory
from edgeasd.steering.overrides import OVERRIDES_FILE, read_overrides
from tests.conftest import MakeSoundscape

RATE_HZ = 16_000
DEADLINE_S = 30.0
WIRE = Wire("n1")


class _List:
    """A publisher that keeps what it is given."""

    def __init__(self) -> None:
        self.commands: CommandBox | None = CommandBox(WIRE, sources=["mic0"])
        self.messages: list[Message] = []

    def publish(self, message: Message) -> None:
        self.messages.append(message)

    def stats(self) -> PublisherStats:
        return PublisherStats(connected=True, protocol="5")

    def close(self, deadline_s: float, *, farewell: bool = True) -> bool:
        return True

    def stalled_s(self) -> float:
        return 0.0

    def last(self, topic: str) -> str:
        found = [one for one in self.messages if one.topic == f"edgeasd/n1/{topic}"]
        return encode(found[-1].payload).decode()


class _Sound:
    """A source that gives its sound up to a place and waits there to be let on."""

    name = "mic0"
    rate_hz = RATE_HZ

    def __init__(self, samples: FloatArray) -> None:
        self._samples = samples
        self._moved = threading.Condition()
        self._until_frame = 0

    def blocks(self) -> Iterator[AudioBlock]:
        for at in range(0, len(self._samples), RATE_HZ // 4):
            with self._moved:
                assert self._moved.wait_for(partial(self._reaches, at), DEADLINE_S)
            yield AudioBlock(at, self._samples[at : at + RATE_HZ // 4], time.monotonic_ns())

    def _reaches(self, frame: int) -> bool:
        return frame < self._until_frame

    def let_on(self, until_s: float) -> None:
        with self._moved:
            self._until_frame = round(until_s * RATE_HZ)
            self._moved.notify_all()

    def close(self) -> None:
        self.let_on(1e6)


class Rig:
    """A node whose sound stands still until it is let on; its clock is a number."""

    def __init__(self, samples: FloatArray, state_dir: Path, stack: ExitStack) -> None:
        bench = stack.enter_context(seat_judges(plan_judges(JudgeOptions())))
        self.sound, doorbell = _Sound(samples), threading.Condition()
        clock, ring = FrameClock(RATE_HZ, origin_utc_ns=0), Ring(20 * RATE_HZ, policy="wait", doorbell=doorbell)
        thread = stack.enter_context(CaptureThread(self.sound, ring, clock=clock))
        grid = bench.grid
        reader = WindowReader(ring, source="mic0", window_frames=grid.window_frames, hop_frames=grid.hop_frames)
        self.line = Line([Track(self.sound, clock, ring, thread, reader)], bench.pipeline, doorbell=doorbell)
        self.told = _List()
        self.reporter = Reporter(bench, self.told, WIRE, sources=["mic0"])
        self.node = Node(Settings(state_dir=state_dir), bench, self.line, self.reporter, Notifier(None))
        self.steering = Steering()
        self.now_s = 0.0
        self.attend()

    def hear(self, until_s: float) -> None:
        """Judge the sound up to a second."""
        self.sound.let_on(until_s)
        deadline_s = time.monotonic() + DEADLINE_S
        while self.reporter.ledger.account("mic0", RATE_HZ).total_s < until_s and self.line.running:
            self.line.step(self.reporter, timeout_s=0.1)
            assert time.monotonic() < deadline_s, "the sound never came to its place"

    def send(self, verb: str, body: str) -> None:
        """Let a command come in and be carried out."""
        assert self.told.commands is not None
        self.told.commands.put(f"edgeasd/n1/mic0/{verb}/set", body.encode(), retained=False)
        self.attend()

    def attend(self) -> None:
        self.now_s += 1.0
        self.steering.attend(self.node, self.now_s)

    def account(self) -> dict[str, float]:
        account = self.reporter.ledger.account("mic0", RATE_HZ)
        return {"scored": account.scored_s, "unexplained": account.unexplained_s, **account.dropped_s}


MakeRig = Callable[..., Rig]


@pytest.fixture
def make_rig(make_soundscape: MakeSoundscape, tmp_path: Path) -> Iterator[MakeRig]:
    with ExitStack() as stack:

        def make(duration_s: float = 4.0, *, events: tuple[tuple[float, float], ...] = ()) -> Rig:
            rig = Rig(make_soundscape(duration_s, events=events).samples, tmp_path, stack)
            stack.callback(rig.sound.close)
            return rig

        yield make


def test_a_source_that_is_switched_off_ends_its_event_and_is_accounted_for(make_rig: MakeRig, tmp_path: Path) -> None:
    rig = make_rig(42.0, events=((24.0, 30.0),))
    rig.hear(27.0)
    assert rig.told.last("mic0/state") == "ON"
    rig.send("enabled", "OFF")
    assert (rig.told.last("mic0/status"), rig.told.last("mic0/enabled/state")) == ("disabled", "OFF")
    n_scores = sum(one.topic.endswith("/score") for one in rig.told.messages)
    rig.hear(34.0)
    assert rig.told.last("mic0/state") == "OFF"
    assert json.loads(rig.told.last("mic0/event"))["event_type"] == "end"
    assert rig.told.last("mic0/status") == "disabled"
    assert sum(one.topic.endswith("/score") for one in rig.told.messages) == n_scores
    rig.send("enabled", "ON")
    rig.hear(40.0)
    assert (rig.told.last("mic0/status"), rig.told.last("mic0/enabled/state")) == ("online", "ON")
    assert rig.account() == {"scored": 33.0, "disabled": 7.0, "unexplained": 0.0}

    rig.send("feedback", "false_alarm")
    (line,) = (tmp_path / FEEDBACK_FILE).read_text().splitlines()
    noted, event = json.loads(line), json.loads(rig.told.last("mic0/event"))
    assert noted["known"]
    assert {key: noted[key] for key in ("event_id", "start", "end", "bands")} == {
        key: event[key] for key in ("event_id", "start", "end", "bands")
    }


def test_a_threshold_holds_is_told_and_goes_back_to_what_the_budget_says(make_rig: MakeRig) -> None:
    rig = make_rig()
    budget = rig.told.last("mic0/threshold/state")
    rig.send("threshold", "6.5")
    assert rig.told.last("mic0/threshold/state") == "6.5"
    rig.hear(2.0)
    assert json.loads(rig.told.last("mic0/score"))["threshold"] == 6.5
    assert rig.reporter.overrides == {"mic0": Override(threshold=6.5)}
    rig.send("threshold", "auto")
    assert rig.told.last("mic0/threshold/state") == budget
    assert rig.reporter.overrides == {}


def test_what_was_set_is_taken_up_at_the_next_start_unless_commands_are_off(
    make_rig: MakeRig, caplog: pytest.LogCaptureFixture
) -> None:
    first = make_rig()
    first.send("threshold", "6.5")
    first.send("enabled", "OFF")
    second = make_rig()
    assert second.told.last("mic0/threshold/state") == "6.5"
    assert second.told.last("mic0/enabled/state") == "OFF"
    second.hear(4.0)
    assert second.account() == {"scored": 0.0, "unexplained": 0.0, "disabled": 4.0}
    second.told.commands = None
    second.steering = Steering()
    second.attend()
    assert "does not apply: no commands are taken" in caplog.text


def test_of_many_commands_for_one_setting_only_the_last_is_carried_out(make_rig: MakeRig, tmp_path: Path) -> None:
    rig = make_rig()
    assert rig.told.commands is not None
    for score in range(2, 20):
        rig.told.commands.put("edgeasd/n1/mic0/threshold/set", str(score).encode(), retained=False)
    n_before = sum(one.topic.endswith("threshold/state") for one in rig.told.messages)
    rig.attend()
    assert sum(one.topic.endswith("threshold/state") for one in rig.told.messages) == n_before + 1
    assert rig.told.last("mic0/threshold/state") == "19.0"
    rig.told.commands.put("edgeasd/n1/mic0/threshold/set", b"3", retained=False)
    rig.steering.attend(rig.node, rig.now_s + 0.5)
    assert rig.told.last("mic0/threshold/state") == "19.0"  # too soon behind the others


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[" * 5000,
        "x" * 100_000,
        '{"v":2,"sources":{}}',
        '{"v":1,"sources":{"mic0":{"threshold":NaN,"enabled":true}}}',
        '{"v":1,"sources":{"mic0":{"threshold":true,"enabled":true}}}',
        '{"v":1,"sources":{"mic0":{"threshold":1e9,"enabled":true}}}',
        '{"v":1,"sources":{"mic0":{"enabled":"no","threshold":null}}}',
        '{"v":1,"sources":["mic0"]}',
    ],
    ids=range(10),
)
def test_a_damaged_file_is_set_aside_with_a_warning(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / OVERRIDES_FILE).write_text(text)
    assert read_overrides(tmp_path, sources=["mic0"]) == {}
    (aside,) = tmp_path.iterdir()
    assert aside.name.startswith(f"{OVERRIDES_FILE}.corrupt-")
    assert "set aside" in caplog.text


def test_a_source_that_no_longer_exists_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / OVERRIDES_FILE).write_text('{"v":1,"sources":{"old":{"threshold":3,"enabled":true}}}')
    assert read_overrides(tmp_path, sources=["mic0"]) == {}
    assert "old, which is no source" in caplog.text


def test_a_state_directory_that_takes_nothing_costs_the_next_start_only(
    make_rig: MakeRig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rig = make_rig()
    rig.node.settings = Settings(state_dir=tmp_path / "gone")
    rig.send("threshold", "6.5")
    assert rig.told.last("mic0/threshold/state") == "6.5"
    assert "holds until the next start only" in caplog.text


def test_feedback_beyond_the_bound_is_refused_and_what_is_there_stays(
    make_rig: MakeRig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rig = make_rig()
    path = tmp_path / FEEDBACK_FILE
    path.write_bytes(b"x" * (MAX_FEEDBACK_BYTES - 10) + b"\n")
    rig.send("feedback", "false_alarm")
    assert path.stat().st_size == MAX_FEEDBACK_BYTES - 9
    assert rig.told.commands is not None
    assert rig.told.commands.refused == 1
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "feedback.jsonl holds 4 MiB: move it away" in caplog.text


def test_feedback_of_an_unknown_event_is_kept_behind_a_line_that_was_torn(make_rig: MakeRig, tmp_path: Path) -> None:
    rig = make_rig()
    path = tmp_path / FEEDBACK_FILE
    path.write_bytes(b'{"torn":')
    event_id = "01KAFX4E8N0V4S7R8JX9M5T2QZ"
    rig.send("feedback", json.dumps({"event_id": event_id, "verdict": "real", "note": "a bird \ud800 \u2028"}))
    torn, line = path.read_text(encoding="ascii").splitlines()
    assert torn == '{"torn":'
    noted = json.loads(line)
    assert (noted["event_id"], noted["verdict"], noted["known"]) == (event_id, "real", False)
    assert "bands" not in noted


def test_the_history_forgets_the_oldest_event_first() -> None:
    history = EventHistory()
    for number in range(300):
        history.note("mic0", str(number), {"event_id": str(number)})
        history.note("mic0", "0", {"event_id": "0"})  # told again and again
    assert history.find("mic0", "0") == {"event_id": "0"}
    assert history.find("mic0", "1") is None
    assert history.find("mic0", "299") == {"event_id": "299"}
    assert history.find("mic1", "299") is None
    assert history.find("mic1", None) is None
