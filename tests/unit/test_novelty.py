"""The untrained judge, on a soundscape made here: what it must notice, and what it must not."""

from __future__ import annotations

import sys
from collections import deque
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeasd.features.mel import MelFrontEnd
from edgeasd.scoring.novelty import LOOK_AHEAD_S, NOVELTY_SPEC, Novelty
from edgeasd.scoring.novelty_parts import Answer
from edgeasd.scoring.novelty_state import StateChange

RATE_HZ = 16000
BURSTS_S = (70.3, 91.0, 118.6, 139.2, 161.7)
STATE_S = 185.0
LAST_BURST_S = 229.4
LENGTH_S = 240


def soundscape() -> np.ndarray:
    """Noise whose level drifts, six bursts of different kinds, and a hum that starts at STATE_S and stays."""
    rng = np.random.default_rng(11)
    time_s = np.arange(LENGTH_S * RATE_HZ) / RATE_HZ
    drift_db = 3.0 * np.sin(2 * np.pi * time_s / 97.0)
    sound = 0.01 * 10 ** (drift_db / 20) * rng.standard_normal(len(time_s))
    sound[1:] += 0.7 * sound[:-1]
    for i, onset_s in enumerate((*BURSTS_S, LAST_BURST_S)):
        n = int((0.4 + 0.3 * i) * RATE_HZ)
        first, t = int(onset_s * RATE_HZ), np.arange(n) / RATE_HZ
        chirp = np.sin(2 * np.pi * (500.0 * (i + 1) + 300.0 * i * t) * t)
        burst = chirp if i % 2 else chirp * (np.sin(2 * np.pi * 9.0 * t) > 0)
        sound[first : first + n] += 0.03 * np.hanning(n) * burst
    hum = sum(np.sin(2 * np.pi * 120.0 * k * time_s) / k for k in range(1, 12))
    sound += np.where(time_s >= STATE_S, 0.02, 0.0) * hum
    return sound.astype(np.float32)


@cache
def log_mels(hop_frames: int = 8000) -> list[np.ndarray]:
    """The soundscape as windows of log mel, each (38, 32)."""
    sound = soundscape()
    rows = MelFrontEnd(NOVELTY_SPEC).window_log_mel(sound).T
    step = hop_frames // NOVELTY_SPEC.hop_frames
    count = (len(sound) - RATE_HZ) // hop_frames + 1
    return [rows[i * step : i * step + 38] for i in range(count)]


@dataclass
class Told:
    prompt: list[Answer]
    confirmed: list[Answer]
    states: list[tuple[int, StateChange]]

    def scores(self) -> tuple[np.ndarray, np.ndarray]:
        return np.array([a.score for a in self.prompt]), np.array([a.score for a in self.confirmed])


def listen(windows: list[np.ndarray], *, hop_s: float = 0.5, novelty: Novelty | None = None) -> Told:
    novelty = novelty or Novelty(hop_s=hop_s)
    told = Told([], [], [])
    for i, window in enumerate(windows):
        step = novelty.push(window)
        told.prompt.append(step.prompt)
        told.confirmed.extend([] if step.confirmed is None else [step.confirmed])
        told.states.extend([] if step.state is None else [(i, step.state)])
    told.confirmed.extend(novelty.flush())
    return told


@pytest.fixture(scope="module")
def told() -> Told:
    return listen(log_mels())


def near(count: int, hop_s: float, *moments_s: float, margin_s: float = 3.0) -> np.ndarray:
    """Which windows lie near one of the moments."""
    start_s = np.arange(count) * hop_s
    held: np.ndarray = np.any([(start_s + 1.0 > m - 0.5) & (start_s < m + margin_s) for m in moments_s], axis=0)
    return held


@pytest.mark.parametrize("hop_s", [0.25, 0.5, 1.0])
def test_bursts_rank_above_everything_else_confirmed(hop_s: float) -> None:
    windows = log_mels(round(hop_s * RATE_HZ))
    _, confirmed = listen(windows, hop_s=hop_s).scores()
    bursts = [confirmed[near(len(windows), hop_s, b)].max() for b in (*BURSTS_S, LAST_BURST_S)]
    others = confirmed[~near(len(windows), hop_s, *BURSTS_S, LAST_BURST_S)]
    assert min(bursts) > 1.3 * others.max()


def test_bursts_and_the_onset_of_a_state_stand_out_at_once(told: Told) -> None:
    prompt, _ = told.scores()
    news = [prompt[near(len(prompt), 0.5, moment)].max() for moment in (*BURSTS_S, STATE_S, LAST_BURST_S)]
    others = prompt[~near(len(prompt), 0.5, *BURSTS_S, LAST_BURST_S, STATE_S, margin_s=8.0)]
    assert min(news) > 1.5 * others.max()


