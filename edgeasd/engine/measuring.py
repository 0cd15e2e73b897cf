"""How fast an engine is here, and how far from the golden vectors."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping

import numpy as np

from edgeasd.bundle import Golden
from edgeasd.engine import Engine
from edgeasd.records import FloatArray

LATENCY_BUDGET_S = 0.3
_WARM_UPS = 3
_LEAST_RUNS, _MOST_RUNS = 5, 500


def batch_of(golden: Golden, n_windows: int) -> dict[str, FloatArray]:
    """Return the inputs of `n_windows` windows: the golden ones, over and over."""
    return {name: array[np.arange(n_windows) % len(array)] for name, array in golden.inputs.items()}


def latency_ms(engine: Engine, inputs: Mapping[str, FloatArray], *, budget_s: float = LATENCY_BUDGET_S) -> float:
    """Return the median of what a call takes, in ms; measures for about `budget_s`, warming up included.

    An engine that is too slow for that is asked a few times all the same.
    """
    until_s = time.perf_counter() + budget_s
    for _ in range(_WARM_UPS):
        engine.score(inputs)
    spent_ms: list[float] = []
    while len(spent_ms) < _LEAST_RUNS or (len(spent_ms) < _MOST_RUNS and time.perf_counter() < until_s):
        began_s = time.perf_counter()
        engine.score(inputs)
        spent_ms.append(1e3 * (time.perf_counter() - began_s))
    return statistics.median(spent_ms)
