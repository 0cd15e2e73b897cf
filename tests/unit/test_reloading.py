"""Settings read again while a node runs: what is taken, what waits, and what goes wrong without a word too many."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, cast

import pytest

from edgeasd.assembly import JudgeOptions, plan_judges, seat_judges
from edgeasd.errors import SettingsError
from edgeasd.health.notify import Notifier
from edgeasd.line import Line
from edgeasd.node import Node
from edgeasd.publish import Wire
from edgeasd.publish.jsonl import JsonLinesPublisher
from edgeasd.reloading import Reloading, policy_of
from edgeasd.reporter import Reporter
from edgeasd.settings import Settings

BEFORE: dict[str, Any] = {
    "node": {"name": "n1"},
    "sources": [{"name": "mic0", "device": "hw:1"}],
    "mqtt": {"host": "broker", "username": "edgeasd", "password": "old-canary"},
}


class Desk:
    """A node as its attendants see it, with a way to read what it says."""

    def __init__(self, stack: ExitStack) -> None:
        self.said = io.StringIO()
        settings = Settings(**BEFORE)
        bench = stack.enter_context(seat_judges(plan_judges(JudgeOptions(policy=policy_of(settings)))))
        reporter = Reporter(bench, JsonLinesPublisher(self.said), Wire("n1"), sources=["mic0"])
        self.node = Node(settings, bench, cast("Line", None), reporter, Notifier(None))

    def reload(self, wanted: dict[str, Any] | Exception, **kwargs: Any) -> None:
        """Let the settings become `wanted`, or loading them fail, and turn the loop once."""

        def load() -> Settings:
            if isinstance(wanted, Exception):
                raise wanted
            return Settings(**{**BEFORE, **wanted})

        reloading = Reloading(load, **kwargs)
        reloading.request()
        reloading.attend(self.node, 0.0)
        self.node.reporter.info(self.node.settings)

    def last(self, topic: str) -> Any:
        """Return the last payload said on a topic."""
        lines = [json.loads(line) for line in self.said.getvalue().splitlines()]
        return [line["payload"] for line in lines if line["topic"].endswith(topic)][-1]


@pytest.fixture
def desk() -> Iterator[Desk]:
    with ExitStack() as stack:
        yield Desk(stack)


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "edgeasd.reloading")
    return caplog


def test_alarm_and_health_are_taken_at_once(desk: Desk, logged: pytest.LogCaptureFixture) -> None:
    before = float(desk.last("threshold/state"))
    desk.reload({"alarm": {"false_alarms": "1/week", "release_s": 5}, "health_interval_s": 5})
    assert float(desk.last("threshold/state")) > before
    assert desk.node.settings.health_interval_s == 5.0
    assert logged.messages == ["settings read again: took alarm.false_alarms, alarm.release_s, health_interval_s"]


def test_the_log_is_set_up_anew_and_costs_no_descriptor(desk: Desk) -> None:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    try:
        desk.reload({"log": {"level": "error", "format": "json"}})
        assert root.level == logging.ERROR
        (handler,) = root.handlers
        desk.reload({"log": {"level": "info", "format": "text"}})
        assert (root.level, root.handlers) == (logging.INFO, [handler])
    finally:
        for one in root.handlers:
            if one not in before and isinstance(one, logging.StreamHandler):
                one.stream.close()
        root.handlers[:] = before
        root.setLevel(level)


def test_what_needs_a_restart_is_named_without_its_value(desk: Desk, logged: pytest.LogCaptureFixture) -> None:
    in_force = desk.node.settings
    desk.reload({"mqtt": {**BEFORE["mqtt"], "host": "other", "password": "new-canary"}, "outbox": {"max_mb": 1}})
    line = "changed, but in force only after a restart: mqtt.host, mqtt.password, outbox.max_mb"
    assert logged.messages == [f"settings read again: nothing to take; {line}"]
    assert line in desk.last("/info")["warnings"]
    assert "canary" not in desk.said.getvalue() + logged.text
    assert desk.node.settings.mqtt == in_force.mqtt
    desk.reload({})
    assert line not in desk.last("/info")["warnings"]


def test_a_judge_who_is_not_there_waits_for_a_restart(
    desk: Desk, logged: pytest.LogCaptureFixture, tmp_path: Any
) -> None:
    desk.reload({"alarm": {"by": "model"}, "bundle": str(tmp_path / "new.edgeasd"), "health_interval_s": 5})
    assert (desk.node.settings.alarm.by, desk.node.settings.health_interval_s) == ("auto", 5.0)
    assert "settings were not taken: alarm.by: model needs a bundle" in logged.messages[0]
    assert "restart: bundle, alarm.by" in logged.messages[0]


@pytest.mark.parametrize("wrong", [SettingsError("alarm.release_s: -1 is not above 0"), OSError("a bug")])
def test_settings_that_cannot_be_had_change_nothing(
    desk: Desk, logged: pytest.LogCaptureFixture, wrong: Exception
) -> None:
    in_force = desk.node.settings
    desk.reload(wrong)
    assert desk.node.settings is in_force
    assert logged.messages == [f"settings were not taken: {wrong}"]
    assert desk.last("/info")["warnings"][-1] == f"settings were not taken: {wrong}"


def test_listeners_hear_of_the_new_settings_and_look_after_theirs(
    desk: Desk, logged: pytest.LogCaptureFixture, tmp_path: Any
) -> None:
    heard: list[tuple[Node, Settings]] = []
    desk.reload(
        {"bundle": str(tmp_path / "new.edgeasd")},
        listeners=[lambda node, wanted: heard.append((node, wanted))],
        theirs=["bundle"],
    )
    assert [(node, str(wanted.bundle)) for node, wanted in heard] == [(desk.node, str(tmp_path / "new.edgeasd"))]
    assert logged.messages == ["settings read again: nothing to take"]


def test_nothing_is_read_until_it_is_asked_for(desk: Desk) -> None:
    def load() -> Settings:
        raise AssertionError("not asked for")

    Reloading(load).attend(desk.node, 0.0)
