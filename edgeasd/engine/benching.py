"""Measuring engines side by side, each in a process that has loaded no other; what `edgeasd engine bench` shows."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from edgeasd.bundle import Bundle
from edgeasd.engine import golden_deviations
from edgeasd.engine.choosing import Candidate, open_candidate
from edgeasd.engine.measuring import batch_of, latency_ms
from edgeasd.errors import SelfTestError


@dataclass(frozen=True, slots=True)
class Figures:
    """What an engine was measured at in a process of its own."""

    device: str
    open_s: float
    """From nothing loaded to a golden test that is passed."""
    deviation: float
    """The largest from a golden output s, as a share of 1 + |s|."""
    batch_ms: dict[int, float]
    """Median of a call, by windows in it."""
    peak_bytes: int
    """Most memory of the process, Python and all."""


def measure(
    bundle: Bundle, candidate: Candidate, *, batches: Sequence[int], budget_s: float, cache_dir: Path | None
) -> Figures:
    """Measure an engine in a process of its own, about `budget_s` a batch.

    Errors as `edgeasd.engine.open_engine` has them; SelfTestError when the process dies.
    """
    context = multiprocessing.get_context("spawn")  # a fork would take along what is loaded here
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(_figures, bundle, candidate, batches, budget_s, cache_dir).result()
        except BrokenProcessPool as exc:
            raise SelfTestError(f"engine {candidate}: its process died") from exc


def _figures(
    bundle: Bundle, candidate: Candidate, batches: Sequence[int], budget_s: float, cache_dir: Path | None
) -> Figures:
    began_s = time.perf_counter()
    engine = open_candidate(bundle, candidate, cache_dir=cache_dir)
    open_s = time.perf_counter() - began_s
    try:
        deviation = max(golden_deviations(engine, bundle.golden).values())
        batch_ms = {n: latency_ms(engine, batch_of(bundle.golden, n), budget_s=budget_s) for n in batches}
    finally:
        engine.close()
    return Figures(engine.device, open_s, deviation, batch_ms, _peak_bytes())


def _peak_bytes() -> int:
    """Return the most memory that this process has had; getrusage would count its parent's too."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])
