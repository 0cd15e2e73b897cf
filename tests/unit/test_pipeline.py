"""From windows to what is said of them: several sources, any chunking, faults and gaps, with and without a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from edgeasd.assembly import Bench, JudgeOptions, plan_judges, seat_judges
from edgeasd.errors import SettingsError
from edgeasd.records import (
    Confirmation,
    Event,
    EventType,
    Fault,
    FloatArray,
    LossReason,
    Opinion,
    Score,
    Skipped,
    Window,
)
from edgeasd.scoring.jury import AlarmPolicy, By, Grid
from edgeasd.scoring.listener import Said
from edgeasd.scoring.pipeline import Pipeline
from tests.conftest import MakeSoundscape
from tests.small_bundle import write_small_bundle

Items = Sequence[Window | Skipped]
MakeBench = Callable[..., Bench]


@pytest.fixture
def make_bench(tmp_path: Path) -> Iterator[MakeBench]:
    """Seat judges at 8 kHz: the small bundle where `by` is given, windows of 64 ms; else one-second ones at 16 kHz."""
    bundle = write_small_bundle(tmp_path / "small.edgeasd")
    with ExitStack() as stack:

        def make(by: By | None = None, *, novelty: bool = True) -> Bench:
            options = JudgeOptions()
            if by is not None:
                options = JudgeOptions(bundle=bundle, hop_s=0.032, novelty=novelty, policy=AlarmPolicy(by=by))
            return stack.enter_context(seat_judges(plan_judges(options)))

        yield make


def _cut(samples: FloatArray, grid: Grid, *, source: str = "mic0", first_frame: int = 0) -> list[Window]:
    starts = range(0, len(samples) - grid.window_frames + 1, grid.hop_frames)
    return [
        Window(source, first_frame + at, samples[at : at + grid.window_frames].copy(), 0, follows=at > 0)
        for at in starts
    ]


def _plain(told: Sequence[tuple[str, Said]]) -> list[tuple[str, Said]]:
    """Return what was told with identities numbered in order of appearance: they are drawn at random."""
    numbers: dict[str, str] = {}
    return [
        (source, replace(one, event_id=numbers.setdefault(one.event_id, str(len(numbers)))))
        if isinstance(one, Event)
        else (source, one)
        for source, one in told
    ]


def _hear(pipeline: Pipeline, items: Items, *, chunks: Sequence[int] = (64,)) -> list[tuple[str, Said]]:
    told: list[tuple[str, Said]] = []
    start = turn = 0
    while start < len(items):
        stop = start + chunks[turn % len(chunks)]
        told += pipeline.process(items[start:stop])
        start, turn = stop, turn + 1
    for source in dict.fromkeys(item.source for item in items):
        told += [(source, one) for one in pipeline.finish(source)]
    return _plain(told)


def _scores(told: Sequence[tuple[str, Said]]) -> list[Score]:
    return [one for _, one in told if isinstance(one, Score)]


def _events(told: Sequence[tuple[str, Said]]) -> list[Event]:
    return [one for _, one in told if isinstance(one, Event)]


def _confirmations(told: Sequence[tuple[str, Said]]) -> list[Confirmation]:
    """Return the second looks in the order in which they were told."""
    found = [one.confirmed if isinstance(one, Score) else one for _, one in told]
    return [one for one in found if isinstance(one, Confirmation)]


def _ended(told: Sequence[tuple[str, Said]]) -> list[Event]:
    return [event for event in _events(told) if event.event_type is EventType.END and event.confirmed is not False]


def test_a_planted_event_is_told_once_from_start_to_end(make_bench: MakeBench, make_soundscape: MakeSoundscape) -> None:
    bench = make_bench()
    sound = make_soundscape(70.0, events=((45.0, 46.5),))
    told = _hear(bench.pipeline, _cut(sound.samples, bench.grid))
    (event,) = _ended(told)
    assert event.confirmed is True
    assert event.start_frame / bench.grid.rate_hz == pytest.approx(45.0, abs=1.0)
    assert event.end_frame / bench.grid.rate_hz == pytest.approx(46.5, abs=1.5)
    assert event.start_frame <= event.peak_frame < event.end_frame
    assert event.bands
    assert all(0.0 <= band.low_hz < band.high_hz <= 8000.0 for band in event.bands)
    types = [one.event_type for one in _events(told) if one.event_id == event.event_id]
    assert types[0] is EventType.START
    assert types[-1] is EventType.END
    assert set(types[1:-1]) <= {EventType.UPDATE}


@pytest.mark.parametrize("by", [None, "novelty", "model", "either"])
def test_chunking_changes_nothing(make_bench: MakeBench, make_soundscape: MakeSoundscape, by: By | None) -> None:
    rate_hz, duration_s = (16_000, 60.0) if by is None else (8_000, 20.0)
    planted = ((40.0, 41.0),) if by is None else ((18.0, 18.4),)
    sound = make_soundscape(duration_s, rate_hz=rate_hz, events=planted)
    results = []
    for chunks in ((1,), (64,), (3, 1, 7, 2, 20), (10_000,)):
        bench = make_bench(by)
        results.append(_hear(bench.pipeline, _cut(sound.samples, bench.grid), chunks=chunks))
    assert _events(results[0])
    for other in results[1:]:
        assert other == results[0]


@pytest.mark.parametrize("by", [None, "either"])
def test_sources_do_not_touch_each_other(make_bench: MakeBench, make_soundscape: MakeSoundscape, by: By | None) -> None:
    rate_hz, duration_s = (16_000, 60.0) if by is None else (8_000, 18.0)
    planted = {"mic0": ((40.0, 41.0),), "mic1": (), "mic2": ((30.0, 31.5),)} if by is None else dict.fromkeys("abc", ())
    grid = make_bench(by).grid
    items: dict[str, Items] = {}
    for seed, (name, events) in enumerate(planted.items()):
        sound = make_soundscape(duration_s, seed=seed, rate_hz=rate_hz, events=events)
        items[name] = _cut(sound.samples, grid, source=name)
    together: list[Window | Skipped] = [item for row in zip(*items.values(), strict=True) for item in row]
    told = _hear(make_bench(by).pipeline, together, chunks=(5, 64, 1, 13))
    for name, own in items.items():
        alone = _hear(make_bench(by).pipeline, own)
        assert _plain([(source, one) for source, one in told if source == name]) == alone


def test_what_is_said_comes_in_order(make_bench: MakeBench, make_soundscape: MakeSoundscape) -> None:
    bench = make_bench()
    windows = _cut(make_soundscape(60.0, events=((30.0, 31.0), (45.0, 46.0))).samples, bench.grid)
    told = _hear(bench.pipeline, windows, chunks=(17,))
    assert [score.first_frame for score in _scores(told)] == [window.first_frame for window in windows]
    known = -1
    under_way: set[str] = set()
    for _, one in told:
        if isinstance(one, Score):
            known = one.first_frame + one.n_frames
        elif isinstance(one, Event):
            assert one.end_frame <= known, "an event is told after the score of its last window"
            assert (one.event_type is EventType.START) == (one.event_id not in under_way)
            under_way.add(one.event_id)
            if one.event_type is EventType.END:
                under_way.remove(one.event_id)
    assert not under_way, "every event that starts ends"


def test_every_valid_window_gets_one_second_look_in_order(
    make_bench: MakeBench, make_soundscape: MakeSoundscape
) -> None:
    bench = make_bench()
    samples = make_soundscape(60.0, events=((33.0, 34.0),)).samples.copy()
    samples[12 * 16_000 : 14 * 16_000] = 0.0  # a short hole and a long one
    samples[40 * 16_000 : 48 * 16_000] = np.nan
    told = _hear(bench.pipeline, _cut(samples, bench.grid), chunks=(9,))
    valid = [score.first_frame for score in _scores(told) if score.valid]
    assert len(valid) < len(_scores(told))
    assert [one.first_frame for one in _confirmations(told)] == valid


@pytest.mark.parametrize(
    ("fault", "spoil"),
    [
        (Fault.NOT_FINITE, lambda samples: samples * np.float32(np.nan)),
        (Fault.NOT_FINITE, lambda samples: samples * np.float32(np.inf)),
        (Fault.NOT_FINITE, lambda samples: samples * np.float32(1e30)),
        (Fault.DEAD, lambda samples: samples * np.float32(0.0)),
        (Fault.CONSTANT, lambda samples: np.full_like(samples, 0.25)),
        (Fault.CLIPPED, lambda samples: np.clip(samples * np.float32(100.0), -1.0, 1.0)),
    ],
)
def test_a_faulty_input_is_measured_but_never_judged(
    make_bench: MakeBench, make_soundscape: MakeSoundscape, fault: Fault, spoil: Callable[[FloatArray], FloatArray]
) -> None:
    for by in (None, "either"):
        bench = make_bench(by)
        rate_hz = bench.grid.rate_hz
        samples = make_soundscape(30.0, rate_hz=rate_hz).samples.copy()
        spoilt = slice(22 * rate_hz, 26 * rate_hz)
        samples[spoilt] = spoil(samples[spoilt])
        scores = _scores(_hear(bench.pipeline, _cut(samples, bench.grid)))
        inside = [s for s in scores if spoilt.start <= s.first_frame and s.first_frame + s.n_frames <= spoilt.stop]
        assert inside
        assert {score.fault for score in inside} == {fault}
        for score in (score for score in scores if not score.valid):
            assert score.model is score.prompt is None
            assert (score.score, score.p_value) == (0.0, 1.0)
        assert all(np.isfinite([score.score, score.level.rms_dbfs]).all() for score in scores)
        assert scores[-1].valid


def test_no_event_is_made_of_samples_that_are_no_numbers(
    make_bench: MakeBench, make_soundscape: MakeSoundscape
) -> None:
    bench = make_bench()
    samples = make_soundscape(60.0).samples.copy()
    samples[40 * 16_000 + 3000] = np.nan
    assert _events(_hear(bench.pipeline, _cut(samples, bench.grid))) == []


def test_windows_behind_a_broken_sample_are_judged_by_their_own_sound(
    make_bench: MakeBench, make_soundscape: MakeSoundscape
) -> None:
    clean = make_soundscape(2.0, rate_hz=8_000).samples
    spoilt = clean.copy()
    spoilt[4_000] = np.nan
    opinions = []
    for samples in (clean, spoilt):
        bench = make_bench("model", novelty=False)
        scores = _scores(_hear(bench.pipeline, _cut(samples, bench.grid), chunks=(7,)))
        opinions.append({score.first_frame: score.model for score in scores if score.valid})
    assert len(opinions[0]) - len(opinions[1]) == 2
    assert opinions[1] == {first: opinions[0][first] for first in opinions[1]}


def _with_gap(samples: FloatArray, grid: Grid, *, at_s: float, gap_s: float) -> Items:
    at, resume = (round(seconds * grid.rate_hz) for seconds in (at_s, at_s + gap_s))
    return [
        *_cut(samples[:at], grid),
        Skipped("mic0", at, resume - at, LossReason.DEVICE_ABSENT),
        *_cut(samples[resume:], grid, first_frame=resume),
    ]


@pytest.mark.parametrize("gap_s", [0.1, 2.0, 20.0])
def test_a_gap_keeps_the_past(make_bench: MakeBench, make_soundscape: MakeSoundscape, gap_s: float) -> None:
    bench = make_bench()
    sound = make_soundscape(80.0, events=((65.0, 66.0),)).samples
    told = _hear(bench.pipeline, _with_gap(sound, bench.grid, at_s=40.0, gap_s=gap_s))
    behind = [score for score in _scores(told) if score.first_frame >= 40 * 16_000]
    assert behind
    assert not any(score.warmup for score in behind)
    assert len(_ended(told)) == 1
    assert _ended(told)[0].start_frame / 16_000 == pytest.approx(65.0, abs=1.0)
    assert [one.first_frame for one in _confirmations(told)] == [score.first_frame for score in _scores(told)]


@pytest.mark.parametrize("gap_s", [0.2, 1.0, 10.0])
def test_an_event_cut_off_by_a_gap_is_told_once(
    make_bench: MakeBench, make_soundscape: MakeSoundscape, gap_s: float
) -> None:
    bench = make_bench()
    sound = make_soundscape(70.0, events=((45.0, 46.5),)).samples
    told = _hear(bench.pipeline, _with_gap(sound, bench.grid, at_s=48.0, gap_s=gap_s))
    assert len(_ended(told)) == 1
    assert not bench.pipeline.alarm_active("mic0")


def test_an_event_shortly_before_the_end_of_a_recording_is_told_once(
    make_bench: MakeBench, make_soundscape: MakeSoundscape
) -> None:
    sound = make_soundscape(60.0, events=((55.0, 56.5),)).samples
    told = []
    for tail_frames in (0, 1600):
        bench = make_bench()
        items: list[Window | Skipped] = [*_cut(sound, bench.grid)]
        if tail_frames:
            items.append(Skipped("mic0", len(sound), tail_frames, LossReason.TAIL))
        told.append(_hear(bench.pipeline, items))
    assert len(_ended(told[0])) == 1
    assert _ended(told[0])[0].confirmed is True
    assert _events(told[1]) == _events(told[0]), "frames that filled no window change nothing"


def test_events_do_not_reach_across_a_gap(make_bench: MakeBench, make_soundscape: MakeSoundscape) -> None:
    bench = make_bench()
    sound = make_soundscape(80.0, events=((46.0, 54.0),)).samples
    told = _hear(bench.pipeline, _with_gap(sound, bench.grid, at_s=48.0, gap_s=4.0))
    for event in _events(told):
        assert event.end_frame <= 48 * 16_000 or event.start_frame >= 52 * 16_000


def test_a_source_that_has_finished_is_forgotten(make_bench: MakeBench, make_soundscape: MakeSoundscape) -> None:
    bench = make_bench()
    windows = _cut(make_soundscape(40.0, events=((38.0, 39.9),)).samples, bench.grid)
    first = _hear(bench.pipeline, windows)
    assert not bench.pipeline.alarm_active("mic0")
    assert bench.pipeline.finish("mic0") == []
    assert _hear(bench.pipeline, windows) == first


def test_nothing_to_judge_says_nothing(make_bench: MakeBench) -> None:
    bench = make_bench()
    assert bench.pipeline.process([]) == []
    assert bench.pipeline.finish("never heard of") == []
    assert not bench.pipeline.alarm_active("never heard of")
    assert bench.pipeline.process([Skipped("mic0", 0, 100, LossReason.OVERRUN)]) == []


def test_the_alarm_is_active_from_start_to_end(make_bench: MakeBench, make_soundscape: MakeSoundscape) -> None:
    bench = make_bench()
    under_way: set[str] = set()
    seen = set()
    for window in _cut(make_soundscape(60.0, events=((40.0, 41.5),)).samples, bench.grid):
        for event in _events(bench.pipeline.process([window])):
            under_way ^= {event.event_id} if event.event_type is not EventType.UPDATE else set()
        assert bench.pipeline.alarm_active("mic0") == bool(under_way)
        seen.add(bool(under_way))
    assert seen == {False, True}


def test_the_threshold_is_where_events_start(make_bench: MakeBench, make_soundscape: MakeSoundscape) -> None:
    bench = make_bench()
    told = _hear(bench.pipeline, _cut(make_soundscape(60.0, events=((40.0, 41.5),)).samples, bench.grid))
    over = [score for score in _scores(told) if score.score >= score.threshold]
    prompt = [event for event in _events(told) if event.event_type is EventType.START and event.confirmed is None]
    assert {score.threshold for score in _scores(told)} == {bench.pipeline.threshold("mic0")}
    assert prompt
    assert over[0].first_frame + over[0].n_frames == prompt[0].end_frame


def test_a_model_alone_says_what_it_thinks(make_bench: MakeBench, make_soundscape: MakeSoundscape) -> None:
    bench = make_bench("model", novelty=False)
    assert not bench.pipeline.confirms
    told = _hear(bench.pipeline, _cut(make_soundscape(3.0, rate_hz=8_000).samples, bench.grid))
    for score in _scores(told):
        assert isinstance(score.model, Opinion)
        assert score.prompt is None
        assert score.confirmed is None
        assert not score.warmup
        assert score.p_value == score.model.p_value
    assert all(event.confirmed is None for event in _events(told))
    assert all(event.bands for event in _events(told))  # from the residual of the model's own rows


def test_either_hears_both(make_bench: MakeBench, make_soundscape: MakeSoundscape) -> None:
    bench = make_bench("either")
    told = _hear(bench.pipeline, _cut(make_soundscape(18.0, rate_hz=8_000).samples, bench.grid))
    for score in _scores(told):
        assert score.model is not None
        assert score.prompt is not None
        smallest = min(score.model.p_value, score.prompt.p_value)
        expected = score.model.p_value if score.warmup else min(1.0, 2.0 * smallest)
        assert score.p_value == pytest.approx(expected)
    first_judged = [score.warmup for score in _scores(told)].index(False)
    assert all(before.warmup >= after.warmup for before, after in pairwise(_scores(told)))
    assert first_judged * bench.grid.hop_frames / bench.grid.rate_hz == pytest.approx(16.0, abs=4.0)


def test_a_threshold_of_its_own_moves_the_events_of_one_source(
    make_bench: MakeBench, make_soundscape: MakeSoundscape
) -> None:
    bench = make_bench()
    sound = make_soundscape(60.0, events=((40.0, 41.5),)).samples
    usual = bench.pipeline.threshold("mic0")
    bench.pipeline.set_threshold("deaf", 30.0)
    assert bench.pipeline.threshold("deaf") == pytest.approx(30.0, abs=0.01)
    assert bench.pipeline.threshold("mic0") == usual
    windows = [*_cut(sound, bench.grid), *_cut(sound, bench.grid, source="deaf")]
    told = _hear(bench.pipeline, windows)
    prompt = {source for source, one in told if isinstance(one, Event) and one.confirmed is None}
    assert prompt == {"mic0"}
    bench.pipeline.set_threshold("deaf", None)
    assert bench.pipeline.threshold("deaf") == usual


def test_another_policy_counts_from_the_next_window_and_keeps_the_past(
    make_bench: MakeBench, make_soundscape: MakeSoundscape
) -> None:
    bench = make_bench()
    windows = _cut(make_soundscape(60.0, events=((40.0, 41.5),)).samples, bench.grid)
    half = next(i for i, window in enumerate(windows) if window.first_frame >= 30 * bench.grid.rate_hz)
    before = _scores(bench.pipeline.process(windows[:half]))
    bench.pipeline.set_policy(AlarmPolicy(false_alarms_per_hour=1e-6))
    after = bench.pipeline.process(windows[half:])
    assert {score.threshold for score in before} != {score.threshold for score in _scores(after)}
    assert not any(score.warmup for score in _scores(after))
    assert not _events(after)


def test_a_policy_that_names_an_absent_judge_changes_nothing(make_bench: MakeBench) -> None:
    bench = make_bench()
    usual = bench.pipeline.threshold("mic0")
    with pytest.raises(SettingsError, match="needs a bundle"):
        bench.pipeline.set_policy(AlarmPolicy(false_alarms_per_hour=1.0, by="model"))
    assert bench.pipeline.threshold("mic0") == usual


def test_another_model_goes_on_with_the_same_past(make_bench: MakeBench, make_soundscape: MakeSoundscape) -> None:
    bench, other = make_bench("either"), make_bench("either")
    model = other.pipeline._model
    assert model is not None
    windows = _cut(make_soundscape(40.0, rate_hz=8_000).samples, bench.grid)
    whole = _plain(other.pipeline.process(windows))
    told = bench.pipeline.process(windows[:900])
    bench.pipeline.set_model(model)
    told += bench.pipeline.process(windows[900:])
    assert _plain(told) == whole  # the other model is the same one
