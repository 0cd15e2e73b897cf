"""The bundle: one file that carries a model and everything needed to trust and to use it.

A stored zip of manifest.json, model.onnx, golden.npz and card.md; optionally the same model in fewer bits
(model.fp16.onnx, model.int8.onnx) and as a torch program (model.pt2). `read_bundle` verifies all that can be verified
without running the model; the golden test, on opening an engine, does the rest.
"""

from __future__ import annotations

import hashlib
import io
import math
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np
from pydantic import ValidationError

from edgeasd.disk import replace_file
from edgeasd.errors import BundleError
from edgeasd.manifest import CalibrationTable, Inputs, Manifest, Precision, Provenance, first_fault
from edgeasd.members import MIB, open_zip, read_file, read_member
from edgeasd.onnxgraph import FLOAT32, GraphInfo, GraphReader, TensorInfo
from edgeasd.records import FloatArray
from edgeasd.signing import Trust, read_signature

__all__ = [
    "MIB",
    "Bundle",
    "CalibrationTable",
    "Golden",
    "Inputs",
    "Manifest",
    "Provenance",
    "check_graph",
    "read_bundle",
    "write_bundle",
]


MEMBER_LIMITS = {"manifest.json": MIB, "model.onnx": 256 * MIB, "golden.npz": 16 * MIB, "card.md": MIB}
"""The members, in the order they are written, and the most bytes each may have."""
REDUCED_MEMBERS: Mapping[Precision, str] = {"fp16": "model.fp16.onnx", "int8": "model.int8.onnx"}
PROGRAM_MEMBER = "model.pt2"
OPTIONAL_LIMITS = dict.fromkeys((*REDUCED_MEMBERS.values(), PROGRAM_MEMBER), 256 * MIB)
"""Members that may be missing."""
_MAX_BUNDLE_BYTES = sum(MEMBER_LIMITS.values()) + MIB
_MAX_GOLDEN_WINDOWS = 64
_MAX_DIMENSIONS = 8


