"""Engines: what turns the inputs of a batch of windows into scores."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from edgeasd.bundle import Bundle, Golden
from edgeasd.errors import BundleError, EdgeasdError, UnavailableError
from edgeasd.records import FloatArray

EngineKind = Literal["auto", "onnx", "torch", "tensorrt"]

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
    def name(self) -> str:
        """Return the kind of engine, as users select it."""
        ...

    def score(self, inputs: Mapping[str, FloatArray], *, wanted: Collection[str] = LIVE_OUTPUTS) -> Outputs:
        """Judge windows: each graph input by name, first dimension the batch; SelfTestError on a non-finite answer.

        Of the outputs `wanted` those come back that the graph has; score always does.
        """
        ...

    def close(self) -> None:
        """Give back what the engine holds."""
        ...


def open_engine(bundle: Bundle, kind: EngineKind) -> Engine:
    """Return an engine that has passed the bundle's golden test.

    UnavailableError names the extra to install; BundleError says by how much the golden test is missed.
    """
    if kind in ("torch", "tensorrt"):
        raise UnavailableError(f"engine {kind}: not in this version, which has onnx; it will need edgeasd[{kind}]")
    from edgeasd.engine.onnx import OnnxEngine  # noqa: PLC0415  # engines import their contract from here

    engine = OnnxEngine(bundle.model_onnx)
    try:
        check_golden(engine, bundle.golden)
    except EdgeasdError as exc:
        engine.close()
        raise BundleError(f"{bundle.path}: {exc}") from exc
    return engine


def check_golden(engine: Engine, golden: Golden) -> None:
    """Ask the engine what it was asked where the model was trained; BundleError when it answers otherwise."""
    outputs = engine.score(golden.inputs, wanted=golden.outputs.keys())
    for name, expected in golden.outputs.items():
        answer: FloatArray | None = getattr(outputs, name)
        if answer is None or answer.shape != expected.shape:
            raise BundleError(f"golden test of the {engine.name} engine: {name} has another shape than in golden.npz")
        deviation = float(np.max(np.abs(answer - expected) / (1.0 + np.abs(expected))))
        if not deviation <= GOLDEN_TOLERANCE:
            raise BundleError(
                f"golden test of the {engine.name} engine: {name} is off by {deviation:.2g}, "
                f"the limit is {GOLDEN_TOLERANCE:g}"
            )
