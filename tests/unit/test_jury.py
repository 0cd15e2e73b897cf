"""Who is heard, how opinions are joined, and at which level an event starts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeasd.bundle import read_bundle
from edgeasd.engine import open_engine
from edgeasd.errors import SettingsError
from edgeasd.records import Opinion
from edgeasd.scoring.alarm import Levels, surprise
from edgeasd.scoring.calibration import Calibration
from edgeasd.scoring.jury import AlarmPolicy, By, Grid, Jury, Model, swear_in
from edgeasd.scoring.novelty_levels import prompt_p_value
from tests.small_bundle import SPEC, WINDOW_FRAMES, write_small_bundle

GRID = Grid(SPEC.sample_rate_hz, WINDOW_FRAMES, 256)
RARE, COMMON = Opinion(9.0, 1e-5), Opinion(1.0, 0.5)


@pytest.fixture
def model(tmp_path: Path) -> Iterator[Model]:
    bundle = read_bundle(write_small_bundle(tmp_path / "small.edgeasd"))
    engine = open_engine(bundle, "onnx")
    yield Model(engine=engine, manifest=bundle.manifest, calibration=Calibration(bundle.manifest.calibration))
    engine.close()


def _jury(by: By, model: Model | None, *, per_hour: float = 12.0, has_novelty: bool = True) -> Jury:
    policy = AlarmPolicy(false_alarms_per_hour=per_hour, by=by)
    return swear_in(GRID, model=model, has_novelty=has_novelty, policy=policy)


@pytest.mark.parametrize(
    ("by", "novelty", "other", "p_value"),
    [
        ("novelty", RARE, COMMON, 1e-5),
        ("novelty", COMMON, RARE, 0.5),
        ("novelty", None, RARE, 1e-5),
        ("novelty", RARE, None, 1e-5),
        ("model", RARE, COMMON, 0.5),
        ("model", COMMON, RARE, 1e-5),
        ("model", RARE, None, 1e-5),
        ("either", RARE, COMMON, 2e-5),
        ("either", COMMON, RARE, 2e-5),
        ("either", COMMON, COMMON, 1.0),
        ("either", RARE, None, 1e-5),
        ("either", None, RARE, 1e-5),
        ("either", None, None, 1.0),
        ("novelty", None, None, 1.0),
    ],
)
def test_opinions_are_joined(
    model: Model, by: By, novelty: Opinion | None, other: Opinion | None, p_value: float
) -> None:
    joined = _jury(by, model).join(novelty, other)
    assert joined.p_value == pytest.approx(p_value)
    assert joined.score == pytest.approx(surprise(p_value))


def test_auto_takes_the_second_opinion_where_there_is_one(model: Model) -> None:
    assert _jury("auto", model).by == "novelty"
    assert _jury("auto", None).by == "novelty"
    assert _jury("auto", model, has_novelty=False).by == "model"


@pytest.mark.parametrize("by", ["model", "either"])
def test_a_judge_without_a_bundle_is_refused(by: By) -> None:
    with pytest.raises(SettingsError, match=rf"alarm\.by: {by} needs a bundle"):
        _jury(by, None)


@pytest.mark.parametrize("by", ["novelty", "either"])
def test_a_judge_who_is_switched_off_is_refused(model: Model, by: By) -> None:
    with pytest.raises(SettingsError, match=rf"alarm\.by: {by} needs novelty\.enabled"):
        _jury(by, model, has_novelty=False)


def test_each_judge_has_a_lane_of_its_own(model: Model) -> None:
    assert set(_jury("novelty", model).prompt_levels) == {"novelty"}
    assert set(_jury("either", model).prompt_levels) == {"novelty", "model"}
    only_model = _jury("model", model)
    assert set(only_model.prompt_levels) == {"model"}
    assert only_model.confirm_levels is None  # there is no second look at a model's scores
    assert _jury("novelty", None).confirm_levels is not None


@pytest.mark.parametrize("by", ["novelty", "model", "either"])
def test_a_smaller_budget_raises_every_level(model: Model, by: By) -> None:
    tight, loose = _jury(by, model, per_hour=0.5), _jury(by, model, per_hour=30.0)
    assert tight.threshold > loose.threshold
    for name, levels in tight.prompt_levels.items():
        assert levels.enter > loose.prompt_levels[name].enter
    if tight.confirm_levels is not None and loose.confirm_levels is not None:
        assert tight.confirm_levels.enter > loose.confirm_levels.enter


@pytest.mark.parametrize("by", ["novelty", "model", "either"])
@pytest.mark.parametrize("per_hour", [1 / 168, 1 / 24, 1.0, 12.0, 600.0])
def test_every_lane_closes_below_where_it_opens(model: Model, by: By, per_hour: float) -> None:
    jury = _jury(by, model, per_hour=per_hour)
    lanes: list[Levels] = [*jury.prompt_levels.values()]
    assert all(levels.leave < levels.enter for levels in lanes)


@pytest.mark.parametrize("by", ["novelty", "model"])
def test_an_event_starts_where_the_joined_score_meets_the_threshold(model: Model, by: By) -> None:
    jury = _jury(by, model)
    assert jury.join(*_at_the_level(jury, model)).score == pytest.approx(jury.threshold)


@pytest.mark.parametrize("lane", ["novelty", "model"])
def test_a_window_that_starts_an_event_reaches_the_threshold_of_either(model: Model, lane: str) -> None:
    jury = _jury("either", model)
    novelty, other = _at_the_level(jury, model)
    opinions = (novelty, Opinion(0.0, 1.0)) if lane == "novelty" else (Opinion(0.0, 1.0), other)
    assert jury.join(*opinions).score >= jury.threshold - 1e-9


def _at_the_level(jury: Jury, model: Model) -> tuple[Opinion | None, Opinion | None]:
    """Return the opinions of a window at which the lanes just open."""
    novelty = other = None
    if "novelty" in jury.prompt_levels:
        enter = jury.prompt_levels["novelty"].enter
        novelty = Opinion(enter, prompt_p_value(enter))
    if "model" in jury.prompt_levels:
        enter = jury.prompt_levels["model"].enter
        other = Opinion(enter, model.calibration.p_value(enter))
    return novelty, other


def test_either_halves_the_budget_of_each(model: Model) -> None:
    both, alone = _jury("either", model, per_hour=12.0), _jury("model", model, per_hour=6.0)
    assert both.prompt_levels["model"] == alone.prompt_levels["model"]


def test_times_become_frames(model: Model) -> None:
    policy = AlarmPolicy(release_s=1.5, merge_s=0.25, update_s=7.0)
    timing = swear_in(GRID, model=model, has_novelty=True, policy=policy).timing
    assert (timing.release_frames, timing.merge_frames, timing.update_frames) == (12_000, 2_000, 56_000)
