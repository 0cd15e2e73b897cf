"""A model that hears what the node hears, beside the one that judges, before it may take its place."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np

from edgeasd.errors import SelfTestError
from edgeasd.health.inputs import measure
from edgeasd.records import Score, Skipped, Window
from edgeasd.scoring.jury import AlarmPolicy, Grid, Model
from edgeasd.scoring.pipeline import Pipeline

SHADOW_WINDOWS = 60


class Shadow:
    """Scores `SHADOW_WINDOWS` windows of sound, of all sources together; nothing of it is published.

    What it costs is borne by the thread that judges: about as much a window as the model in use.
    """

    def __init__(self, grid: Grid, model: Model) -> None:
        self._pipeline = Pipeline(grid, model=model, novelty=None, policy=AlarmPolicy(by="model"), inspect=measure)
        self._p_values: list[float] = []
        self._spent_s = 0.0
        self.failure: SelfTestError | None = None

    @property
    def done(self) -> bool:
        """Return whether it has heard enough, or failed."""
        return self.failure is not None or len(self._p_values) >= SHADOW_WINDOWS

    @property
    def window_s(self) -> float:
        """Return the seconds of computing that a window costs."""
        return self._spent_s / max(1, len(self._p_values))

    def hear(self, items: Sequence[Window | Skipped]) -> None:
        """Score what was judged; never raises for what the model does."""
        if self.done:
            return
        began_s = time.perf_counter()
        try:
            told = self._pipeline.process(items)
        except SelfTestError as exc:
            self.failure = exc
            return
        self._spent_s += time.perf_counter() - began_s
        self._p_values += [said.model.p_value for _, said in told if isinstance(said, Score) and said.model is not None]

    def summary(self) -> Mapping[str, float]:
        """Return the number of windows, the distribution of their p-values, and the cost of one.

        Where the sound is like that of the calibration a tenth of the p-values lies below 0.1, a hundredth below 0.01.
        """
        p_values = np.array(self._p_values or [1.0])
        return {
            "windows": len(self._p_values),
            "p_median": _short(np.median(p_values)),
            "p_lowest": _short(p_values.min()),
            "share_below_0_1": _short(np.mean(p_values < 0.1)),
            "share_below_0_01": _short(np.mean(p_values < 0.01)),
            "ms_a_window": _short(1e3 * self.window_s),
        }


def _short(value: float | np.floating) -> float:
    return float(f"{value:.3g}")