def test_a_lasting_state_is_prompt_news_but_no_confirmed_event(told: Told) -> None:
    prompt, confirmed = told.scores()
    onset = near(len(prompt), 0.5, STATE_S)
    burst = near(len(prompt), 0.5, BURSTS_S[0])
    assert prompt[onset].max() > prompt[burst].max()
    assert confirmed[onset].max() < 0.7 * confirmed[burst].max()


def test_a_new_state_is_told_once_and_its_beginning_is_found(told: Told) -> None:
    assert len(told.states) == 1
    index, change = told.states[0]
    began_s = (index - change.windows_ago) * 0.5
    assert abs(began_s - STATE_S) <= 1.5
    assert index * 0.5 + 1.0 - STATE_S < 12.0
    assert change.distance_db > 4.0


def test_a_state_that_returns_is_no_news() -> None:
    windows = log_mels()
    quiet, hum = windows[100:140], windows[400:440]
    novelty = Novelty()
    listen(windows[:120] + hum, novelty=novelty)
    assert listen(quiet * 2 + hum * 2 + quiet * 2, novelty=novelty).states == []


def test_every_window_gets_one_second_look_in_order_and_six_seconds_later(told: Told) -> None:
    assert len(told.confirmed) == len(log_mels())
    novelty = Novelty()
    assert novelty.look_ahead * 0.5 == LOOK_AHEAD_S
    looks = [novelty.push(window).confirmed for window in log_mels()[:200]]
    assert all((look is None) == (i < novelty.look_ahead) for i, look in enumerate(looks))
    assert [look.score for look in looks[novelty.look_ahead :] if look] == [a.score for a in told.confirmed[:188]]


def test_the_end_of_a_recording_is_judged_by_what_future_there_is() -> None:
    windows = log_mels()[: int(2 * (BURSTS_S[1] + 2.0))]
    _, confirmed = listen(windows).scores()
    assert len(confirmed) == len(windows)
    assert confirmed.argmax() in np.flatnonzero(near(len(windows), 0.5, *BURSTS_S[:2]))
    assert confirmed[near(len(windows), 0.5, BURSTS_S[1])].max() > 3.0


def test_a_recording_shorter_than_the_look_ahead_is_answered_too() -> None:
    told = listen(log_mels()[:5])
    assert len(told.confirmed) == 5
    assert all(answer.warmup and answer.score == 0.0 for answer in told.prompt + told.confirmed)


def test_nothing_is_said_while_too_little_past_is_known(told: Told) -> None:
    for answers in (told.prompt, told.confirmed):
        assert [answer.warmup for answer in answers[:40]] == [True] * 32 + [False] * 8
        assert all(answer.score > 0.0 for answer in answers[32:])


def test_a_short_hole_is_bridged_and_a_long_one_settles_what_waits() -> None:
    novelty = Novelty()
    listen(log_mels()[:60], novelty=novelty)
    for window in log_mels()[60:80]:
        novelty.push(window)
    assert novelty.n_waiting == 12
    assert novelty.skip(3) == []
    assert novelty.skip(3) == []
    assert len(novelty.skip(1)) == 12
    assert novelty.n_waiting == 0
    assert novelty.skip(50) == []


def test_single_missing_windows_never_add_up() -> None:
    novelty = Novelty()
    for window in log_mels()[:40]:
        novelty.push(window)
        assert novelty.skip(1) == []


def test_the_past_survives_a_hole() -> None:
    windows = log_mels()
    novelty = Novelty()
    listen(windows[:130], novelty=novelty)
    novelty.skip(600)
    after = listen(windows[100:139], novelty=novelty)
    assert not any(answer.warmup for answer in after.prompt + after.confirmed)
    assert max(answer.score for answer in after.prompt) < 2.5
    assert after.states == []


def test_what_was_skipped_is_not_remembered() -> None:
    windows = log_mels()
    burst = np.flatnonzero(near(len(windows), 0.5, BURSTS_S[0]))
    fresh, spared = Novelty(), Novelty()
    listen(windows[:130], novelty=fresh)
    listen(windows[:130], novelty=spared)
    spared.skip(len(burst))
    probe = [windows[i] for i in burst]
    np.testing.assert_array_equal(listen(probe, novelty=fresh).scores(), listen(probe, novelty=spared).scores())


def test_a_sound_heard_before_is_less_of_a_novelty() -> None:
    windows = log_mels()
    ordinary, burst = windows[80:130], [windows[i] for i in range(277, 283)]
    novelty = Novelty()
    listen(windows[:130], novelty=novelty)
    peaks = []
    for _ in range(3):
        prompt, confirmed = listen(burst + ordinary, novelty=novelty).scores()
        peaks.append((prompt.max(), confirmed.max()))
    assert peaks[1][0] < 0.75 * peaks[0][0]
    assert peaks[1][1] < 0.9 * peaks[0][1]
    assert peaks[2][0] < 1.1 * peaks[1][0]


