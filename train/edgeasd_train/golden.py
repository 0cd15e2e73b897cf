"""A graph that is to ship is run before it counts: what the engine makes of the golden vectors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from edgeasd.bundle import Golden
from edgeasd.engine import check_golden, golden_deviations
from edgeasd.engine.onnx import OnnxEngine
from edgeasd.errors import SelfTestError
from edgeasd.records import FloatArray

GOLDEN_WINDOWS = 4


def verify(model_onnx: bytes, golden: Golden) -> None:
    """Compare ONNX Runtime with golden vectors on the whole batch and on each window alone; SelfTestError."""
    engine = OnnxEngine(model_onnx)
    try:
        for part in _parts(golden):
            check_golden(engine, part)
    except Exception as exc:
        raise SelfTestError(f"the exported model does not do in ONNX Runtime what it was made to do: {exc}") from exc
    finally:
        engine.close()


def deviation(model_onnx: bytes, golden: Golden) -> float:
    """Return how far any output of a graph is off a golden one s, at most, as a share of 1 + |s|."""
    engine = OnnxEngine(model_onnx)
    try:
        return max(max(golden_deviations(engine, part).values()) for part in _parts(golden))
    finally:
        engine.close()


def _parts(golden: Golden) -> Iterator[Golden]:
    """Yield all windows in one batch, then each alone."""
    yield golden
    for i in range(len(golden.outputs["score"])):
        yield Golden(_rows(golden.inputs, i), _rows(golden.outputs, i))


def _rows(arrays: Mapping[str, FloatArray], i: int) -> dict[str, FloatArray]:
    return {name: array[i : i + 1] for name, array in arrays.items()}
