"""Hostile bundles by name: what writes each, and the refusal it earns. Digests are right unless that is the point."""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tests.rig.hostile_models import HOSTILE_MODELS
from tests.small_bundle import N_ROWS, small_golden, small_inputs, write_small_bundle

Members = dict[str, bytes]
Make = Callable[[Path], object]
Change = Callable[[dict[str, Any]], object]


@cache
def honest() -> bytes:
    """Return a bundle that is in order."""
    with tempfile.TemporaryDirectory() as folder:
        return write_small_bundle(Path(folder) / "small.edgeasd").read_bytes()


def members_of(bundle: bytes) -> Members:
    """Return the members of a bundle."""
    with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def pack(path: Path, members: list[tuple[str, bytes]], *, compression: int = zipfile.ZIP_STORED) -> None:
    """Write a zip of these members, whatever they are."""
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", compression) as archive:
        warnings.simplefilter("ignore")  # duplicate names are what some of them are about
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data, compress_type=compression)


def pack_honestly(path: Path, name: str, data: bytes) -> None:
    """Write a bundle with another member `name`, whose digest is right."""
    members = members_of(honest()) | {name: data}
    manifest = json.loads(members["manifest.json"])
    manifest["sha256"][name] = hashlib.sha256(data).hexdigest()
    pack(path, list({**members, "manifest.json": json.dumps(manifest).encode()}.items()))


def with_model(make_model: Callable[[], Any]) -> Make:
    """Put another model into an honest bundle."""

    def make(path: Path) -> None:
        model = make_model()
        pack_honestly(path, "model.onnx", model if isinstance(model, bytes) else model.SerializeToString())

    return make


def with_manifest(change: Change) -> Make:
    """Change the manifest of an honest bundle."""

    def make(path: Path) -> None:
        members = members_of(honest())
        manifest = json.loads(members["manifest.json"])
        change(manifest)
        pack(path, list({**members, "manifest.json": json.dumps(manifest).encode()}.items()))

    return make


def with_manifest_text(text: bytes) -> Make:
    """Put these bytes in place of the manifest."""
    return with_members(lambda members: {**members, "manifest.json": text})


def with_members(change: Callable[[Members], Members], *, compression: int = zipfile.ZIP_STORED) -> Make:
    """Change the members of an honest bundle."""
    return lambda path: pack(path, list(change(members_of(honest())).items()), compression=compression)


def with_more(*more: tuple[str, bytes]) -> Make:
    """Add members, or one of those again."""
    return lambda path: pack(path, [*members_of(honest()).items(), *more])


def with_bytes(change: Callable[[bytearray], bytes | bytearray]) -> Make:
    """Change the bytes of an honest bundle."""
    return lambda path: path.write_bytes(change(bytearray(honest())))


def with_golden(change: Mapping[str, Any], *, compression: int = zipfile.ZIP_STORED) -> Make:
    """Change arrays of golden.npz, given as arrays or as the bytes of their files."""

    def make(path: Path) -> None:
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", compression) as archive:
            for name, array in {**golden_arrays(), **change}.items():
                data = array if isinstance(array, bytes) else npy(array)
                archive.writestr(zipfile.ZipInfo(f"{name}.npy"), data, compress_type=compression)
        pack_honestly(path, "golden.npz", packed.getvalue())

    return make


def golden_arrays() -> dict[str, Any]:
    """Return the arrays of an honest golden.npz."""
    golden = small_golden()
    return {f"input.{k}": v for k, v in golden.inputs.items()} | {f"output.{k}": v for k, v in golden.outputs.items()}


def npy(array: Any) -> bytes:
    """Return the bytes of an .npy file."""
    file = io.BytesIO()
    np.lib.format.write_array(file, array)
    return file.getvalue()


def npy_header(text: str, body: bytes = b"") -> bytes:
    """Return the bytes of an .npy file with any header."""
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + body