def test_the_reason_lies_in_the_band_of_the_burst(told: Told) -> None:
    edges_hz = NOVELTY_SPEC.band_edges_hz()
    prompt, confirmed = told.scores()
    window = near(len(prompt), 0.5, BURSTS_S[3])  # a chirp from 2000 Hz upwards by 1 kHz in a second
    for answers, scores in ((told.prompt, prompt), (told.confirmed, confirmed)):
        answer = answers[int(np.flatnonzero(window)[scores[window].argmax()])]
        assert answer.weight.shape == (32,)
        assert answer.weight.min() >= 0.0
        assert answer.weight.sum() == pytest.approx(1.0, abs=1e-5)
        low_hz, high_hz = edges_hz[int(answer.weight.argmax())]
        assert high_hz > 1800.0
        assert low_hz < 4200.0


def test_digital_silence_is_answered_and_the_sound_after_it_is_news() -> None:
    silence = np.full((38, 32), -80.0, np.float32)
    told = listen([silence] * 80 + log_mels()[:3])
    assert max(answer.score for answer in told.prompt[:80] + told.confirmed[:68]) <= 1.0
    assert all(np.isfinite(answer.score) for answer in told.prompt + told.confirmed)
    assert told.prompt[-3].score > 5.0
    assert not told.prompt[60].weight.any()


def test_an_answer_without_reasons_explains_nothing() -> None:
    assert not Answer(0.0, warmup=True).weight.any()


def hear_in_pieces(windows: list[np.ndarray], sizes: list[int], holes: dict[int, int]) -> list[tuple[Any, ...]]:
    """Everything said of windows that come in batches of `sizes`, over and over, with so many missing before some."""
    novelty = Novelty()
    said: list[tuple[Any, ...]] = []
    first = turn = 0
    while first < len(windows):
        if first in holes:
            said += [("skipped", answer.score) for answer in novelty.skip(holes[first])]
        next_hole = min((hole for hole in holes if hole > first), default=len(windows))
        stop = min(next_hole, first + sizes[turn % len(sizes)])
        for step in novelty.push_many([window.T for window in windows[first:stop]]):
            confirmed = None if step.confirmed is None else (step.confirmed.score, step.confirmed.weight.tolist())
            said.append((step.prompt.score, step.prompt.weight.tolist(), confirmed, step.state))
        first, turn = stop, turn + 1
    return said + [("left", answer.score) for answer in novelty.flush()]


@settings(max_examples=10, deadline=None)
@given(
    st.lists(st.integers(1, 70), min_size=1, max_size=8),
    st.dictionaries(st.integers(1, 200), st.integers(1, 15), max_size=4),
)
def test_what_is_said_does_not_depend_on_how_many_windows_come_at_once(sizes: list[int], holes: dict[int, int]) -> None:
    rng = np.random.default_rng(8)
    odd = [(9.0 * rng.standard_normal((1, 32)) + rng.standard_normal((38, 32))).astype(np.float32) for _ in range(60)]
    windows = log_mels()[100:240] + odd  # sounds that return, and such as are all remembered
    assert hear_in_pieces(windows, sizes, holes) == hear_in_pieces(windows, [1], holes)


def test_scores_are_those_that_the_levels_were_found_with(told: Told) -> None:
    # Of the first implementation, which took one window at a time.
    prompt = [1.159284, 1.034626, 2.386069, 3.191466, 1.493684, 1.488799, 3.165352, 1.229996, 5.160656, 5.595066]
    confirmed = [0.9380822, 0.9981115, 2.240378, 2.920628, 1.178466, 1.33759, 2.904903, 1.160263, 1.136471, 4.626309]
    numbers = [33, 60, 139, 141, 180, 240, 280, 320, 372, 460]
    for scores, expected in zip(told.scores(), (prompt, confirmed), strict=True):
        np.testing.assert_allclose(scores[numbers], expected, rtol=1e-5)


def bytes_held(thing: Any, seen: set[int]) -> int:
    """Size of an object and of all that it holds."""
    if id(thing) in seen:
        return 0
    seen.add(id(thing))
    if isinstance(thing, np.ndarray):
        return int(thing.nbytes) if thing.base is None else bytes_held(thing.base, seen)
    parts: list[Any] = []
    if isinstance(thing, list | tuple | deque):
        parts = list(thing)
    elif type(thing).__module__.startswith("edgeasd"):
        parts = [getattr(thing, name) for name in getattr(type(thing), "__slots__", ())]
        parts += list(getattr(thing, "__dict__", {}).values())
    return sys.getsizeof(thing) + sum(bytes_held(part, seen) for part in parts)


def test_memory_is_bounded_under_half_a_megabyte_whatever_is_heard() -> None:
    rng = np.random.default_rng(3)
    novelty = Novelty()
    sizes = []
    for _ in range(4):
        for _ in range(700):  # no two windows alike: the worst case for what is remembered
            novelty.push((rng.standard_normal((1, 32)) * 9 + rng.standard_normal((38, 32)) * 4).astype(np.float32))
        sizes.append(bytes_held(novelty, set()))
    assert sizes[-1] <= 512_000
    assert sizes[-1] == pytest.approx(sizes[1], rel=0.01)
