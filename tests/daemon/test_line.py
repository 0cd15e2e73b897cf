"""The line from sources to takers: what is handed on, in which order, and how it ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
import pytest

from edgeasd.assembly import Bench, JudgeOptions, plan_judges, seat_judges
from edgeasd.capture.ring import Ring
from edgeasd.capture.thread import CaptureThread
from edgeasd.capture.windows import WindowReader
from edgeasd.clock import FrameClock
from edgeasd.errors import InputError
from edgeasd.line import HUNG_S, HungError, Line, Several, Track
from edgeasd.records import AudioBlock, FloatArray, Gap, LossReason, Score, Skipped
from edgeasd.scoring.listener import Said

RATE_HZ = 16_000
DEADLINE_S = 20.0


class _Script:
    """A source that gives what it was told to give, then ends, fails, or waits to be closed."""

    def __init__(self, name: str, items: Sequence[AudioBlock | Gap | Exception], *, ends: bool = True) -> None:
        self.name = name
        self.rate_hz = RATE_HZ
        self._items = items
        self._ends = ends
        self._closed = threading.Event()

    def blocks(self) -> Iterator[AudioBlock | Gap]:
        for item in self._items:
            if isinstance(item, Exception):
                raise item
            yield item
        if not self._ends:
            self._closed.wait(DEADLINE_S)

    def close(self) -> None:
        self._closed.set()


@dataclass
class _Notes:
    """A taker that writes down what it hears."""

    heard: list[tuple[str, object]] = field(default_factory=list)
    infer_ms: list[float] = field(default_factory=list)

    def skipped(self, track: Track, skipped: Skipped) -> None:
        self.heard.append((track.source.name, skipped))

    def said(self, track: Track, said: Said, *, infer_ms: float) -> None:
        self.heard.append((track.source.name, said))
        self.infer_ms.append(infer_ms)

    def ended(self, track: Track) -> None:
        self.heard.append((track.source.name, "ended"))

    def scores(self, name: str) -> list[Score]:
        return [one for source, one in self.heard if source == name and isinstance(one, Score)]

    def skips(self, name: str) -> list[Skipped]:
        return [one for source, one in self.heard if source == name and isinstance(one, Skipped)]


def _noise(n_frames: int, *, seed: int = 0) -> FloatArray:
    return (0.05 * np.random.default_rng(seed).standard_normal(n_frames)).astype(np.float32)


def _blocks(duration_s: float, *, first_frame: int = 0, block_s: float = 0.25) -> list[AudioBlock | Gap | Exception]:
    samples, n_block = _noise(round(duration_s * RATE_HZ)), round(block_s * RATE_HZ)
    return [
        AudioBlock(first_frame + at, samples[at : at + n_block], time.monotonic_ns())
        for at in range(0, len(samples), n_block)
    ]


MakeLine = Callable[..., Line]


@pytest.fixture
def bench() -> Iterator[Bench]:
    with seat_judges(plan_judges(JudgeOptions())) as bench:
        yield bench


@pytest.fixture
def make_line(bench: Bench) -> Iterator[MakeLine]:
    with ExitStack() as stack:

        def make(*sources: _Script, monotonic_ns: Callable[[], int] = time.monotonic_ns) -> Line:
            doorbell = threading.Condition()
            tracks = []
            for source in sources:
                clock = FrameClock(RATE_HZ, origin_utc_ns=0)
                ring = Ring(10 * RATE_HZ, policy="wait", doorbell=doorbell)
                thread = CaptureThread(source, ring, clock=clock, monotonic_ns=monotonic_ns)
                stack.enter_context(thread)
                reader = WindowReader(
                    ring,
                    source=source.name,
                    window_frames=bench.grid.window_frames,
                    hop_frames=bench.grid.hop_frames,
                )
                tracks.append(Track(source, clock, ring, thread, reader))
            return Line(tracks, bench.pipeline, doorbell=doorbell)

        yield make


def _run(line: Line, taker: _Notes | Several) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while line.running:
        line.step(taker, timeout_s=0.2)
        assert time.monotonic() < deadline_s, "the line never came to its end"


def test_every_window_of_every_source_is_judged(make_line: MakeLine) -> None:
    notes = _Notes()
    line = make_line(_Script("mic0", _blocks(5.0)), _Script("mic1", _blocks(12.2, block_s=0.03)))
    _run(line, notes)
    assert [score.first_frame for score in notes.scores("mic0")] == list(range(0, 4 * RATE_HZ + 1, RATE_HZ // 2))
    assert len(notes.scores("mic1")) == 23
    assert notes.skips("mic0") == []
    assert notes.skips("mic1") == [Skipped("mic1", 12 * RATE_HZ, 3200, LossReason.TAIL)]
    for name in ("mic0", "mic1"):
        own = [one for source, one in notes.heard if source == name]
        assert own.count("ended") == 1
        assert own[-1] == "ended"
    assert line.judging_s > 0.0
    assert all(0.0 <= cost_ms < 1e3 * DEADLINE_S for cost_ms in notes.infer_ms)


def test_more_sources_than_fit_into_a_batch_are_judged_in_turn(make_line: MakeLine) -> None:
    notes = _Notes()
    names = [f"mic{index}" for index in range(70)]
    _run(make_line(*(_Script(name, _blocks(2.0)) for name in names)), notes)
    for name in names:
        assert [score.first_frame for score in notes.scores(name)] == [0, RATE_HZ // 2, RATE_HZ]


def test_every_frame_is_in_a_window_or_skipped(make_line: MakeLine) -> None:
    script = [
        *_blocks(2.3),
        Gap(round(2.3 * RATE_HZ), 800, LossReason.OVERRUN),
        *_blocks(3.1, first_frame=round(2.3 * RATE_HZ) + 800),
    ]
    notes = _Notes()
    _run(make_line(_Script("mic0", script)), notes)
    covered = np.zeros(round(5.4 * RATE_HZ) + 800, np.int8)
    for score in notes.scores("mic0"):
        covered[score.first_frame : score.first_frame + score.n_frames] |= 1
    for skipped in notes.skips("mic0"):
        span = covered[skipped.first_frame : skipped.first_frame + skipped.n_frames]
        assert not span.any()
        span |= 2
    assert covered.all()
    assert {skipped.reason for skipped in notes.skips("mic0")} == {LossReason.OVERRUN, LossReason.GAP, LossReason.TAIL}


def test_losses_are_told_between_the_windows_they_lie_between(make_line: MakeLine) -> None:
    # Who keeps the state of a source by what it hears last must not take a lost device for a present one.
    script = [
        *_blocks(3.0),
        Gap(3 * RATE_HZ, RATE_HZ, LossReason.DEVICE_ABSENT),
        *_blocks(3.0, first_frame=4 * RATE_HZ),
    ]
    notes = _Notes()
    line = make_line(_Script("mic0", script))
    line.tracks[0].thread.join(DEADLINE_S)  # all of it is there at once: one batch
    _run(line, notes)
    positions = [one.first_frame for _, one in notes.heard if isinstance(one, Score | Skipped)]
    assert positions == sorted(positions)


def test_a_failing_source_ends_its_own_track_and_is_named(make_line: MakeLine) -> None:
    notes = _Notes()
    line = make_line(_Script("mic0", [*_blocks(2.0), InputError("mic0 broke")]), _Script("mic1", _blocks(3.0)))
    _run(line, notes)
    assert len(notes.scores("mic0")) == 3
    assert len(notes.scores("mic1")) == 5
    assert [one for one in notes.heard if one[1] == "ended"] != []
    with pytest.raises(InputError, match="mic0 broke"):
        line.check()


def test_finish_says_the_last_word_on_open_sources(make_line: MakeLine) -> None:
    notes = _Notes()
    line = make_line(_Script("mic0", _blocks(4.0), ends=False))
    deadline_s = time.monotonic() + DEADLINE_S
    while len(notes.scores("mic0")) < 7 and time.monotonic() < deadline_s:
        line.step(notes, timeout_s=0.2)
    ran = line.running
    assert ("mic0", "ended") not in notes.heard
    line.check()
    line.finish(notes)
    assert (ran, line.running) == (True, False)
    assert notes.heard[-1] == ("mic0", "ended")
    assert line.step(notes, timeout_s=0.0) is False


def test_a_step_waits_no_longer_than_it_was_told(make_line: MakeLine) -> None:
    line = make_line(_Script("mic0", [], ends=False))
    began_s = time.monotonic()
    assert line.step(_Notes(), timeout_s=0.2) is False
    assert 0.15 < time.monotonic() - began_s < 5.0


def test_a_microphone_that_says_nothing_at_all_hangs(make_line: MakeLine) -> None:
    now_ns = [0]
    line = make_line(_Script("mic0", [], ends=False), monotonic_ns=lambda: now_ns[0])
    line.check()
    now_ns[0] = round((HUNG_S + 0.1) * 1e9)
    with pytest.raises(HungError, match="mic0: the sound system has not answered for 5 s") as caught:
        line.check()
    assert caught.value.track is line.tracks[0]
    assert caught.value.exit_code == 69


def test_several_takers_hear_the_same(make_line: MakeLine) -> None:
    first, second = _Notes(), _Notes()
    _run(make_line(_Script("mic0", _blocks(3.2))), Several([first, second]))
    assert first.heard == second.heard
    assert {type(one) for _, one in first.heard} >= {Score, Skipped, str}
