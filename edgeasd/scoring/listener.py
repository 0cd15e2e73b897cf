"""What is known of one source: its past, its judges' opinions and its events."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from edgeasd.features.mel import MelSpec
from edgeasd.records import (
    Band,
    Confirmation,
    Event,
    Fault,
    FloatArray,
    Level,
    LossReason,
    Opinion,
    Score,
    Skipped,
    StateNotice,
    Window,
)
from edgeasd.scoring.alarm import EventTracker, Verdict
from edgeasd.scoring.explain import strongest_bands
from edgeasd.scoring.jury import Grid, Jury, Model
from edgeasd.scoring.novelty import Novelty, NoveltyStep
from edgeasd.scoring.novelty_levels import confirmed_p_value, prompt_p_value
from edgeasd.scoring.novelty_parts import Answer
from edgeasd.scoring.novelty_state import StateChange

Said = Score | Confirmation | Event | StateNotice


_LOUDEST = 100.0
"""No converter delivers more, full scale being 1.0."""

Inspect = Callable[[FloatArray], tuple[Level, Fault | None]]
"""Tells how loud samples (n,) are, and a broken microphone from a strange sound."""


@dataclass(slots=True)
class Heard:
    """One window on its way from sound to opinions."""

    window: Window
    samples: FloatArray
    """What may be listened to: silence where the input is no sound at all."""
    level: Level
    fault: Fault | None
    model_rows: FloatArray | None = None
    """Log mel for the model, (n_rows, n_frames)."""
    novelty_rows: FloatArray | None = None
    """Log mel for the second opinion, (n_bands, n_frames)."""
    model_score: float | None = None
    model_residual: FloatArray | None = None
    """Each mel row's share of the model's score, (n_rows,)."""

    @property
    def source(self) -> str:
        """Return whose window it is."""
        return self.window.source


class Listener:
    """Judges the windows of one source, in order, and keeps its past.

    Bound: the windows between one and its second look, some six seconds.
    """

    def __init__(
        self,
        source: str,
        grid: Grid,
        *,
        jury: Jury,
        model: Model | None,
        novelty: MelSpec | None,
        inspect: Inspect,
    ) -> None:
        self._source = source
        self._grid = grid
        self._jury = jury
        self._model = model
        self._inspect = inspect
        hop_s = grid.hop_frames / grid.rate_hz
        self._novelty = None if novelty is None else Novelty(n_bands=novelty.n_rows, hop_s=hop_s)
        self._novelty_edges_hz = None if novelty is None else novelty.band_edges_hz()
        spec = None if model is None else model.manifest.inputs.log_mel
        self._model_edges_hz = None if spec is None else spec.band_edges_hz()
        self._waiting: deque[int] = deque()  # first frames of the windows that wait for their second look
        self._tracker = EventTracker(
            source=source, timing=jury.timing, prompt_levels=jury.prompt_levels, confirm_levels=jury.confirm_levels
        )

    @property
    def alarm_active(self) -> bool:
        """Return whether an event is under way."""
        return self._tracker.active

    def seat(self, jury: Jury, model: Model | None) -> None:
        """Go on with other rules, or with another model on the same front end's framing; the past is kept."""
        self._jury, self._model = jury, model
        spec = None if model is None else model.manifest.inputs.log_mel
        self._model_edges_hz = None if spec is None else spec.band_edges_hz()
        self._tracker.retune(timing=jury.timing, prompt_levels=jury.prompt_levels, confirm_levels=jury.confirm_levels)

    def hear(self, window: Window) -> Heard:
        """Look at the input before anybody listens to it."""
        level, fault = self._inspect(window.samples)
        samples = window.samples
        if fault is Fault.NOT_FINITE:  # only the bad samples: the next window shares the good ones
            samples = np.where(np.abs(samples) <= _LOUDEST, samples, np.float32(0.0))
        return Heard(window, samples, level, fault)

    def judge(self, items: Sequence[Heard | Skipped]) -> list[list[Said]]:
        """Say, for each of successive windows and losses, everything there is to say once it is there."""
        told: list[list[Said]] = []
        steps: list[NoveltyStep] = []  # of the sound windows to come, the next one last
        for index, item in enumerate(items):
            if isinstance(item, Skipped):
                told.append(self._skip(item))
            elif item.fault is not None:
                told.append([self._score(item, _Opinions()), *self._miss(1)])
            else:
                if self._novelty is not None and not steps:
                    steps = self._novelty.push_many(_sound_run(items[index:]))[::-1]
                told.append(self._judge(item, steps.pop() if steps else None))
        return told

    def _judge(self, heard: Heard, step: NoveltyStep | None) -> list[Said]:
        opinions = _Opinions()
        events: list[Event] = []
        notices: list[StateNotice] = []
        if self._model is not None:
            opinions.model = self._model_opinion(self._model, heard, events)
        if step is not None:
            self._novelty_opinion(step, heard.window, opinions, events)
            if step.state is not None:
                notices.append(self._notice(step.state, heard.window))
        events += self._tracker.settle(heard.window.end_frame)
        return [self._score(heard, opinions), *events, *notices]

    def _skip(self, skipped: Skipped) -> list[Said]:
        """Take note of frames that nobody heard: events end before them."""
        if skipped.reason is LossReason.TAIL:
            return []  # too short for a window; `finish` follows
        return self._miss(max(1, round(skipped.n_frames / self._grid.hop_frames)))

    def finish(self) -> list[Said]:
        """Say what is left to say at the end of the sound."""
        return self._settle([] if self._novelty is None else self._novelty.flush())

    def _miss(self, n_windows: int) -> list[Said]:
        answers: list[Answer] = []
        if self._novelty is not None:
            answers = self._novelty.skip(n_windows)
            if self._tracker.active:
                answers += self._novelty.flush()
        return self._settle(answers)

    def _settle(self, answers: Sequence[Answer]) -> list[Said]:
        """Give the second looks that are due, and end what cannot go on."""
        events: list[Event] = []
        confirmations = [self._confirm(answer, events) for answer in answers]
        return [*confirmations, *events, *self._tracker.interrupt()]

    def _score(self, heard: Heard, opinions: _Opinions) -> Score:
        window = heard.window
        joined = self._jury.join(None if opinions.warmup else opinions.prompt, opinions.model)
        return Score(
            source=self._source,
            first_frame=window.first_frame,
            n_frames=len(window.samples),
            captured_ns=window.captured_ns,
            score=joined.score,
            p_value=joined.p_value,
            threshold=self._jury.threshold,
            model=opinions.model,
            prompt=opinions.prompt,
            confirmed=opinions.confirmed,
            level=heard.level,
            fault=heard.fault,
            warmup=opinions.warmup,
        )

    def _model_opinion(self, model: Model, heard: Heard, events: list[Event]) -> Opinion:
        assert heard.model_score is not None
        opinion = Opinion(heard.model_score, model.calibration.p_value(heard.model_score))
        if "model" in self._jury.prompt_levels:
            explain = partial(_explain, heard.model_residual, self._model_edges_hz)
            events += self._tracker.prompt("model", _verdict(heard.window, opinion, explain))
        return opinion

    def _novelty_opinion(self, step: NoveltyStep, window: Window, opinions: _Opinions, events: list[Event]) -> None:
        self._waiting.append(window.first_frame)
        opinions.warmup = step.prompt.warmup
        opinions.prompt = Opinion(step.prompt.score, prompt_p_value(step.prompt.score))
        if "novelty" in self._jury.prompt_levels:
            explain = partial(self._explain_answer, step.prompt)
            events += self._tracker.prompt("novelty", _verdict(window, opinions.prompt, explain))
        if step.confirmed is not None:
            opinions.confirmed = self._confirm(step.confirmed, events)

    def _confirm(self, answer: Answer, events: list[Event]) -> Confirmation:
        first_frame = self._waiting.popleft()
        n_frames = self._grid.window_frames
        opinion = Opinion(answer.score, confirmed_p_value(answer.score))
        if self._jury.confirm_levels is not None:
            explain = partial(self._explain_answer, answer)
            events += self._tracker.confirm(Verdict(first_frame, first_frame + n_frames, opinion, explain))
        return Confirmation(first_frame, n_frames, opinion)

    def _explain_answer(self, answer: Answer) -> tuple[Band, ...]:
        return _explain(answer.weight, self._novelty_edges_hz)

    def _notice(self, state: StateChange, window: Window) -> StateNotice:
        began_frame = max(0, window.first_frame - state.windows_ago * self._grid.hop_frames)
        return StateNotice(self._source, began_frame, distance_db=state.distance_db)


@dataclass(slots=True)
class _Opinions:
    """What the judges say of a window, as far as they were asked."""

    model: Opinion | None = None
    prompt: Opinion | None = None
    confirmed: Confirmation | None = None
    warmup: bool = False


def _sound_run(items: Sequence[Heard | Skipped]) -> list[FloatArray]:
    """Return what the second opinion hears of the windows before the first loss or fault."""
    rows: list[FloatArray] = []
    for item in items:
        if isinstance(item, Skipped) or item.fault is not None:
            break
        assert item.novelty_rows is not None
        rows.append(item.novelty_rows)
    return rows


def _verdict(window: Window, opinion: Opinion, explain: Callable[[], tuple[Band, ...]]) -> Verdict:
    return Verdict(window.first_frame, window.end_frame, opinion, explain)


def _explain(weight: FloatArray | None, edges_hz: NDArray[np.float64] | None) -> tuple[Band, ...]:
    return () if weight is None or edges_hz is None else strongest_bands(weight, edges_hz)
