"""From log mel to events: the second opinion, the model, the alarm."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from edgeasd.engine.onnx import OnnxEngine
from edgeasd.records import Opinion
from edgeasd.scoring.alarm import EventTracker, Levels, Timing, Verdict
from edgeasd.scoring.novelty import NOVELTY_SPEC, Novelty

HOP_FRAMES, WINDOW_FRAMES = 8_000, 16_000
N_ROWS, N_FRAMES = 64, 38


@pytest.mark.parametrize("n_windows", [1, 64])
def test_novelty_push(benchmark: BenchmarkFixture, n_windows: int) -> None:
    """Measure the second opinion on windows that come one by one, or many at once, when its past is full."""
    rng = np.random.default_rng(0)
    novelty = Novelty()
    windows = list(rng.normal(-40.0, 3.0, (4 * 64, NOVELTY_SPEC.n_rows, N_FRAMES)).astype(np.float32))
    novelty.push_many(windows)
    turn = count(step=n_windows)

    def push() -> int:
        first = next(turn) % len(windows)
        return len(novelty.push_many(windows[first : first + n_windows]))

    assert benchmark(push) == n_windows


def test_alarm_step(benchmark: BenchmarkFixture) -> None:
    """Measure two lanes and the settling of one window, without an event."""
    timing = Timing(release_frames=16_000, merge_frames=16_000, update_frames=160_000)
    levels = Levels(enter=4.0, leave=3.0)
    tracker = EventTracker(source="mic0", timing=timing, prompt_levels={"novelty": levels}, confirm_levels=levels)
    calm = Opinion(1.0, 0.1)
    starts = count(step=HOP_FRAMES)

    def step() -> int:
        first = next(starts)
        verdict = Verdict(first, first + WINDOW_FRAMES, calm, lambda: ())
        return len(tracker.prompt("novelty", verdict) + tracker.confirm(verdict) + tracker.settle(verdict.end_frame))

    assert benchmark(step) == 0


@pytest.fixture(scope="module")
def engine() -> Iterator[OnnxEngine]:
    """Return a bird-ae of random weights in ONNX Runtime."""
    import torch

    from edgeasd_train.detectors.bird_ae import BirdAe, BirdAeOptions
    from edgeasd_train.detectors.options import Shapes
    from edgeasd_train.export import export_onnx

    torch.manual_seed(0)
    detector = BirdAe(Shapes(N_ROWS, N_FRAMES, WINDOW_FRAMES, 16_000), BirdAeOptions())
    engine = OnnxEngine(export_onnx(detector, {"log_mel": _log_mel(8)})[0])
    yield engine
    engine.close()


def _log_mel(n_windows: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(0).normal(-40.0, 8.0, (n_windows, N_ROWS, N_FRAMES)).astype(np.float32)


@pytest.mark.parametrize("n_windows", [1, 8, 64])
def test_onnx_run(benchmark: BenchmarkFixture, engine: OnnxEngine, n_windows: int) -> None:
    """Measure one run of a bird-ae."""
    outputs = benchmark(engine.score, {"log_mel": _log_mel(n_windows)})
    assert len(outputs.score) == n_windows
