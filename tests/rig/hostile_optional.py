"""Hostile bundles with optional members, by name: what writes each, and the refusal it earns."""

from __future__ import annotations

import hashlib
import json
import tempfile
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeasd.onnxgraph import MAX_FIELDS
from tests.rig.hostile_bundles import Change, Make, Members, members_of, pack
from tests.small_bundle import N_ROWS, write_full_bundle


@cache
def full() -> bytes:
    """Return a bundle with every optional member, in order."""
    with tempfile.TemporaryDirectory() as folder:
        return write_full_bundle(Path(folder) / "full.edgeasd", program=b"PK\5\6" + bytes(18)).read_bytes()


def with_members(change: Callable[[Members], Members]) -> Make:
    """Change members and make the digests right."""

    def make(path: Path) -> None:
        members = change(members_of(full()))
        manifest = json.loads(members["manifest.json"])
        manifest["sha256"] = {n: hashlib.sha256(d).hexdigest() for n, d in members.items() if n != "manifest.json"}
        pack(path, list({**members, "manifest.json": json.dumps(manifest).encode()}.items()))

    return make


def with_manifest(change: Change) -> Make:
    """Change the manifest."""

    def make(path: Path) -> None:
        members = members_of(full())
        manifest = json.loads(members["manifest.json"])
        change(manifest)
        pack(path, list({**members, "manifest.json": json.dumps(manifest).encode()}.items()))

    return make


def with_graph(name: str, change: Callable[[Any], object]) -> Make:
    """Change one of the graphs of fewer bits."""

    def changed(members: Members) -> Members:
        model = onnx.load_from_string(members[name])
        change(model)
        return {**members, name: model.SerializeToString()}

    return with_members(changed)


def spoilt(name: str) -> Make:
    """Change the last byte of a member, and leave its digest."""

    def make(path: Path) -> None:
        members = members_of(full())
        pack(path, list({**members, name: members[name][:-1] + b"\7"}.items()))

    return make


def without(name: str) -> Callable[[Members], Members]:
    """Leave a member out."""
    return lambda members: {key: data for key, data in members.items() if key != name}


def claimed(name: str, n_bytes: int) -> Make:
    """Let the directory claim another size of a member."""

    def make(path: Path) -> None:
        data = bytearray(full())
        entry = data.rindex(name.encode()) - 46
        data[entry + 20 : entry + 28] = n_bytes.to_bytes(4, "little") * 2
        path.write_bytes(data)

    return make


def deflated(path: Path) -> None:
    """Compress all members: a bomb, if one of them were large."""
    pack(path, list(members_of(full()).items()), compression=zipfile.ZIP_DEFLATED)


def _tensor(**fields: Any) -> Callable[[Any], object]:
    return lambda model: model.graph.initializer.append(TensorProto(name="odd", **fields))


def _node(op: str, domain: str = "") -> Callable[[Any], object]:
    return lambda model: model.graph.node.append(helper.make_node(op, ["power"], ["unused"], domain=domain))


def _half_input(model: Any) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16


def _more_rows(model: Any) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = N_ROWS + 1


def _no_residual(model: Any) -> None:
    del model.graph.output[1]


def _overfull(model: Any) -> None:
    weights = numpy_helper.from_array(np.zeros((4, 4), np.int8), "weights")
    weights.dims[0] = 1 << 40
    model.graph.initializer.append(weights)


def _each_of_many_nodes(members: Members) -> Members:
    """Fill every graph with nodes, but none beyond what one may have."""
    padding = [helper.make_node("Identity", ["power"], [f"unused{i}"]) for i in range(3500)]
    return {**members, **{name: _with_nodes(members[name], padding) for name in ("model.onnx", FP16, INT8)}}


def _with_nodes(model_onnx: bytes, nodes: list[Any]) -> bytes:
    model = onnx.load_from_string(model_onnx)
    model.graph.node.extend(nodes)
    data: bytes = model.SerializeToString()
    return data


FP16, INT8, PT2 = "model.fp16.onnx", "model.int8.onnx", "model.pt2"

HOSTILE_OPTIONALS: dict[str, tuple[Make, str]] = {
    "fp16_unannounced": (with_manifest(lambda m: m["precisions"].pop("fp16")), f"{FP16}: the manifest says otherwise"),
    "int8_announced_only": (with_members(without(INT8)), f"{INT8}: the manifest says otherwise of int8"),
    "program_announced_only": (
        with_manifest(lambda m: m["sha256"].update({"model.pt3": "0" * 64})),
        "model.pt3: does not have the sha256",
    ),
    **{f"spoilt_{name}": (spoilt(name), f"{name}: does not have the sha256") for name in (FP16, INT8, PT2)},
    "no_digest_of_int8": (with_manifest(lambda m: m["sha256"].pop(INT8)), f"{INT8}: does not have the sha256"),
    "fourth_precision": (with_members(lambda m: {**m, "model.int4.onnx": m[INT8]}), "'model.int4.onnx' that is not"),
    "precision_unknown": (with_manifest(lambda m: m["precisions"].update(int4=m["precisions"]["int8"])), "precisions"),
    **{
        f"tolerance_{name}": (
            with_manifest(lambda m, v=value: m["precisions"]["int8"].update(golden_tolerance=v)),  # type: ignore[misc]
            "precisions.int8.golden_tolerance",
        )
        for name, value in {"any": 1e9, "none": 0.0, "nan": float("nan"), "quarter_and_more": 0.2500001}.items()
    },
    "calibration_missing": (with_manifest(lambda m: m["precisions"]["fp16"].pop("calibration")), "fp16.calibration"),
    "graph_empty": (with_members(lambda m: {**m, FP16: b""}), f"{FP16}: IR version 0"),
    "graph_half_inputs": (with_graph(FP16, _half_input), f"{FP16}: log_mel is not float32"),
    "graph_other_rows": (with_graph(INT8, _more_rows), f"{INT8}: log_mel is not float32 of shape"),
    "graph_one_output": (with_graph(INT8, _no_residual), f"{INT8}: gives \\['score'\\], the manifest says"),
    "graph_own_softmax": (with_graph(INT8, _node("QLinearSoftmax", "com.microsoft")), "com.microsoft.QLinearSoftmax"),
    "graph_integer_conv": (with_graph(INT8, _node("ConvInteger")), f"{INT8}: operator ConvInteger is not allowed"),
    "graph_int4": (with_graph(INT8, _tensor(dims=[4], data_type=22, raw_data=bytes(2))), "element type 22"),
    "graph_float8": (with_graph(INT8, _tensor(dims=[4], data_type=17, raw_data=bytes(4))), "element type 17"),
    "graph_bfloat16": (with_graph(FP16, _tensor(dims=[4], data_type=16, raw_data=bytes(8))), "element type 16"),
    "graph_overfull": (with_graph(INT8, _overfull), f"{INT8}: tensor 'weights' claims"),
    "graph_half_a_tensor": (with_graph(FP16, _tensor(dims=[4], data_type=10, raw_data=bytes(4))), "claims 4 values"),
    "graphs_of_many_nodes": (with_members(_each_of_many_nodes), f"has more than {MAX_FIELDS} fields"),
    "program_claims_300_mb": (claimed(PT2, 300 << 20), f"{PT2}: is 314572800 bytes long"),
    "program_claims_more_than_there_is": (claimed(PT2, 100 << 20), f"{PT2}: cannot be read|{PT2}: is cut short"),
    "all_deflated": (deflated, "is compressed"),
}
