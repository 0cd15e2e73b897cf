"""Hearing normal sound to calibrate a bundle: the node's own line, of which only the model's scores are kept."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Condition

import numpy as np

from edgeasd.assembly import Bench, JudgeOptions, plan_judges, seat_judges
from edgeasd.bundle import Bundle, CalibrationTable
from edgeasd.daemon import capturing, judge_options
from edgeasd.line import Line, Track
from edgeasd.manifest import Precision
from edgeasd.models.choosing import Choice
from edgeasd.records import Score, Skipped
from edgeasd.replay import ReplayJob, TablePaths, replay
from edgeasd.scoring.calibration import fit_calibration
from edgeasd.scoring.listener import Said
from edgeasd.settings import Settings

_STEP_S = 0.5


@dataclass(frozen=True, slots=True)
class Heard:
    """What normal sound scored, as a calibration."""

    bundle: Bundle
    precision: Precision
    """Of the engine that scored: the calibration holds for no other."""
    table: CalibrationTable


@dataclass(slots=True)
class _Collector:
    """Keeps the model's raw score of every valid window."""

    scores: list[float] = field(default_factory=list)

    def skipped(self, track: Track, skipped: Skipped) -> None:
        """Leave out what nobody heard."""

    def said(self, track: Track, said: Said, *, infer_ms: float) -> None:  # noqa: ARG002  # the protocol's
        """Keep a score."""
        if isinstance(said, Score) and said.valid and said.model is not None:
            self.scores.append(said.model.score)

    def ended(self, track: Track) -> None:
        """Keep what there is."""


def _judges(settings: Settings, choice: Choice | None) -> JudgeOptions:
    """Return the judges without the second opinion, and without an earlier calibration of this site."""
    options = judge_options(settings, choice)
    return replace(options, novelty=False, policy=replace(options.policy, by="model"), state_dir=None)


def hear_recordings(settings: Settings, choice: Choice | None, recordings: Sequence[Path]) -> Heard:
    """Calibrate a bundle, None for that of the settings, on recordings of normal sound."""
    collector = _Collector()
    benches: list[Bench] = []

    def collect(bench: Bench, _stack: ExitStack) -> _Collector:
        benches.append(bench)
        return collector

    replay(ReplayJob(tuple(recordings), _judges(settings, choice)), TablePaths(), also=collect)
    return _fit(collector, benches[0])


def hear_microphone(settings: Settings, choice: Choice | None, *, duration_s: float) -> Heard:
    """Calibrate a bundle, None for that of the settings, on what the microphone hears for `duration_s`."""
    collector = _Collector()
    with ExitStack() as stack:
        bench = stack.enter_context(seat_judges(plan_judges(_judges(settings, choice))))
        doorbell = Condition()
        tracks = stack.enter_context(capturing(settings, bench.grid, doorbell))
        line = Line(tracks, bench.pipeline, doorbell=doorbell)
        until_s = time.monotonic() + duration_s
        while line.running and (left_s := until_s - time.monotonic()) > 0.0:
            line.step(collector, timeout_s=min(_STEP_S, left_s))
            line.check()
        return _fit(collector, bench)


def _fit(collector: _Collector, bench: Bench) -> Heard:
    assert bench.bundle is not None
    assert bench.model is not None
    grid, scores = bench.grid, np.array(collector.scores, np.float32)
    window_s, hop_s = grid.window_frames / grid.rate_hz, grid.hop_frames / grid.rate_hz
    table = fit_calibration(scores, window_s=window_s, hop_s=hop_s)
    return Heard(bench.bundle, bench.model.engine.precision, table)
