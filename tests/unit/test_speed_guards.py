"""What makes the node fast, held by counts that no load of the machine changes; seconds are in benchmarks/.

Limits are what was counted, and about four tenths more: libraries may change a little, a property may not.
"""

from __future__ import annotations

import gc
import sqlite3
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.macs import count_macs
from edgeasd.assembly import Bench, JudgeOptions, plan_judges, seat_judges
from edgeasd.capture.ring import Ring
from edgeasd.capture.windows import WindowReader
from edgeasd.features.kernels import spectra
from edgeasd.records import AudioBlock, FloatArray, Window
from tests.rig.broker import MOSQUITTO, NO_MOSQUITTO, Broker, Subscriber, wait_for
from tests.small_bundle import write_small_bundle
from tests.system.mqtt_rig import has_seqs, publishing, score, wait_connected

BATCH = 64
SMALL_HOP_S = 0.032
WARM_WINDOWS = 256
"""By then second looks are due, and there is a past to compare with."""

CALLS_PER_WINDOW_ALONE = 640
CALLS_PER_WINDOW_IN_BATCH = 220
PEAK_BYTES_PER_WINDOW = 21_000
N_SCORES = 200
MODULES_OF_THE_DAEMON = 620
MODULES_OF_THE_COMMAND_LINE = 260


@contextmanager
def _judges(bundle: Path | None = None, *, hop_s: float = 0.5) -> Iterator[Bench]:
    with seat_judges(plan_judges(JudgeOptions(bundle=bundle, engine="onnx", hop_s=hop_s))) as bench:
        yield bench


def _windows(bench: Bench, n_windows: int, *, source: str = "mic0") -> list[Window]:
    """Return windows as a reader hands them out."""
    grid = bench.grid
    n_frames = grid.window_frames + (n_windows - 1) * grid.hop_frames
    ring = Ring(n_frames + grid.hop_frames, policy="overwrite", doorbell=threading.Condition())
    reader = WindowReader(ring, source=source, window_frames=grid.window_frames, hop_frames=grid.hop_frames)
    ring.write(AudioBlock(0, _noise(n_frames), time.monotonic_ns()))
    found = [item for item in reader.ready(n_windows) if isinstance(item, Window)]
    assert len(found) == n_windows
    return found


def _noise(n_frames: int) -> FloatArray:
    return (0.05 * np.random.default_rng(0).standard_normal(n_frames)).astype(np.float32)


def _calls(work: Callable[[], object]) -> int:
    """Return how many functions, in Python and in C, a piece of work calls."""
    n_calls = 0

    def count(_frame: object, event: str, _arg: object) -> None:
        nonlocal n_calls
        n_calls += event in ("call", "c_call")

    before = sys.getprofile()
    gc.disable()  # a collection in between runs finalizers of earlier tests
    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(before)
        gc.enable()
    return n_calls


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_small_bundle(tmp_path / "small.edgeasd")


def test_a_window_on_its_own_takes_few_calls(bundle: Path) -> None:
    with _judges(bundle, hop_s=SMALL_HOP_S) as bench:
        windows = _windows(bench, WARM_WINDOWS + 8)
        bench.pipeline.process(windows[:WARM_WINDOWS])
        n_calls = [_calls(lambda one=window: bench.pipeline.process([one])) for window in windows[WARM_WINDOWS:]]  # type: ignore[misc]
    assert min(n_calls) <= CALLS_PER_WINDOW_ALONE, n_calls


def test_a_window_in_a_batch_takes_fewer(bundle: Path) -> None:
    with _judges(bundle, hop_s=SMALL_HOP_S) as bench:
        windows = _windows(bench, WARM_WINDOWS + BATCH)
        bench.pipeline.process(windows[:WARM_WINDOWS])
        n_calls = _calls(lambda: bench.pipeline.process(windows[WARM_WINDOWS:])) / BATCH
    assert n_calls <= CALLS_PER_WINDOW_IN_BATCH


def test_overlapping_windows_share_their_sound() -> None:
    with _judges() as bench:
        windows = _windows(bench, BATCH)
    whole = windows[0].samples.base
    assert whole is not None
    assert whole.size == windows[-1].end_frame - windows[0].first_frame
    assert all(np.shares_memory(one.samples, after.samples) for one, after in pairwise(windows))


