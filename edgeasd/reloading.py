"""Reading the settings again while the node runs: what can be taken at once is taken, the rest waits for a restart."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterator, Sequence

from pydantic import BaseModel

from edgeasd.errors import SettingsError
from edgeasd.logs import set_up_logging
from edgeasd.node import Node
from edgeasd.scoring.jury import AlarmPolicy
from edgeasd.settings import Settings

log = logging.getLogger(__name__)

_TAKEN_AT_ONCE = frozenset({"alarm", "log", "health_interval_s"})


class Reloading:
    """An attendant that loads the settings anew when it was asked to; wrong ones change nothing and end nothing.

    `listeners` are called with the node and the new settings once those are taken, the node's own holding what is in
    force; `theirs` names the top-level settings that they look after. `asked` may be set by a signal handler.
    """

    def __init__(
        self,
        load: Callable[[], Settings],
        *,
        listeners: Sequence[Callable[[Node, Settings], None]] = (),
        theirs: Collection[str] = (),
        asked: threading.Event | None = None,
    ) -> None:
        self._load = load
        self._listeners = listeners
        self._theirs = frozenset(theirs)
        self._asked = asked or threading.Event()

    def request(self) -> None:
        """Ask for a reload at the next turn of the loop."""
        self._asked.set()

    def attend(self, node: Node, now_s: float) -> None:  # noqa: ARG002  # the protocol's
        """Reload if that was asked for."""
        if not self._asked.is_set():
            return
        self._asked.clear()
        node.notifier.reloading()
        try:
            wanted = self._load()
            self._take(node, wanted)
            for listener in self._listeners:
                listener(node, wanted)
        except Exception as exc:  # noqa: BLE001  # whatever is wrong with them, the node goes on with those it has
            log.error("settings were not taken: %s", exc)  # noqa: TRY400  # one line, for whoever wrote the settings
            node.reporter.warn("settings", [f"settings were not taken: {exc}"])
        finally:
            node.notifier.ready(node.reporter.status_line())

    def _take(self, node: Node, wanted: Settings) -> None:
        changed = list(_differing(node.settings, wanted))
        notes: list[str] = []
        sections = {path.partition(".")[0] for path in changed} & _TAKEN_AT_ONCE
        if "alarm" in sections:
            try:
                node.bench.pipeline.set_policy(policy_of(wanted))
            except SettingsError as exc:  # it names a judge who sits only after a restart
                sections.discard("alarm")
                notes.append(f"settings were not taken: {exc}")
        if "log" in sections:
            set_up_logging(level=wanted.log.level, form=wanted.log.format)
        node.settings = node.settings.model_copy(update={name: getattr(wanted, name) for name in sections})
        taken = [path for path in changed if path.partition(".")[0] in sections]
        waiting = [path for path in changed if path.partition(".")[0] not in sections | self._theirs]
        if waiting:
            notes.append(f"changed, but in force only after a restart: {', '.join(waiting)}")
        log.info("settings read again: %s", "; ".join([_took(taken), *notes]))
        node.reporter.warn("settings", notes)
        for source in node.settings.sources:
            node.reporter.threshold(source.name)


def policy_of(settings: Settings) -> AlarmPolicy:
    """Return what the settings say about events."""
    alarm = settings.alarm
    return AlarmPolicy(
        false_alarms_per_hour=alarm.false_alarms.per_hour,
        by=alarm.by,
        release_s=alarm.release_s,
        merge_s=alarm.merge_s,
        update_s=alarm.update_s,
    )


def _took(taken: Sequence[str]) -> str:
    return f"took {', '.join(taken)}" if taken else "nothing to take"


def _differing(before: BaseModel, after: BaseModel, above: str = "") -> Iterator[str]:
    """Yield the names of the settings, with those of their groups, whose values are not the same."""
    for name in type(before).model_fields:
        old, new = getattr(before, name), getattr(after, name)
        if isinstance(old, BaseModel) and isinstance(new, BaseModel):
            yield from _differing(old, new, f"{above}{name}.")
        elif old != new:
            yield above + name
