"""From opinions to events: hysteresis per lane, and one life story per event.

A *lane* is a series of opinions about the windows of one source. The prompt lanes speak as soon as a window is full;
the confirming lane speaks of the same windows some seconds later, when it is known what followed. An event is started
by whichever lane opens first, and ends once all lanes are closed and the confirming one has passed its end.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from edgeasd.records import Band, Event, EventType, Opinion

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def new_ulid(now_ms: int | None = None) -> str:
    """Return a ULID (26 characters, sorts by time): 48 bits of milliseconds, 80 random bits."""
    return make_ulid(time.time_ns() // 1_000_000 if now_ms is None else now_ms, secrets.randbits(80))


def make_ulid(stamp_ms: int, rest: int) -> str:
    """Return the ULID of 48 bits of milliseconds and 80 other bits."""
    value = stamp_ms << 80 | rest
    return "".join(_CROCKFORD[(value >> shift) & 31] for shift in range(125, -1, -5))


def surprise(p_value: float) -> float:
    """Return -log10 p: the common scale of all judges, 3 for a window as odd as one in a thousand."""
    return 0.0 - math.log10(p_value)  # never the negative zero


@dataclass(frozen=True, slots=True)
class Levels:
    """Where a lane opens and closes, in units of its own score."""

    enter: float
    leave: float
    """A lane stays open, and its onset reaches back, while the score is at least this."""


@dataclass(frozen=True, slots=True)
class Timing:
    """How windows become events, in frames."""

    release_frames: int
    """A lane closes after this long below `leave`."""
    merge_frames: int
    """What lies closer together than this is one event."""
    update_frames: int
    """An event that goes on is told again this often."""


class Verdict(NamedTuple):
    """One lane's opinion of the window [first_frame, end_frame)."""

    first_frame: int
    end_frame: int
    opinion: Opinion
    explain: Callable[[], tuple[Band, ...]]
    """Says which bands carried it; called only for peaks."""


@dataclass(slots=True)
class _Story:
    """An event that has started and not yet ended."""

    event_id: str
    start_frame: int
    end_frame: int
    peak: Opinion
    peak_frame: int
    bands: tuple[Band, ...]
    told_frame: int
    confirmed: bool | None = None

    def extend(self, verdict: Verdict) -> None:
        self.end_frame = max(self.end_frame, verdict.end_frame)
        if verdict.opinion.p_value < self.peak.p_value:
            self.peak, self.peak_frame, self.bands = verdict.opinion, verdict.first_frame, verdict.explain()

    def tell(self, event_type: EventType, source: str) -> Event:
        return Event(
            event_type=event_type,
            event_id=self.event_id,
            source=source,
            start_frame=self.start_frame,
            end_frame=self.end_frame,
            peak_score=surprise(self.peak.p_value),
            peak_frame=self.peak_frame,
            p_value=self.peak.p_value,
            bands=self.bands,
            confirmed=self.confirmed,
        )


@dataclass(slots=True)
class _Lane:
    """Hysteresis over one series of opinions."""

    levels: Levels
    run_start_frame: int | None = None
    last_over_frame: int = 0
    story: _Story | None = None

    def onset(self, verdict: Verdict, *, release_frames: int) -> int | None:
        """Take one opinion; return the onset frame when the lane opens with it."""
        if verdict.opinion.score >= self.levels.leave:
            if self.run_start_frame is None:
                self.run_start_frame = verdict.first_frame
            self.last_over_frame = verdict.end_frame
        elif self.story is None:
            self.run_start_frame = None
        elif verdict.end_frame - self.last_over_frame >= release_frames:
            self.close()
        if self.story is None and verdict.opinion.score >= self.levels.enter:
            return self.run_start_frame if self.run_start_frame is not None else verdict.first_frame
        return None

    def close(self) -> None:
        self.story = self.run_start_frame = None


def _retuned(lane: _Lane | None, levels: Levels) -> _Lane:
    return _Lane(levels) if lane is None else replace(lane, levels=levels)