def test_judging_a_batch_takes_bounded_memory() -> None:
    with _judges() as bench:
        windows = _windows(bench, WARM_WINDOWS + BATCH)
        bench.pipeline.process(windows[:WARM_WINDOWS])
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            bench.pipeline.process(windows[WARM_WINDOWS:])
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert (peak - before) / BATCH <= PEAK_BYTES_PER_WINDOW


def test_each_spectrum_is_computed_once_however_much_windows_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    monkeypatch.setattr("edgeasd.features.mel.spectra", _counting(spectra, rows))
    with _judges(hop_s=0.2) as bench:
        windows = _windows(bench, 5 * BATCH)
        for first in range(0, len(windows), BATCH // 4):
            bench.pipeline.process(windows[first : first + BATCH // 4])
    n_stft = 1 + (windows[-1].end_frame - 1024) // 400
    assert n_stft <= sum(rows) <= 1.05 * n_stft  # what fills the last lanes of a batch is computed for nothing


def _counting(real: Callable[..., Any], rows: list[int]) -> Callable[..., Any]:
    def transform(samples: FloatArray, *args: Any, **kwargs: Any) -> Any:
        rows.append(int(np.prod(samples.shape[:-1])))
        return real(samples, *args, **kwargs)

    return transform


class _CountingEngine:
    """The engine, and how many windows each run was given."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.runs: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def score(self, inputs: Mapping[str, FloatArray], **kwargs: Any) -> Any:
        self.runs.append(len(next(iter(inputs.values()))))
        return self._engine.score(inputs, **kwargs)


def test_windows_of_all_sources_go_through_the_model_at_once(bundle: Path) -> None:
    with _judges(bundle, hop_s=SMALL_HOP_S) as bench:
        assert bench.model is not None
        engine = _CountingEngine(bench.model.engine)
        bench.pipeline.set_model(replace(bench.model, engine=engine))
        items = [window for name in ("a", "b", "c") for window in _windows(bench, 16, source=name)]
        bench.pipeline.process(items)
    assert engine.runs == [len(items)]


def test_a_score_that_the_broker_takes_costs_no_statement_of_sql(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if MOSQUITTO is None:
        pytest.skip(NO_MOSQUITTO)
    statements: list[str] = []
    connect = sqlite3.connect

    def traced(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        database: sqlite3.Connection = connect(*args, **kwargs)
        database.set_trace_callback(statements.append)
        return database

    monkeypatch.setattr(sqlite3, "connect", traced)
    with (
        Broker(tmp_path / "broker") as broker,
        Subscriber(broker.port, "edgeasd/+/+/score") as subscriber,
        publishing(broker.target, tmp_path / "state") as publisher,
    ):
        wait_connected(publisher)
        publisher.publish(score(0))
        subscriber.wait(partial(has_seqs, 1))
        del statements[:]
        for number in range(1, N_SCORES + 1):
            publisher.publish(score(number))
        subscriber.wait(partial(has_seqs, 1 + N_SCORES))
        wait_for(lambda: publisher.stats().published > N_SCORES, what="all acknowledged", timeout_s=10.0)
        counted = list(statements)
    assert counted == []


@pytest.mark.parametrize(
    ("module", "limit"), [("edgeasd.cli", MODULES_OF_THE_COMMAND_LINE), ("edgeasd.daemon", MODULES_OF_THE_DAEMON)]
)
def test_few_modules_are_imported_at_the_start(module: str, limit: int) -> None:
    code = f"import sys, {module}; print(len(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert int(done.stdout) <= limit


def test_multiplications_of_a_model_are_counted_as_by_hand() -> None:
    weights = {"down": (4, 3, 3, 3), "up": (4, 2, 3, 3), "dense": (2 * 16 * 12, 5)}
    nodes = [
        helper.make_node("Conv", ["x", "down"], ["half"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node(
            "ConvTranspose", ["half", "up"], ["whole"], strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]
        ),
        helper.make_node("Flatten", ["whole"], ["flat"]),
        helper.make_node("Gemm", ["flat", "dense"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "counted",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 16, 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 5])],
        [numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, shape in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    by_hand = (8 * 6) * 4 * (3 * 9) + (8 * 6 * 4) * (2 * 9) + 5 * (2 * 16 * 12)
    assert count_macs(model.SerializeToString()) == by_hand
