"""From a module to the torch program that ships: model.pt2, holding what is computed and nothing else."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import torch
from torch import nn

from edgeasd.bundle import Golden
from edgeasd.engine import GOLDEN_TOLERANCE
from edgeasd.engine.program import read_program
from edgeasd.engine.torch import Computation
from edgeasd.errors import BundleError, SelfTestError
from edgeasd_train.quiet import quiet

_ROOT = "archive/"
_MODEL = f"{_ROOT}models/model.json"
_SAMPLE_INPUTS = f"{_ROOT}data/sample_inputs/model.pt"
_SERIAL_NUMBER = f"{_ROOT}.data/serialization_id"
_CHECK = "torch.ops.aten._assert_tensor_metadata.default"
"""Gives nothing; says of a tensor that it lies on the CPU, which on a GPU it will not."""


def export_program(served: nn.Module, golden: Golden) -> bytes:
    """Return the module as a torch program, batch dimension free; `golden` is what it makes of some windows.

    torch.export.load reads the archive, and so does a node, in its own way. It has been run the node's way:
    SelfTestError when it does not answer as `golden` has it, on all windows or on each alone.
    """
    tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in golden.inputs.values()]
    batch = torch.export.Dim("batch", min=1, max=65_536)
    packed = io.BytesIO()
    with quiet("torch"):
        exported = torch.export.export(
            served.cpu().eval(), tuple(tensors), dynamic_shapes=tuple({0: batch} for _ in tensors)
        )
        torch.export.save(exported.run_decompositions({}), packed)
    program = _stripped(packed.getvalue())
    _verify(program, golden)
    return program


def _stripped(program: bytes) -> bytes:
    """Return the archive without what tells of the machine it was made on, and without its one pickle."""
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(program)) as full, zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as stripped:
        for name in sorted(set(full.namelist()) - {_SERIAL_NUMBER}):
            data = b"" if name == _SAMPLE_INPUTS else full.read(name)
            stripped.writestr(zipfile.ZipInfo(name), _bare(data) if name == _MODEL else data)
    return packed.getvalue()


def _bare(model_json: bytes) -> bytes:
    """Return the graph without stack traces and the names of modules."""
    model = json.loads(model_json)
    model["graph_module"]["metadata"] = {}
    graph = model["graph_module"]["graph"]
    graph["nodes"] = [{**node, "metadata": {}} for node in graph["nodes"] if node["target"] != _CHECK]
    return json.dumps(model, separators=(",", ":"), sort_keys=True).encode()


def _verify(program: bytes, golden: Golden) -> None:
    try:
        compute = Computation(read_program(program))
    except BundleError as exc:
        raise SelfTestError(f"the exported program is not one that a node runs: {exc}") from exc
    n_windows = len(golden.outputs["score"])
    for rows in (slice(None), *(slice(i, i + 1) for i in range(n_windows))):
        with torch.inference_mode():
            answers = compute({name: torch.tensor(array[rows]) for name, array in golden.inputs.items()})
        for (name, expected), answer in zip(golden.outputs.items(), answers, strict=True):
            off = float(np.max(np.abs(answer.numpy() - expected[rows]) / (1.0 + np.abs(expected[rows]))))
            if not off <= GOLDEN_TOLERANCE:
                raise SelfTestError(f"the exported program's {name} is off by {off:.2g} from what was trained")
