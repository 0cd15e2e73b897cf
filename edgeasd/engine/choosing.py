"""Which engine runs a bundle here: the one that was asked for, or the fastest of those that pass the golden test."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgeasd.bundle import Bundle
from edgeasd.engine import Engine, EngineKind, EngineName, PrecisionWish, check_golden, golden_tolerance
from edgeasd.engine.machine import gpu_name, has_module, versions
from edgeasd.engine.measuring import batch_of, latency_ms
from edgeasd.errors import BundleError, EdgeasdError, UnavailableError
from edgeasd.manifest import Precision

if TYPE_CHECKING:
    from edgeasd.engine.plans import PlanKey

log = logging.getLogger(__name__)

ENGINES: Sequence[EngineName] = ("onnx", "torch", "tensorrt")
"""In the order in which `auto` tries them: from the lightest to the heaviest."""
_CLEARLY_FASTER = 0.9
"""A candidate beats one before it, lighter or more exact, when it takes at most this share of its time."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """An engine that may run a bundle, and in which numbers."""

    kind: EngineName
    precision: Precision

    def __str__(self) -> str:
        return f"{self.kind} {self.precision}"


@dataclass(frozen=True, slots=True)
class Chosen:
    """An engine that has passed the golden test, and why it is this one."""

    engine: Engine
    why: str
    """A clause for a person."""
    window_ms: float | None = None
    """What one window took when it was measured; None where there was nothing to compare."""
    passed_over: tuple[str, ...] = ()
    """One line for each engine that should have run here, and failed."""


class _Note(BaseModel):
    """A choice that was measured, as it is kept."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    kind: EngineName
    precision: Precision
    window_ms: dict[str, Annotated[float, Field(ge=0)]]
    """By candidate."""
    passed_over: tuple[str, ...]


def choose_engine(
    bundle: Bundle,
    kind: EngineKind = "auto",
    *,
    precision: PrecisionWish = "fp32",
    cache_dir: Path | None = None,
) -> Chosen:
    """Return the engine to run a bundle with, and why; errors as `edgeasd.engine.open_engine` has them.

    Where more than one can, each is measured on one golden window. The choice is kept in `cache_dir`, and the next
    start opens only the winner.
    """
    candidates = candidates_of(bundle, kind, precision)
    if len(candidates) == 1:
        engine = open_candidate(bundle, candidates[0], cache_dir=cache_dir)
        chosen = Chosen(engine, "no other can run this bundle here" if kind == "auto" else "it was asked for")
    elif cache_dir is None:
        chosen, _ = _race(bundle, candidates, cache_dir=None)
    else:
        chosen = _recalled(bundle, candidates, choice_key(bundle, kind, precision), cache_dir)
    engine = chosen.engine
    log.info("engine: %s in %s on %s: %s", engine.name, engine.precision, engine.device, chosen.why)
    return chosen


def candidates_of(bundle: Bundle, kind: EngineKind, precision: PrecisionWish) -> list[Candidate]:
    """Return what may run a bundle here, without loading any of it; never empty.

    BundleError when the bundle has no graph in that precision, UnavailableError when the engine does not compute in it.
    """
    precisions = bundle.precisions if precision == "auto" else (precision,)
    for wanted in precisions:
        bundle.graph(wanted)
    if kind != "auto":
        _require(kind)
    if kind == "torch" and "fp32" not in precisions:
        raise UnavailableError(f"engine torch: computes in fp32 only, not in {precision}; onnx and tensorrt do")
    return paired([name for name in ENGINES if _may_run(name, bundle)] if kind == "auto" else [kind], precisions)


def paired(kinds: Sequence[EngineName], precisions: Sequence[Precision]) -> list[Candidate]:
    """Return each engine with each precision in which it computes."""
    return [Candidate(kind, one) for kind in kinds for one in precisions if kind != "torch" or one == "fp32"]


def open_candidate(bundle: Bundle, candidate: Candidate, *, cache_dir: Path | None) -> Engine:
    """Return an engine that has passed the golden test; errors as `edgeasd.engine.open_engine` has them."""
    _require(candidate.kind)
    try:
        engine = _open(bundle, candidate, cache_dir)
    except (RuntimeError, OSError, ImportError) as exc:  # a library that is installed and does not start here
        raise UnavailableError(f"engine {candidate.kind}: {(str(exc).splitlines() or [repr(exc)])[0]}") from exc
    try:
        check_golden(engine, bundle.golden, tolerance=golden_tolerance(bundle, candidate.precision))
    except EdgeasdError as exc:
        engine.close()
        raise BundleError(f"{bundle.path}: {exc}") from exc
    return engine


def choice_key(bundle: Bundle, kind: EngineKind, precision: PrecisionWish) -> PlanKey:
    """Return all that a measured choice depends on."""
    from edgeasd.engine.plans import PlanKey, cpu_facts  # noqa: PLC0415

    cpu, instructions = cpu_facts()
    return PlanKey(
        kind="choice",
        source_sha256=bundle.sha256,
        precision=precision,
        library=", ".join(f"{name} {version}" for name, version in versions().items()),
        device=f"{gpu_name() or 'no GPU'}; {cpu}",
        capability=instructions,
        extra=kind,
    )