@dataclass(frozen=True, slots=True)
class Golden:
    """Some windows and what the model made of them where it was trained."""

    inputs: Mapping[str, FloatArray]
    """By graph input; shape (windows, ..)."""
    outputs: Mapping[str, FloatArray]


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle that was read and found whole; its golden test is still to come."""

    path: Path
    manifest: Manifest
    sha256: str
    """Of the whole file."""
    model_onnx: bytes
    golden: Golden
    card: str
    signed_by: str | None = None
    """The trusted key that signed it; None where no keys are trusted, and nobody looked."""
    optional: Mapping[str, bytes] = field(default_factory=dict)
    """The optional members it holds, by name; those of a file are read when they are asked for."""

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """Return the precisions there are graphs for."""
        return ("fp32", *self.manifest.precisions)

    @property
    def program(self) -> bytes | None:
        """Return the torch program (model.pt2), None where there is none."""
        return self.optional.get(PROGRAM_MEMBER)

    def graph(self, precision: Precision) -> bytes:
        """Return the ONNX graph of a precision; BundleError when the bundle has none."""
        if precision not in self.precisions:
            raise BundleError(f"{self.path}: has no graph in {precision}, only in {', '.join(self.precisions)}")
        return self.model_onnx if precision == "fp32" else self.optional[REDUCED_MEMBERS[precision]]

    def calibration(self, precision: Precision) -> CalibrationTable:
        """Return what the scores of a precision mean; BundleError when the bundle has no such graph."""
        if precision == "fp32":
            return self.manifest.calibration
        self.graph(precision)
        return self.manifest.precisions[precision].calibration


def read_bundle(path: Path | str, *, trust: Trust | None = None) -> Bundle:
    """Return the verified bundle at `path`; BundleError says what is wrong with it.

    With `trust` nothing of it is looked into before its signature holds.
    """
    path = Path(path)
    try:
        data = read_file(path, _MAX_BUNDLE_BYTES)
        digest = hashlib.sha256(data)
        signer = None if trust is None else str(trust.signer(digest.digest(), read_signature(path)))
        members = _read_members(data)
        manifest = _read_manifest(members)
        reader = GraphReader()
        for name in ("model.onnx", *(REDUCED_MEMBERS[precision] for precision in manifest.precisions)):
            _check_member(name, members[name], manifest, reader)
        golden = _read_golden(members["golden.npz"], manifest)
        card = members["card.md"].decode("utf-8", errors="replace")
    except BundleError as exc:
        raise BundleError(f"{path}: {exc}") from exc
    optional = {name: manifest.sha256[name] for name in OPTIONAL_LIMITS if name in members}
    model_onnx = members["model.onnx"]
    return Bundle(path, manifest, digest.hexdigest(), model_onnx, golden, card, signer, _Shelved(path, optional))


def write_bundle(
    path: Path | str,
    *,
    manifest: Manifest,
    model_onnx: bytes,
    golden: Golden,
    card: str,
    optional: Mapping[str, bytes] = MappingProxyType({}),
) -> Manifest:
    """Write a bundle in one step, so that no reader ever sees half of it, and return the manifest with its digests.

    `optional` holds members of `OPTIONAL_LIMITS` by name.
    """
    members = {"model.onnx": model_onnx, "golden.npz": _pack_golden(golden), "card.md": card.encode(), **optional}
    manifest = manifest.model_copy(update={"sha256": {name: _sha256(data) for name, data in members.items()}})
    members = {"manifest.json": manifest.model_dump_json(indent=1).encode(), **members}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED, strict_timestamps=True) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    replace_file(Path(path), packed.getvalue())
    return manifest


def check_graph(graph: GraphInfo, manifest: Manifest) -> None:
    """Refuse a graph whose inputs and outputs are not exactly those the manifest promises."""
    inputs: dict[str, tuple[int | str, ...]] = {
        name: ("batch", *shape) for name, shape in manifest.input_shapes().items()
    }
    if sorted(value.name for value in graph.inputs) != sorted(inputs):
        raise BundleError(f"model.onnx: takes {[v.name for v in graph.inputs]}, the manifest says {sorted(inputs)}")
    for value in graph.inputs:
        _check_value(value, inputs[value.name])
    if [value.name for value in graph.outputs] != manifest.outputs:
        raise BundleError(f"model.onnx: gives {[v.name for v in graph.outputs]}, the manifest says {manifest.outputs}")
    spec = manifest.inputs.log_mel
    widths: dict[str, tuple[int | str, ...]] = {
        "score": (),
        "residual": (spec.n_rows if spec else "rows",),
        "reconstruction": manifest.input_shapes().get("log_mel", ("rows", "frames")),
    }
    for value in graph.outputs:
        _check_value(value, ("batch", *widths.get(value.name, ("width",))))


def _check_member(name: str, graph_onnx: bytes, manifest: Manifest, reader: GraphReader) -> None:
    try:
        check_graph(reader.read(graph_onnx), manifest)
    except BundleError as exc:
        raise BundleError(str(exc).replace("model.onnx", name, 1)) from exc  # the reader knows one name only


def _check_value(value: TensorInfo, expected: tuple[int | str, ...]) -> None:
    """Refuse a wrong type or shape; a string stands for a free dimension first, for any fixed size elsewhere."""
    shape_ok = len(value.dims) == len(expected) and isinstance(value.dims[0], str)
    if shape_ok:
        pairs = zip(value.dims[1:], expected[1:], strict=True)
        shape_ok = all(isinstance(a, int) and a >= 1 and (isinstance(b, str) or a == b) for a, b in pairs)
    if value.element_type != FLOAT32 or not shape_ok:
        shape = ", ".join(str(dim) for dim in expected)
        raise BundleError(f"model.onnx: {value.name} is not float32 of shape [{shape}]")


def _read_members(data: bytes) -> dict[str, bytes]:
    """Return the members of the zip; refuses any it does not know, and any not stored, twice there or too large."""
    archive = open_zip(data)
    names = [info.filename for info in archive.infolist()]
    if len(set(names)) != len(names):
        raise BundleError("holds a member twice")
    for name in sorted((set(names) - set(OPTIONAL_LIMITS)) ^ set(MEMBER_LIMITS)):
        raise BundleError(f"holds a member {name!r} that is not known" if name in names else f"lacks {name}")
    limits = {**MEMBER_LIMITS, **OPTIONAL_LIMITS}
    return {name: read_member(archive, name, limit) for name, limit in limits.items() if name in names}


class _Shelved(Mapping[str, bytes]):
    """Optional members that stay in the file: most nodes need none of them, and none for longer than to open an engine.

    What is read is what was verified: BundleError when the file is gone or says something else by now.
    """

    def __init__(self, path: Path, sha256: Mapping[str, str]) -> None:
        self._path = path
        self._sha256 = sha256

    def __getitem__(self, name: str) -> bytes:
        digest = self._sha256[name]
        try:
            data = read_member(open_zip(read_file(self._path, _MAX_BUNDLE_BYTES)), name, OPTIONAL_LIMITS[name])
        except (BundleError, KeyError) as exc:
            raise BundleError(f"{self._path}: {name}: cannot be read again: {exc}") from exc
        if _sha256(data) != digest:
            raise BundleError(f"{self._path}: {name}: has changed since the bundle was verified")
        return data

    def __contains__(self, name: object) -> bool:
        return name in self._sha256

    def __iter__(self) -> Iterator[str]:
        return iter(self._sha256)

    def __len__(self) -> int:
        return len(self._sha256)


def _read_manifest(members: Mapping[str, bytes]) -> Manifest:
    try:
        manifest = Manifest.model_validate_json(members["manifest.json"])
    except ValidationError as exc:
        raise BundleError(f"manifest.json: {first_fault(exc)}") from exc
    digests = {name: _sha256(data) for name, data in members.items() if name != "manifest.json"}
    for name in sorted(set(digests) | set(manifest.sha256)):
        if manifest.sha256.get(name) != digests.get(name):
            raise BundleError(f"{name}: does not have the sha256 that the manifest gives")
    for precision, name in REDUCED_MEMBERS.items():
        if (name in members) != (precision in manifest.precisions):
            raise BundleError(f"{name}: the manifest says otherwise of {precision}")
    return manifest


def _read_golden(data: bytes, manifest: Manifest) -> Golden:
    inputs = {f"input.{name}": shape for name, shape in manifest.input_shapes().items()}
    expected = {*inputs, *(f"output.{name}" for name in manifest.outputs)}
    archive = open_zip(data)
    if sorted(info.filename for info in archive.infolist()) != sorted(f"{key}.npy" for key in expected):
        raise BundleError("golden.npz: does not hold exactly the graph's inputs and outputs")
    limit_bytes = MEMBER_LIMITS["golden.npz"]
    arrays = {key: _read_array(read_member(archive, f"{key}.npy", limit_bytes), key) for key in sorted(expected)}
    n_windows = len(arrays["output.score"])
    if not 1 <= n_windows <= _MAX_GOLDEN_WINDOWS or any(len(array) != n_windows for array in arrays.values()):
        raise BundleError(f"golden.npz: does not hold 1 to {_MAX_GOLDEN_WINDOWS} windows throughout")
    for key, shape in inputs.items():
        if arrays[key].shape[1:] != shape:
            raise BundleError(f"golden.npz: {key} has windows of shape {arrays[key].shape[1:]}, not {shape}")
    return Golden(_with_prefix(arrays, "input."), _with_prefix(arrays, "output."))


def _read_array(npy: bytes, key: str) -> FloatArray:
    """Return a float32 array from the bytes of an .npy file; nothing is allocated before the sizes agree."""
    file = io.BytesIO(npy)
    try:
        np.lib.format.read_magic(file)
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    except (ValueError, EOFError, SyntaxError, TypeError) as exc:
        raise BundleError(f"golden.npz: {key} is not an array") from exc
    values = npy[file.tell() :]
    n_values = math.prod(shape) if 1 <= len(shape) <= _MAX_DIMENSIONS and min(shape) >= 1 else 0
    if dtype != np.dtype("<f4") or fortran_order or n_values * 4 != len(values) or not n_values:
        raise BundleError(f"golden.npz: {key} is not a plain float32 array of the size it claims")
    array = np.frombuffer(values, np.float32).reshape(shape)
    if not np.isfinite(array).all():
        raise BundleError(f"golden.npz: {key} holds values that are not finite")
    return array


def _pack_golden(golden: Golden) -> bytes:
    packed = io.BytesIO()
    groups = (("input", golden.inputs), ("output", golden.outputs))
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for key, array in [(f"{group}.{name}", a) for group, arrays in groups for name, a in sorted(arrays.items())]:
            npy = io.BytesIO()
            np.lib.format.write_array(npy, np.ascontiguousarray(array, "<f4"), version=(1, 0), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{key}.npy"), npy.getvalue())
    return packed.getvalue()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _with_prefix(arrays: Mapping[str, FloatArray], prefix: str) -> dict[str, FloatArray]:
    return {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
