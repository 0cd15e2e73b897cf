"""A graph that is to ship is run before it counts: what the engine makes of the golden vectors."""

from __future__ import annotations

from collections.abc import Mapping

from edgeasd.bundle import Golden
from edgeasd.engine import check_golden
from edgeasd.engine.onnx import OnnxEngine
from edgeasd.errors import SelfTestError
from edgeasd.records import FloatArray

GOLDEN_WINDOWS = 4


def verify(model_onnx: bytes, golden: Golden) -> None:
    """Compare ONNX Runtime with golden vectors on the whole batch and on each window alone; SelfTestError."""
    engine = OnnxEngine(model_onnx)
    try:
        check_golden(engine, golden)
        for i in range(len(golden.outputs["score"])):
            check_golden(engine, Golden(_rows(golden.inputs, i), _rows(golden.outputs, i)))
    except Exception as exc:
        raise SelfTestError(f"the exported model does not do in ONNX Runtime what it was made to do: {exc}") from exc
    finally:
        engine.close()


def _rows(arrays: Mapping[str, FloatArray], i: int) -> dict[str, FloatArray]:
    return {name: array[i : i + 1] for name, array in arrays.items()}
