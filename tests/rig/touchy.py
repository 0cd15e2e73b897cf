"""Signed bundles for the rig: one that always works, and one that fails when it is loud."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeasd.bundle import Golden, Inputs, read_bundle, write_bundle
from edgeasd.signing import generate_key, sign, signature_path
from tests.small_bundle import (
    N_FRAMES,
    SPEC,
    WINDOW_FRAMES,
    small_answers,
    small_golden,
    small_graph,
    small_manifest,
)


def touchy_graph() -> onnx.ModelProto:
    """Return the small model, made to score NaN where a mel row is above some 23 dB: zero times infinity."""
    model = small_graph()
    graph = model.graph
    next(node for node in graph.node if node.output[0] == "score").output[0] = "calm"
    values = {"both": np.array([1, 2], np.int64), "steep": np.float32(5.0), "shift": np.float32(-25.0)}
    graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in values.items())
    graph.initializer.append(helper.make_tensor("nothing", TensorProto.FLOAT, [], [0.0]))
    graph.node.extend(
        [
            helper.make_node("ReduceMax", ["log_mel", "both"], ["loudest"], keepdims=0),
            helper.make_node("Mul", ["loudest", "steep"], ["louder"]),
            helper.make_node("Add", ["louder", "shift"], ["shifted"]),
            helper.make_node("Exp", ["shifted"], ["huge"]),
            helper.make_node("Mul", ["huge", "nothing"], ["zero"]),
            helper.make_node("Add", ["calm", "zero"], ["score"]),
        ]
    )
    return model


class Signer:
    """Makes bundles of one name, each of a higher version, signed by a key that `trusted` holds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trusted = folder / "trust.d"
        self.trusted.mkdir(parents=True, mode=0o755)
        self.key = folder / "team.key"
        public, _ = generate_key(self.key)
        public.rename(self.trusted / public.name)
        self.version = 0

    def make(self, *, touchy: bool = False, name: str = "small", hop_frames: int = SPEC.hop_frames) -> Path:
        """Write the next version; return its path."""
        self.version += 1
        path = self.folder / f"v{self.version}.edgeasd"
        graph, golden = touchy_graph() if touchy else small_graph(), small_golden()
        spec = replace(SPEC, hop_frames=hop_frames)
        n_frames = spec.n_frames(WINDOW_FRAMES)
        if n_frames != N_FRAMES:
            graph.graph.input[0].type.tensor_type.shape.dim[2].dim_value = n_frames
            log_mel = golden.inputs["log_mel"][:, :, :n_frames]
            golden = Golden({"log_mel": log_mel}, small_answers(log_mel))
        update = {"version": self.version, "name": name, "inputs": Inputs(log_mel=spec)}
        manifest = small_manifest().model_copy(update=update)
        write_bundle(path, manifest=manifest, model_onnx=graph.SerializeToString(), golden=golden, card="")
        self.sign(path)
        return path

    def sign(self, path: Path, *, key: Path | None = None) -> None:
        """Sign whatever lies there, by the trusted key unless another is given."""
        signature_path(path).write_bytes(sign(hashlib.sha256(path.read_bytes()).digest(), key or self.key))


def digest(path: Path) -> str:
    """Return the sha256 of a bundle that is in order."""
    return read_bundle(path).sha256
