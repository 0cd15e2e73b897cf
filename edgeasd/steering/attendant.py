"""Carrying out commands: thresholds, sources on and off, and what people say of events."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from edgeasd.errors import CannotWriteError
from edgeasd.node import Node
from edgeasd.publish import Override
from edgeasd.publish.commands import CommandBox
from edgeasd.publish.message import Command, Feedback, SetThreshold
from edgeasd.steering.feedback import append_feedback, feedback_line
from edgeasd.steering.overrides import OVERRIDES_FILE, read_overrides, write_overrides

log = logging.getLogger(__name__)

_EVERY_S = 1.0
"""Between two emptyings of the box: with its bound, what a flood of commands may cost the judging thread."""
_AS_SET = Override()


class Steering:
    """Attends to what the broker's commands ask for; of several for one setting only the last is carried out.

    What is set by command wins over the settings until another command, is written to the state directory before it
    takes effect, and is taken up again at the next start. Without `mqtt.commands` nothing of it applies.
    """

    def __init__(self) -> None:
        self._started = False
        self._due_s = 0.0
        self._overrides: dict[str, Override] = {}

    def attend(self, node: Node, now_s: float) -> None:
        """Carry out what has come in, at most once a second."""
        box = node.reporter.publisher.commands
        if not self._started:
            self._started = True
            self._take_up(node, box)
        if box is None or now_s < self._due_s:
            return
        commands = box.take()
        if commands:
            self._due_s = now_s + _EVERY_S
            self._set(node, commands)
            self._take_down(node, box, [command for command in commands if isinstance(command, Feedback)])

    def _take_up(self, node: Node, box: CommandBox | None) -> None:
        """Go on with what was set before this start."""
        directory = node.settings.state_dir
        if box is None:
            if (directory / OVERRIDES_FILE).exists():
                log.warning("%s does not apply: no commands are taken", directory / OVERRIDES_FILE)
            return
        known = [track.source.name for track in node.line.tracks]
        self._apply(node, read_overrides(directory, sources=known))

    def _set(self, node: Node, commands: Sequence[Command]) -> None:
        wanted = dict(self._overrides)
        for command in commands:
            if isinstance(command, Feedback):
                continue
            before = wanted.get(command.source, _AS_SET)
            if isinstance(command, SetThreshold):
                wanted[command.source] = replace(before, threshold=command.score)
            else:
                wanted[command.source] = replace(before, enabled=command.enabled)
        wanted = {source: override for source, override in wanted.items() if override != _AS_SET}
        if wanted == self._overrides:
            return
        try:
            write_overrides(node.settings.state_dir, wanted)
        except CannotWriteError as exc:
            log.warning("what was set by command holds until the next start only: %s", exc)
        self._apply(node, wanted)

    def _apply(self, node: Node, wanted: Mapping[str, Override]) -> None:
        """Bring the node from the overrides in force to the wanted ones, and tell."""
        before, self._overrides = self._overrides, dict(wanted)
        for source in sorted(before.keys() | wanted.keys()):
            old, new = before.get(source, _AS_SET), wanted.get(source, _AS_SET)
            if new.threshold != old.threshold:
                node.bench.pipeline.set_threshold(source, new.threshold)
                node.reporter.threshold(source)
                shown = "as the budget says" if new.threshold is None else f"{new.threshold:g}"
                log.info("%s: threshold %s, by command", source, shown)
            if new.enabled != old.enabled:
                node.line.switches.turn(source, on=new.enabled)
                node.reporter.enabled(source, enabled=new.enabled)
                log.info("%s: %s, by command", source, "enabled" if new.enabled else "disabled")
        node.reporter.overrides = dict(wanted)

    def _take_down(self, node: Node, box: CommandBox, said: Sequence[Feedback]) -> None:
        find, now_ns = node.reporter.history.find, time.time_ns()
        lines = [feedback_line(one, find(one.source, one.event_id), utc_ns=now_ns) for one in said]
        if not lines:
            return
        try:
            append_feedback(node.settings.state_dir, lines)
        except OSError as exc:
            for _ in lines:
                box.refuse(f"feedback cannot be kept: {exc.strerror}")
