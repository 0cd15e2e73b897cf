"""A bundle around a tiny real graph, for tests that need one without training.

Score: mean squared distance from a fixed log mel, over 8 rows and 5 frames; residual: each row's share of it.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeasd.bundle import (
    PROGRAM_MEMBER,
    REDUCED_MEMBERS,
    CalibrationTable,
    Golden,
    Inputs,
    Manifest,
    Provenance,
    write_bundle,
)
from edgeasd.features.mel import MelSpec
from edgeasd.manifest import Precision, ReducedPrecision
from edgeasd.records import FloatArray
from edgeasd.scoring.calibration import fit_calibration

SPEC = MelSpec(sample_rate_hz=8000, n_fft=256, hop_frames=64, n_mels=8)
WINDOW_FRAMES = 512
TOLERANCES: dict[Literal["fp16", "int8"], float] = {"fp16": 0.005, "int8": 0.03}
N_ROWS, N_FRAMES = SPEC.n_rows, SPEC.n_frames(WINDOW_FRAMES)
_NODES_OF_FEWER_BITS: dict[Precision, tuple[list[onnx.NodeProto], list[onnx.NodeProto]]] = {
    "fp16": (
        [helper.make_node("Cast", ["log_mel"], ["reduced"], to=TensorProto.FLOAT16)],
        [helper.make_node("Cast", ["halves"], ["power"], to=TensorProto.FLOAT)],
    ),
    "int8": (
        [
            helper.make_node("QuantizeLinear", ["log_mel", "step", "zero"], ["quantised"]),
            helper.make_node("DequantizeLinear", ["quantised", "step", "zero"], ["reduced"]),
        ],
        [],
    ),
}
"""Before the difference, and after its square."""


def small_graph(precision: Precision = "fp32") -> onnx.ModelProto:
    """Return the model, for a test to spoil; fp16 squares in float16, int8 has its input in steps of half a dB."""
    centre = np.linspace(-40.0, -20.0, N_ROWS, dtype=np.float32).reshape(1, N_ROWS, 1)
    if precision == "fp16":
        centre = centre.astype(np.float16)
    axes = [numpy_helper.from_array(np.array([axis], np.int64), f"axis_{axis}") for axis in (1, 2)]
    steps = [
        numpy_helper.from_array(np.array(0.5, np.float32), "step"),
        numpy_helper.from_array(np.array(0, np.int8), "zero"),
    ]
    before, after = _NODES_OF_FEWER_BITS.get(precision, ([], []))
    nodes = [
        *before,
        helper.make_node("Sub", ["reduced" if before else "log_mel", "centre"], ["normal"]),
        helper.make_node("Mul", ["normal", "normal"], ["halves" if after else "power"]),
        *after,
        helper.make_node("ReduceMean", ["power", "axis_2"], ["rows"], keepdims=0),
        helper.make_node("ReduceMean", ["rows", "axis_1"], ["score"], keepdims=0),
        helper.make_node("ReduceSum", ["rows", "axis_1"], ["total"], keepdims=1),
        helper.make_node("Div", ["rows", "total"], ["residual"]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("log_mel", TensorProto.FLOAT, ["batch", N_ROWS, N_FRAMES])],
        [
            helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch"]),
            helper.make_tensor_value_info("residual", TensorProto.FLOAT, ["batch", N_ROWS]),
        ],
        initializer=[numpy_helper.from_array(centre, "centre"), *axes, *(steps if precision == "int8" else [])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def small_inputs(n_windows: int, *, seed: int = 0) -> FloatArray:
    """Return log mel (n_windows, 8, 5), dB."""
    random = np.random.default_rng(seed)
    return random.normal(-30.0, 8.0, (n_windows, N_ROWS, N_FRAMES)).astype(np.float32)


def small_answers(log_mel: FloatArray) -> dict[str, FloatArray]:
    """Return what the graph computes, in numpy."""
    centre = np.linspace(-40.0, -20.0, N_ROWS, dtype=np.float32).reshape(1, N_ROWS, 1)
    rows = np.square(log_mel - centre).mean(axis=2)
    return {"score": rows.mean(axis=1), "residual": rows / rows.sum(axis=1, keepdims=True)}


def small_golden(n_windows: int = 3) -> Golden:
    """Return golden vectors that the graph meets."""
    log_mel = small_inputs(n_windows, seed=7)
    return Golden({"log_mel": log_mel}, small_answers(log_mel))


def small_table() -> CalibrationTable:
    """Return a calibration fitted to scores of the graph."""
    return fit_calibration(small_answers(small_inputs(400, seed=1))["score"], window_s=0.064, hop_s=0.064)


def small_manifest() -> Manifest:
    """Return the manifest that fits the graph."""
    return Manifest(
        name="small",
        version=1,
        detector="distance",
        sample_rate_hz=SPEC.sample_rate_hz,
        window_frames=WINDOW_FRAMES,
        inputs=Inputs(log_mel=SPEC),
        outputs=["score", "residual"],
        calibration=small_table(),
        provenance=Provenance(
            created_utc="2026-01-02T03:04:05Z",
            code_version="0",
            seed=0,
            seconds_heard=25.6,
            corpus_sha256="0" * 64,
            recipe={"name": "small"},
            metrics={"loss": 0.5},
        ),
    )


def write_small_bundle(path: Path) -> Path:
    """Write the bundle and return its path."""
    model_onnx = small_graph().SerializeToString()
    write_bundle(path, manifest=small_manifest(), model_onnx=model_onnx, golden=small_golden(), card="# small\n")
    return path


def write_full_bundle(path: Path, *, program: bytes | None = None) -> Path:
    """Write the bundle with the graphs of fewer bits and, if given, a torch program; return its path."""
    optional = {name: small_graph(key).SerializeToString() for key, name in REDUCED_MEMBERS.items()}
    if program is not None:
        optional[PROGRAM_MEMBER] = program
    reduced = {key: ReducedPrecision(golden_tolerance=TOLERANCES[key], calibration=small_table()) for key in TOLERANCES}
    write_bundle(
        path,
        manifest=small_manifest().model_copy(update={"precisions": reduced}),
        model_onnx=small_graph().SerializeToString(),
        golden=small_golden(),
        card="# small\n",
        optional=optional,
    )
    return path


@functools.cache
def small_program() -> bytes:
    """Return the model as a torch program, exported as the workshop does."""
    import torch

    from edgeasd_train.program import export_program

    class Small(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("centre", torch.linspace(-40.0, -20.0, N_ROWS).reshape(1, N_ROWS, 1))

        def forward(self, log_mel: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            rows = torch.square(log_mel - self.centre).mean(dim=2)  # type: ignore[operator]  # a buffer is a tensor
            return rows.mean(dim=1), rows / rows.sum(dim=1, keepdim=True)

    return export_program(Small(), small_golden())
