"""From a fitted detector to a verified bundle."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from edgeasd.bundle import Golden
from edgeasd.onnxgraph import read_graph
from edgeasd.records import FloatArray
from edgeasd_train.detectors.contract import Detector
from edgeasd_train.golden import verify
from edgeasd_train.graphs import pack
from edgeasd_train.quiet import quiet

OPSET = 20


def export_onnx(detector: Detector, inputs: Mapping[str, FloatArray]) -> tuple[bytes, Golden]:
    """Return the detector as one ONNX file, batch dimension free, and golden vectors of the windows `inputs`.

    The file has been run: SelfTestError when ONNX Runtime and torch disagree on these windows, whatever the batch.
    """
    served = detector.serve().cpu().eval()
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in inputs.items()}
    with torch.inference_mode():
        answers = served(*tensors.values())
    answers = answers if isinstance(answers, tuple) else (answers,)
    outputs: dict[str, FloatArray] = {
        str(name): answer.numpy() for name, answer in zip(detector.outputs, answers, strict=True)
    }
    golden = Golden(dict(inputs), outputs)
    model_onnx = _to_onnx(served, tensors, output_names=list(detector.outputs))
    read_graph(model_onnx)
    verify(model_onnx, golden)
    return model_onnx, golden


def _to_onnx(served: nn.Module, tensors: Mapping[str, torch.Tensor], *, output_names: Sequence[str]) -> bytes:
    batch = torch.export.Dim("batch", min=1, max=65_536)
    with quiet("torch.onnx", "onnxscript", "onnx_ir"), contextlib.redirect_stdout(io.StringIO()):  # progress
        program = torch.onnx.export(
            served,
            tuple(tensors.values()),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(tensors),
            output_names=list(output_names),
            dynamic_shapes=tuple({0: batch} for _ in tensors),
            external_data=False,
            verbose=False,
        )
    assert program is not None
    return pack(program.model_proto)
