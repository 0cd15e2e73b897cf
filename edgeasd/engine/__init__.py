"""Engines: what turns the inputs of a batch of windows into scores."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from edgeasd.bundle import Bundle, Golden
from edgeasd.errors import BundleError
from edgeasd.manifest import Precision
from edgeasd.records import FloatArray

EngineName = Literal["onnx", "torch", "tensorrt"]
EngineKind = Literal["auto", "onnx", "torch", "tensorrt"]
PrecisionWish = Literal["auto", "fp32", "fp16", "int8"]
"""A precision, or the fastest of those that the bundle has."""

GOLDEN_TOLERANCE = 1e-4
"""Largest deviation from a golden output s that is float32 rounding, as a share of 1 + |s|."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """What the model says of a batch of B windows; None where the model does not give it."""

    score: FloatArray
    """Shape (B,); higher is stranger, finite."""
    embedding: FloatArray | None = None
    """Shape (B, E)."""
    logits: FloatArray | None = None
    """Shape (B, C)."""
    residual: FloatArray | None = None
    """Shape (B, n_rows): the share of each mel row in the score."""
    reconstruction: FloatArray | None = None
    """Shape (B, n_rows, n_frames): the log mel that the model expected, in the unit of its input."""


LIVE_OUTPUTS: frozenset[str] = frozenset({"score", "embedding", "logits", "residual"})
"""What a node asks for; a reconstruction is as large as the input and for people to look at."""


class Engine(Protocol):
    """A model ready to be asked; not safe to be asked by two threads at once."""

    @property
    def name(self) -> EngineName:
        """Return the kind of engine, as users select it."""
        ...

    @property
    def precision(self) -> Precision:
        """Return in which numbers it computes."""
        ...

    @property
    def device(self) -> str:
        """Return where it computes: "cpu", or the name of a GPU."""
        ...

    def score(self, inputs: Mapping[str, FloatArray], *, wanted: Collection[str] = LIVE_OUTPUTS) -> Outputs:
        """Judge windows: each graph input by name, first dimension the batch; SelfTestError on a non-finite answer.

        Of the outputs `wanted` those come back that the graph has; score always does.
        """
        ...

    def close(self) -> None:
        """Give back what the engine holds."""
        ...


def open_engine(
    bundle: Bundle,
    kind: EngineKind = "auto",
    *,
    precision: PrecisionWish = "fp32",
    cache_dir: Path | None = None,
) -> Engine:
    """Return an engine that has passed the bundle's golden test; `auto` is the fastest of those that do.

    UnavailableError names the extra to install; BundleError says by how much the golden test is missed, or that the
    bundle has no graph in that precision. What takes long to build or to find out is kept in `cache_dir`.
    """
    from edgeasd.engine.choosing import choose_engine  # noqa: PLC0415  # engines import their contract from here

    return choose_engine(bundle, kind, precision=precision, cache_dir=cache_dir).engine


def golden_tolerance(bundle: Bundle, precision: Precision) -> float:
    """Return how far an engine may be off a golden output s, as a share of 1 + |s|."""
    return GOLDEN_TOLERANCE if precision == "fp32" else bundle.manifest.precisions[precision].golden_tolerance


def golden_deviations(engine: Engine, golden: Golden) -> dict[str, float]:
    """Return how far each output is off the golden one s, at most, as a share of 1 + the window's largest |s|.

    BundleError when one is missing or has another shape.
    """
    outputs = engine.score(golden.inputs, wanted=golden.outputs.keys())
    found: dict[str, float] = {}
    for name, expected in golden.outputs.items():
        answer: FloatArray | None = getattr(outputs, name)
        if answer is None or answer.shape != expected.shape:
            raise BundleError(f"golden test of the {engine.name} engine: {name} has another shape than in golden.npz")
        size = np.max(np.abs(expected), axis=tuple(range(1, expected.ndim)), keepdims=True)  # of each window
        found[name] = float(np.max(np.abs(answer - expected) / (1.0 + size)))
    return found


def check_golden(engine: Engine, golden: Golden, *, tolerance: float = GOLDEN_TOLERANCE) -> None:
    """Ask the engine what it was asked where the model was trained; BundleError when it answers otherwise."""
    for name, deviation in golden_deviations(engine, golden).items():
        if not deviation <= tolerance:
            raise BundleError(
                f"golden test of the {engine.name} engine: {name} is off by {deviation:.2g}, the limit is {tolerance:g}"
            )
