"""How the judges' opinions are joined, and from which opinion on an event starts."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from edgeasd.bundle import Manifest
from edgeasd.engine import Engine
from edgeasd.errors import SettingsError
from edgeasd.records import Opinion
from edgeasd.scoring.alarm import Levels, Timing, surprise
from edgeasd.scoring.calibration import Calibration
from edgeasd.scoring.novelty_levels import confirmed_levels, prompt_levels

By = Literal["auto", "novelty", "model", "either"]

_LEAVE_P_RATIO = 10.0
"""A model's lane stays open while its p-value is at most this many times the one it opens at."""
_BUDGET_RANGE_PER_HOUR = (1e-40, 3600.0)
_HALVINGS = 60


@dataclass(frozen=True, slots=True)
class Grid:
    """How sound is cut into windows, in frames at the model rate."""

    rate_hz: int
    window_frames: int
    hop_frames: int


@dataclass(frozen=True, slots=True)
class AlarmPolicy:
    """Who may start an event, and how often without cause."""

    false_alarms_per_hour: float = 12.0
    by: By = "auto"
    release_s: float = 3.0
    merge_s: float = 2.0
    update_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Model:
    """A bundle in use: the engine that runs it, what it wants to hear, and what its scores mean."""

    engine: Engine
    manifest: Manifest
    calibration: Calibration


@dataclass(frozen=True, slots=True)
class Jury:
    """The rules of judgement, the same for every source."""

    by: Literal["novelty", "model", "either"]
    prompt_levels: dict[str, Levels]
    confirm_levels: Levels | None
    threshold: float
    """The joined score, -log10 p, at which an event starts at once."""
    timing: Timing

    def join(self, novelty: Opinion | None, model: Opinion | None) -> Opinion:
        """Return the joined opinion: its score is -log10 of its p-value.

        With `either` the smaller p-value counts, doubled because two were looked at (Bonferroni). Otherwise the one who
        leads is heard, and the other one only while the leader has nothing to say.
        """
        if self.by == "either" and novelty is not None and model is not None:
            p_value = min(1.0, 2.0 * min(novelty.p_value, model.p_value))
        else:
            first, second = (model, novelty) if self.by == "model" else (novelty, model)
            leader = first or second
            p_value = 1.0 if leader is None else leader.p_value
        return Opinion(score=surprise(p_value), p_value=p_value)


def swear_in(grid: Grid, *, model: Model | None, has_novelty: bool, policy: AlarmPolicy) -> Jury:
    """Turn a policy into levels; SettingsError when it names a judge who is not there."""
    by = policy.by
    if by == "auto":
        by = "novelty" if has_novelty else "model"
    if by != "novelty" and model is None:
        raise SettingsError(f"alarm.by: {policy.by} needs a bundle")
    if by != "model" and not has_novelty:
        raise SettingsError(f"alarm.by: {policy.by} needs novelty.enabled")
    per_hour = policy.false_alarms_per_hour / (2.0 if by == "either" else 1.0)
    prompt: dict[str, Levels] = {}
    thresholds: list[float] = []
    if by != "model":
        prompt["novelty"], p_value = prompt_levels(per_hour)
        thresholds.append(surprise(p_value))
    if by != "novelty" and model is not None:
        prompt["model"], p_value = _model_levels(grid, model, per_hour)
        thresholds.append(surprise(p_value))
    return Jury(
        by=by,
        prompt_levels=prompt,
        confirm_levels=None if by == "model" else confirmed_levels(per_hour),
        threshold=min(thresholds) - (math.log10(2.0) if by == "either" else 0.0),
        timing=Timing(
            release_frames=round(policy.release_s * grid.rate_hz),
            merge_frames=round(policy.merge_s * grid.rate_hz),
            update_frames=round(policy.update_s * grid.rate_hz),
        ),
    )


def policy_at(
    threshold: float, grid: Grid, *, model: Model | None, has_novelty: bool, policy: AlarmPolicy
) -> AlarmPolicy:
    """Return `policy` with the budget at which an event starts at once from the score `threshold` on.

    Levels fall as the budget grows, so that the budget is found by halving; where no budget gives the threshold, the
    nearest one that there is.
    """
    low, high = _BUDGET_RANGE_PER_HOUR
    for _ in range(_HALVINGS):
        middle = math.sqrt(low * high)
        tried = replace(policy, false_alarms_per_hour=middle)
        if swear_in(grid, model=model, has_novelty=has_novelty, policy=tried).threshold > threshold:
            low = middle
        else:
            high = middle
    return replace(policy, false_alarms_per_hour=high)


def _model_levels(grid: Grid, model: Model, per_hour: float) -> tuple[Levels, float]:
    """Return the levels that keep a model to `per_hour` false alarms, and the p-value of the upper one."""
    p_value = model.calibration.p_for_alarms(24.0 * per_hour, hop_s=grid.hop_frames / grid.rate_hz)
    p_value = min(0.5, p_value)
    score_at = model.calibration.score_at
    return Levels(enter=score_at(p_value), leave=score_at(min(0.9, _LEAVE_P_RATIO * p_value))), p_value