class Evil:
    """What a pickle makes of itself when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /tmp/edgeasd-was-here",)


def claim(member: str, n_bytes: int) -> Make:
    """Let the directory claim another size of a member, stored."""

    def change(data: bytearray) -> bytearray:
        entry = data.rindex(member.encode()) - 46
        data[entry + 20 : entry + 28] = n_bytes.to_bytes(4, "little") * 2
        return data

    return with_bytes(change)


def overlapping(data: bytearray) -> bytearray:
    """Let the last member of the directory begin where the one before it does."""
    entries = [at for at in range(len(data)) if data[at : at + 4] == b"PK\1\2"]
    data[entries[-1] + 42 : entries[-1] + 46] = data[entries[-2] + 42 : entries[-2] + 46]
    return data


def outside(data: bytearray) -> bytearray:
    """Let a member begin behind the end of the file."""
    entry = data.rindex(b"PK\1\2")
    data[entry + 42 : entry + 46] = b"\xf0\xff\xff\x7f"
    return data


def encrypted(data: bytearray) -> bytearray:
    """Say that the last member is encrypted."""
    data[data.rindex(b"PK\1\2") + 8] |= 1
    return data


def zip64(data: bytearray) -> bytearray:
    """Say that the true figures lie in a 64-bit record, and give one that claims a directory of 2**62 bytes."""
    record = b"PK\6\6" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, 4, 4, 1 << 62, 0)
    locator = b"PK\6\7" + struct.pack("<IQI", 0, len(data) - 22, 1)
    end = bytearray(data[-22:])
    end[8:20] = b"\xff" * 12
    return bytearray(bytes(data[:-22]) + record + locator + bytes(end))


def sparse(n_bytes: int) -> Make:
    """Write so much of nothing, which takes no room on the disk."""

    def make(path: Path) -> None:
        path.touch()
        os.truncate(path, n_bytes)

    return make


_HUGE = "{'descr': '<f4', 'fortran_order': False, 'shape': (%s,), }"
_ZEROS = ", ".join(["0"] * 40)

HOSTILE_ZIPS: dict[str, tuple[Make, str]] = {
    "empty": (lambda path: path.write_bytes(b""), "whole zip file"),
    **{f"cut_at_{n}": (with_bytes(lambda data, n=n: data[:n]), "whole zip file") for n in (4, 21, 22, 1000, 4000)},  # type: ignore[misc]
    "sparse_270_mb": (sparse(270 << 20), "whole zip file"),
    "300_mb": (sparse(300 << 20), "the limit is"),
    "script_before": (with_bytes(lambda data: b"#!/bin/sh\n" + data), "before or behind"),
    "byte_behind": (with_bytes(lambda data: data + b"\n"), "whole zip file"),
    "comment": (with_bytes(lambda data: data[:-2] + b"\4\0evil"), "whole zip file"),
    "unknown_member": (with_more(("evil.py", b"")), "'evil.py' that is not known"),
    "path_upwards": (with_more(("../../etc/cron.d/x", b"")), "that is not known"),
    "absolute_path": (with_more(("/model.onnx", b"")), "that is not known"),
    "external_weights": (with_more(("model.onnx.data", bytes(64))), "that is not known"),
    "pickle": (with_more(("model.pt", b"\x80\4.")), "that is not known"),
    "member_missing": (with_members(lambda members: dict(list(members.items())[:-1])), "lacks card.md"),
    "no_members": (with_members(lambda members: {}), "lacks"),
    "member_twice": (with_more(("model.onnx", b"")), "a member twice"),
    "huge_directory": (with_more(*((f"{i}" * 40, b"") for i in range(2000))), "directory of"),
    "bomb": (
        with_members(lambda members: {**members, "card.md": bytes(64 << 20)}, compression=zipfile.ZIP_DEFLATED),
        "is compressed",
    ),
    "long_card": (with_members(lambda members: {**members, "card.md": bytes(2 << 20)}), "card.md: is 2097152 bytes"),
    "claims_100_mb": (claim("card.md", 100 << 20), "card.md: is 104857600 bytes"),
    "claims_more_than_there_is": (claim("model.onnx", 100 << 20), "cannot be read|cut short"),
    "claims_4_gb": (claim("model.onnx", 0xFFFFFFFF), "the limit is|cannot be read"),
    "overlapping": (with_bytes(overlapping), "cannot be read"),
    "begins_outside": (with_bytes(outside), "cannot be read"),
    "zip64": (with_bytes(zip64), "directory of"),
    "encrypted": (with_bytes(encrypted), "cannot be read"),
    **{
        f"changed_{name}": (with_members(lambda m, n=name: {**m, n: m[n][:-1] + b"\7"}), f"{name}: does not have")  # type: ignore[misc]
        for name in ("model.onnx", "golden.npz", "card.md")
    },
}

HOSTILE_MANIFESTS: dict[str, tuple[Make, str]] = {
    **{
        f"manifest_{name}": (with_manifest_text(text), "manifest.json")
        for name, text in {
            "empty": b"",
            "list": b"[]",
            "cut": b"{",
            "nested": b"[" * 100_000,
            "nested_objects": b'{"a":' * 100_000,
            "not_utf8": b"\xff\xfe",
            "nan": b'{"version": NaN}',
            "huge_number": b'{"version": 1' + b"0" * 5000 + b"}",
            "megabyte_of_spaces": b" " * (1 << 20),
        }.items()
    },
    **{
        f"manifest_{name}": (with_manifest(change), says)
        for name, (change, says) in {
            "unknown_key": (lambda m: m.update(surprise=1), "surprise: Extra inputs"),
            "unknown_mel_key": (lambda m: m["inputs"]["log_mel"].update(colour="red"), "unknown key colour"),
            "unknown_calibration_key": (lambda m: m["calibration"].update(n=1), "calibration.n: Extra"),
            "format": (lambda m: m.update(format_version=2), "format_version"),
            "name": (lambda m: m.update(name="../x"), "name"),
            "version_0": (lambda m: m.update(version=0), "version"),
            "huge_window": (lambda m: m.update(window_frames=10**12), "window_frames"),
            "short_window": (lambda m: m.update(window_frames=100), "shorter than one FFT"),
            "other_rate": (lambda m: m.update(sample_rate_hz=16000), "8000 Hz is not the model's"),
            "huge_fft": (lambda m: m["inputs"]["log_mel"].update(n_fft=1 << 40), "n_fft: 1099511627776 is above"),
            "huge_mels": (lambda m: m["inputs"]["log_mel"].update(n_mels=10**9), "n_mels: 1000000000 is above"),
            "no_score": (lambda m: m.update(outputs=["residual"]), "must name score"),
            "no_inputs": (lambda m: m.update(inputs={}), "neither log_mel nor waveform"),
            "falling": (lambda m: m["calibration"]["quantiles"].reverse(), "decrease"),
            "nan_shape": (lambda m: m["calibration"].update(tail_shape=float("nan")), "tail_shape"),
            "wrong_digest": (lambda m: m["sha256"].update({"card.md": "0" * 64}), "card.md: does not have"),
            "no_digest": (lambda m: m["sha256"].pop("model.onnx"), "model.onnx: does not have the sha256"),
            "extra_digest": (lambda m: m["sha256"].update({"other": "0" * 64}), "other: does not have the sha256"),
            "more_inputs": (lambda m: m["inputs"].update(waveform=True), "the manifest says"),
            "more_outputs": (lambda m: m["outputs"].append("logits"), "the manifest says"),
            "other_rows": (lambda m: m["inputs"]["log_mel"].update(rows=[0, 4]), r"shape \[batch, 4, 5\]"),
        }.items()
    },
}

HOSTILE_GOLDENS: dict[str, tuple[Make, str]] = {
    "golden_pickle": (with_golden({"input.log_mel": np.array([Evil()], dtype=object)}), "input.log_mel is not a"),
    "golden_doubles": (with_golden({"input.log_mel": small_inputs(3).astype(np.float64)}), "not a plain float32"),
    "golden_fortran": (with_golden({"input.log_mel": np.asfortranarray(small_inputs(3))}), "not a plain float32"),
    "golden_rows": (with_golden({"input.log_mel": small_inputs(3)[:, :4]}), "has windows of shape"),
    "golden_windows": (with_golden({"input.log_mel": small_inputs(2)}), "windows throughout"),
    "golden_nan": (with_golden({"output.score": np.array([1, 2, np.nan], np.float32)}), "not finite"),
    "golden_extra": (with_golden({"output.extra": np.zeros(3, np.float32)}), "exactly the graph's"),
    "golden_magic": (with_golden({"input.log_mel": b"\x93NUMPY"}), "is not an array"),
    "golden_empty": (with_golden({"input.log_mel": b""}), "is not an array"),
    "golden_4_tb": (with_golden({"input.log_mel": npy_header(_HUGE % f"{1 << 40}, {N_ROWS}, 5")}), "size it claims"),
    "golden_overflow": (with_golden({"input.log_mel": npy_header(_HUGE % f"{1 << 62}, 4, 8")}), "size it claims"),
    "golden_negative": (with_golden({"input.log_mel": npy_header(_HUGE % "-1, -8, 5", bytes(160))}), "not a|windows"),
    "golden_dimensions": (with_golden({"input.log_mel": npy_header(_HUGE % ("1, " * 70), bytes(4))}), "not a|size it"),
    "golden_zeros": (with_golden({"input.log_mel": npy_header(_HUGE % f"3, 8, 5, {_ZEROS}")}), "size it claims"),
    "golden_code": (with_golden({"input.log_mel": npy_header("__import__('os').abort()")}), "is not an array"),
    "golden_nested": (with_golden({"input.log_mel": npy_header("(" * 60_000)}), "is not an array"),
    "golden_no_windows": (with_golden({k: v[:0] for k, v in golden_arrays().items()}), "size it claims"),
    "golden_65_windows": (
        with_golden({k: np.repeat(v[:1], 65, axis=0) for k, v in golden_arrays().items()}),
        "windows throughout",
    ),
    "golden_compressed": (with_golden({}, compression=zipfile.ZIP_DEFLATED), "is compressed"),
}

HOSTILE_BUNDLES: dict[str, tuple[Make, str]] = {
    **HOSTILE_ZIPS,
    **HOSTILE_MANIFESTS,
    **{f"model_{name}": (with_model(make), says) for name, (make, says) in HOSTILE_MODELS.items()},
    **HOSTILE_GOLDENS,
}
