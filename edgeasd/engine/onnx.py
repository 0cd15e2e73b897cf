"""The onnx engine: ONNX Runtime on one CPU core, or on a GPU where its CUDA provider is installed."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any, Literal

import numpy as np

from edgeasd.engine import LIVE_OUTPUTS, Outputs
from edgeasd.engine.machine import gpu_name
from edgeasd.errors import BundleError, SelfTestError
from edgeasd.manifest import Precision
from edgeasd.records import FloatArray

_OUTPUT_NAMES = frozenset(field.name for field in fields(Outputs))
_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_CUDA_OPTIONS = {
    "use_tf32": "0",  # its mantissa of 10 bits misses the golden test
    "cudnn_conv_algo_search": "HEURISTIC",  # the default measures every new batch size anew
}


class OnnxEngine:
    """Runs a graph in ONNX Runtime, single-threaded: a second of sound costs less than waking a second thread.

    Buffers bound in advance (IO binding) are not used: on a CPU they were measured to save nothing.
    """

    name: Literal["onnx"] = "onnx"

    def __init__(self, model_onnx: bytes, *, precision: Precision = "fp32") -> None:
        """Load the graph; BundleError when ONNX Runtime does not take it."""
        self.precision: Precision = precision
        self._session: Any = _open_session(model_onnx)
        self.device = _device_of(self._session)
        self._outputs = [output.name for output in self._session.get_outputs()]
        if not set(self._outputs) <= _OUTPUT_NAMES:
            raise BundleError(f"model.onnx: has an output other than {sorted(_OUTPUT_NAMES)}")

    def score(self, inputs: Mapping[str, FloatArray], *, wanted: Collection[str] = LIVE_OUTPUTS) -> Outputs:
        """Judge windows: each graph input by name, first dimension the batch."""
        names = [name for name in self._outputs if name == "score" or name in wanted]
        try:
            answers = self._session.run(names, dict(inputs))
        except Exception as exc:  # ONNX Runtime's own exceptions share no base but Exception
            raise SelfTestError(f"the onnx engine failed: {str(exc).splitlines()[0]}") from exc
        outputs = Outputs(**dict(zip(names, answers, strict=True)))
        if not np.isfinite(outputs.score).all():
            raise SelfTestError("the onnx engine gave a score that is not finite")
        return outputs

    def close(self) -> None:
        """Free the session."""
        self._session = None


def _open_session(model_onnx: bytes) -> Any:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read at import: its wheels tell their maker of their use
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.enable_cpu_mem_arena = False  # as fast, and a large batch leaves nothing behind
    options.log_severity_level = 4  # what goes wrong comes back as an exception
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(model_onnx, options, providers=_providers(onnxruntime))
    except Exception as exc:  # ONNX Runtime's own exceptions share no base but Exception
        raise BundleError(f"model.onnx: ONNX Runtime refuses it: {str(exc).splitlines()[0]}") from exc


def likely_device() -> str:
    """Return where a graph would run, by what is installed; only opening one tells for sure."""
    import onnxruntime

    return (gpu_name() or "cuda") if len(_providers(onnxruntime)) > 1 else "cpu"


def _providers(onnxruntime: Any) -> list[Any]:
    """Return where to run a graph; ONNX Runtime falls back to the CPU by itself when CUDA does not load."""
    if _CUDA in onnxruntime.get_available_providers() and gpu_name() is not None:
        return [(_CUDA, _CUDA_OPTIONS), _CPU]
    return [_CPU]


def _device_of(session: Any) -> str:
    return (gpu_name() or "cuda") if _CUDA in session.get_providers() else "cpu"