def _may_run(kind: EngineName, bundle: Bundle) -> bool:
    """Return whether `auto` looks at an engine: the other two are for CUDA devices, and heavy to load."""
    if kind == "onnx":
        return True
    return gpu_name() is not None and has_module(kind) and (kind != "torch" or bundle.program is not None)


def _require(kind: EngineName) -> None:
    if kind != "onnx" and not has_module(kind):
        raise UnavailableError(f"engine {kind}: {kind} is not installed: pip install 'edgeasd[{kind}]'")


def _open(bundle: Bundle, candidate: Candidate, cache_dir: Path | None) -> Engine:
    if candidate.kind == "onnx":
        from edgeasd.engine.onnx import OnnxEngine  # noqa: PLC0415  # a node loads the engine it runs, and no other

        return OnnxEngine(bundle.graph(candidate.precision), precision=candidate.precision)
    if candidate.kind == "torch":
        from edgeasd.engine.torch import TorchEngine  # noqa: PLC0415

        return TorchEngine(bundle)
    from edgeasd.engine.tensorrt import TensorRtEngine  # noqa: PLC0415

    return TensorRtEngine(bundle, precision=candidate.precision, cache_dir=cache_dir)


def _recalled(bundle: Bundle, candidates: Sequence[Candidate], key: PlanKey, cache_dir: Path) -> Chosen:
    """Return the engine of an earlier choice; where there is none that holds, choose and keep that."""
    from edgeasd.engine.plans import PlanCache  # noqa: PLC0415  # where there is no choice nothing is kept

    notes = PlanCache(cache_dir)
    data = notes.get(key)
    chosen = None if data is None else _reopened(bundle, candidates, data, cache_dir)
    if chosen is None:
        chosen, note = _race(bundle, candidates, cache_dir=cache_dir)
        notes.put(key, note.model_dump_json().encode())
    return chosen


def _reopened(bundle: Bundle, candidates: Sequence[Candidate], data: bytes, cache_dir: Path) -> Chosen | None:
    """Return the engine that a note names; None when it does not hold any more."""
    try:
        note = _Note.model_validate_json(data)
        winner = Candidate(note.kind, note.precision)
        if winner not in candidates:
            return None
        engine = open_candidate(bundle, winner, cache_dir=cache_dir)
    except (ValidationError, EdgeasdError) as exc:
        log.warning("engine: the choice of an earlier start does not hold: %s", str(exc).splitlines()[0])
        return None
    for line in note.passed_over:
        log.warning("engine: passed over since an earlier start: %s", line)
    return _chosen(engine, note, when=" at an earlier start")


class _Race:
    """Opens one candidate after the other, measures it, and keeps the winner open."""

    def __init__(self, bundle: Bundle, cache_dir: Path | None) -> None:
        self._bundle, self._cache_dir = bundle, cache_dir
        self._leader: tuple[Candidate, Engine] | None = None
        self._window_ms: dict[Candidate, float] = {}
        self._failures: list[EdgeasdError] = []
        self._passed_over: list[str] = []

    def enter(self, candidate: Candidate) -> None:
        """Let a candidate try to beat the leader."""
        try:
            engine, spent_ms = self._measured(candidate)
        except EdgeasdError as exc:
            log.warning("engine: %s is passed over: %s", candidate, exc)
            self._failures.append(exc)
            self._passed_over.append(f"{candidate}: {exc}")
            return
        self._window_ms[candidate] = spent_ms
        if self._leader is None:
            self._leader = candidate, engine
        elif spent_ms < _CLEARLY_FASTER * self._window_ms[self._leader[0]]:
            self._leader[1].close()
            self._leader = candidate, engine
        else:
            engine.close()

    def _measured(self, candidate: Candidate) -> tuple[Engine, float]:
        engine = open_candidate(self._bundle, candidate, cache_dir=self._cache_dir)
        try:
            return engine, latency_ms(engine, batch_of(self._bundle.golden, 1))
        except EdgeasdError:
            engine.close()
            raise

    def result(self) -> tuple[Chosen, _Note]:
        """Return the winner, and what to remember; raises when none has passed."""
        if self._leader is None:
            raise self._failures[0]
        candidate, engine = self._leader
        note = _Note(
            kind=candidate.kind,
            precision=candidate.precision,
            window_ms={str(one): spent_ms for one, spent_ms in self._window_ms.items()},
            passed_over=tuple(self._passed_over),
        )
        return _chosen(engine, note), note


def _race(bundle: Bundle, candidates: Sequence[Candidate], *, cache_dir: Path | None) -> tuple[Chosen, _Note]:
    race = _Race(bundle, cache_dir)
    for candidate in candidates:
        race.enter(candidate)
    return race.result()


def _chosen(engine: Engine, note: _Note, *, when: str = "") -> Chosen:
    winner = str(Candidate(note.kind, note.precision))
    return Chosen(engine, f"{_compared(winner, note.window_ms)}{when}", note.window_ms.get(winner), note.passed_over)


def _compared(winner: str, window_ms: Mapping[str, float]) -> str:
    others = [f"{name} {ms:.3g} ms" for name, ms in window_ms.items() if name != winner]
    if not others:
        return "the only one that passed the golden test"
    return f"measured at {window_ms[winner]:.3g} ms a window ({', '.join(others)})"