@dataclass(slots=True)
class EventTracker:
    """Turns the verdicts about one source into `Event` records: start, update, end.

    Without a confirming lane events end when their lane closes, with `confirmed` None.
    """

    source: str
    timing: Timing
    prompt_levels: dict[str, Levels]
    """Levels of each lane that speaks at once, by its name."""
    confirm_levels: Levels | None
    now_ms: Callable[[], int] = field(default=lambda: time.time_ns() // 1_000_000)
    _prompt: dict[str, _Lane] = field(init=False)
    _confirm: _Lane | None = field(init=False)
    _stories: list[_Story] = field(default_factory=list, init=False)
    _judged_frame: int = field(default=0, init=False)
    _settled_frame: int = field(default=0, init=False)  # no verdict to come, of the lane that ends stories, lies before

    def __post_init__(self) -> None:
        self._prompt = {name: _Lane(levels) for name, levels in self.prompt_levels.items()}
        self._confirm = None if self.confirm_levels is None else _Lane(self.confirm_levels)

    @property
    def active(self) -> bool:
        """Return whether an event has started and not ended."""
        return bool(self._stories)

    def retune(self, *, timing: Timing, prompt_levels: dict[str, Levels], confirm_levels: Levels | None) -> None:
        """Go on with other levels and times; an event under way stays one where the new levels still hold it.

        An event whose lane is no longer asked ends at the next `settle` that finds nothing near it.
        """
        self.timing, self.prompt_levels, self.confirm_levels = timing, prompt_levels, confirm_levels
        self._prompt = {name: _retuned(self._prompt.get(name), levels) for name, levels in prompt_levels.items()}
        self._confirm = None if confirm_levels is None else _retuned(self._confirm, confirm_levels)

    def prompt(self, lane_name: str, verdict: Verdict) -> list[Event]:
        """Take what a prompt lane says of the newest window."""
        if self._confirm is None:
            self._settled_frame = verdict.first_frame
        return self._take(self._prompt[lane_name], verdict)

    def confirm(self, verdict: Verdict) -> list[Event]:
        """Take the second look at an older window."""
        assert self._confirm is not None
        events = self._take(self._confirm, verdict)
        self._judged_frame, self._settled_frame = verdict.end_frame, verdict.first_frame
        story = self._confirm.story
        if story is not None and story.confirmed is None:
            story.confirmed = True
            if not any(event.event_id == story.event_id for event in events):
                events.append(story.tell(EventType.UPDATE, self.source))
            else:
                events = [story.tell(e.event_type, self.source) if e.event_id == story.event_id else e for e in events]
        return events

    def settle(self, now_frame: int) -> list[Event]:
        """Tell of events that are over, or that go on, at `now_frame`; call once a window, after the verdicts."""
        if not self._stories:
            return []
        events: list[Event] = []
        attached = [lane.story for lane in self._lanes() if lane.story is not None]
        for story in list(self._stories):
            alone = self._settled_frame >= story.end_frame + self.timing.merge_frames  # windows overlap
            if alone and not any(story is other for other in attached):
                events.append(self._end(story))
            elif now_frame - story.told_frame >= self.timing.update_frames:
                story.told_frame = now_frame
                events.append(story.tell(EventType.UPDATE, self.source))
        return events

    def interrupt(self) -> list[Event]:
        """End everything at a gap or at the end of the sound: nothing can be joined across it."""
        for lane in self._lanes():
            lane.close()
        return [self._end(story) for story in list(self._stories)]

    def _lanes(self) -> list[_Lane]:
        return [*self._prompt.values(), *([] if self._confirm is None else [self._confirm])]

    def _take(self, lane: _Lane, verdict: Verdict) -> list[Event]:
        events: list[Event] = []
        onset_frame = lane.onset(verdict, release_frames=self.timing.release_frames)
        if onset_frame is not None:
            story = self._near(onset_frame, verdict.end_frame)
            if story is None:
                story = self._start(onset_frame, verdict)
                events.append(story.tell(EventType.START, self.source))
            lane.story = story
            story.start_frame = min(story.start_frame, onset_frame)
        if lane.story is not None and verdict.opinion.score >= lane.levels.leave:
            lane.story.extend(verdict)
        return events

    def _near(self, start_frame: int, end_frame: int) -> _Story | None:
        merge = self.timing.merge_frames
        for story in self._stories:
            if start_frame < story.end_frame + merge and end_frame > story.start_frame - merge:
                return story
        return None

    def _start(self, onset_frame: int, verdict: Verdict) -> _Story:
        story = _Story(
            event_id=new_ulid(self.now_ms()),
            start_frame=onset_frame,
            end_frame=verdict.end_frame,
            peak=verdict.opinion,
            peak_frame=verdict.first_frame,
            bands=verdict.explain(),
            told_frame=verdict.end_frame,
        )
        self._stories.append(story)
        return story

    def _end(self, story: _Story) -> Event:
        self._stories = [other for other in self._stories if other is not story]
        if self._confirm is not None and story.confirmed is None and self._judged_frame >= story.end_frame:
            story.confirmed = False
        return story.tell(EventType.END, self.source)
