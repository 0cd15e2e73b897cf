"""A bundle is read whole and as it was written, or refused in one line and at once."""

from __future__ import annotations

import gc
import hashlib
import io
import json
import os
import time
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from edgeasd.bundle import read_bundle, write_bundle
from edgeasd.errors import BundleError, CannotWriteError
from tests.small_bundle import (
    N_ROWS,
    small_golden,
    small_graph,
    small_inputs,
    small_manifest,
    write_small_bundle,
)

Members = dict[str, bytes]


@pytest.fixture
def bundle_path(tmp_path: Path) -> Path:
    return write_small_bundle(tmp_path / "small.edgeasd")


def members_of(path: Path) -> Members:
    with zipfile.ZipFile(path) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def pack(path: Path, members: list[tuple[str, bytes]], *, compression: int = zipfile.ZIP_STORED) -> Path:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", compression) as archive:
        warnings.simplefilter("ignore")  # duplicate names are what some tests are about
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data, compress_type=compression)
    return path


def with_model(path: Path, model: Any) -> Path:
    """Write an honest bundle around another model: every digest is right."""
    data = model if isinstance(model, bytes) else model.SerializeToString()
    write_bundle(path, manifest=small_manifest(), model_onnx=data, golden=small_golden(), card="")
    return path


def with_manifest(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    members = members_of(write_small_bundle(path))
    manifest = json.loads(members["manifest.json"])
    change(manifest)
    return pack(path, list({**members, "manifest.json": json.dumps(manifest).encode()}.items()))


def with_golden(path: Path, arrays: dict[str, Any], *, compression: int = zipfile.ZIP_STORED) -> Path:
    """Write a bundle around another golden.npz, its digest right."""
    golden = io.BytesIO()
    with zipfile.ZipFile(golden, "w", compression) as archive:
        for name, array in arrays.items():
            npy = io.BytesIO()
            if isinstance(array, bytes):
                npy.write(array)
            else:
                np.lib.format.write_array(npy, array)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), npy.getvalue(), compress_type=compression)
    members = members_of(write_small_bundle(path))
    manifest = small_manifest().model_copy(
        update={"sha256": {**json.loads(members["manifest.json"])["sha256"], "golden.npz": sha256(golden.getvalue())}}
    )
    members |= {"manifest.json": manifest.model_dump_json().encode(), "golden.npz": golden.getvalue()}
    return pack(path, list(members.items()))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def golden_arrays() -> dict[str, Any]:
    golden = small_golden()
    return {f"input.{k}": v for k, v in golden.inputs.items()} | {f"output.{k}": v for k, v in golden.outputs.items()}


def refuse(path: Path, says: str) -> None:
    gc.disable()  # a round over what other tests have left lying about is not the reader's doing
    try:
        started_s = time.thread_time()
        with pytest.raises(BundleError, match=says) as caught:
            read_bundle(path)
        assert time.thread_time() - started_s < 0.1
    finally:
        gc.enable()
    assert caught.value.exit_code == 65
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_what_is_written_is_read_back(bundle_path: Path) -> None:
    bundle = read_bundle(bundle_path)
    assert bundle.manifest.model_copy(update={"sha256": {}}) == small_manifest()
    assert bundle.model_onnx == small_graph().SerializeToString()
    assert bundle.card == "# small\n"
    assert bundle.sha256 == sha256(bundle_path.read_bytes())
    for group, expected in (
        (bundle.golden.inputs, small_golden().inputs),
        (bundle.golden.outputs, small_golden().outputs),
    ):
        assert group.keys() == expected.keys()
        assert all(np.array_equal(group[name], expected[name]) for name in expected)


def test_the_same_content_gives_the_same_file(bundle_path: Path, tmp_path: Path) -> None:
    assert write_small_bundle(tmp_path / "again.edgeasd").read_bytes() == bundle_path.read_bytes()


def test_golden_vectors_open_in_numpy_without_pickle(bundle_path: Path) -> None:
    arrays = np.load(io.BytesIO(members_of(bundle_path)["golden.npz"]), allow_pickle=False)
    assert np.array_equal(arrays["input.log_mel"], small_golden().inputs["log_mel"])


def test_a_symbolic_link_to_a_bundle_is_followed(bundle_path: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(bundle_path)
    assert read_bundle(tmp_path / "current").manifest.name == "small"


def test_a_write_that_fails_leaves_the_old_bundle_and_nothing_else(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = bundle_path.read_bytes()

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(CannotWriteError, match="No space left"):
        write_small_bundle(bundle_path)
    assert bundle_path.read_bytes() == before
    assert [path.name for path in bundle_path.parent.iterdir()] == [bundle_path.name]


def test_a_directory_that_is_not_there_cannot_be_written_to(tmp_path: Path) -> None:
    with pytest.raises(CannotWriteError, match="No such file"):
        write_small_bundle(tmp_path / "nowhere" / "small.edgeasd")


def test_missing_file_directory_and_device_are_refused(tmp_path: Path) -> None:
    refuse(tmp_path / "none.edgeasd", "No such file")
    refuse(tmp_path, "Is a directory|is not a file")
    refuse(Path("/dev/zero"), "is not a file")
    os.mkfifo(tmp_path / "fifo")
    refuse(tmp_path / "fifo", "is not a file")


@pytest.mark.parametrize("n_bytes", [0, 4, 21, 22, 100, 1000, 4000])
def test_a_file_cut_short_is_refused(bundle_path: Path, n_bytes: int) -> None:
    bundle_path.write_bytes(bundle_path.read_bytes()[:n_bytes])
    refuse(bundle_path, "whole zip file")


def test_a_changed_byte_in_any_member_is_refused(bundle_path: Path) -> None:
    members = members_of(bundle_path)
    for name in ("model.onnx", "golden.npz", "card.md"):
        changed = bytearray(members[name])
        changed[len(changed) // 2] ^= 1
        pack(bundle_path, list({**members, name: bytes(changed)}.items()))
        refuse(bundle_path, f"{name}: does not have the sha256")


def test_random_damage_never_gives_anything_but_a_bundle_error(bundle_path: Path) -> None:
    whole = bundle_path.read_bytes()
    random = np.random.default_rng(3)
    n_refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for position in random.integers(0, len(whole), random.integers(1, 4)):
            damaged[position] = random.integers(256)
        bundle_path.write_bytes(damaged)
        try:
            read_bundle(bundle_path)
        except BundleError:
            n_refused += 1
    assert n_refused > 280  # the rest hits time stamps and flags of the zip, or the byte that was there


def test_extra_missing_and_double_members_are_refused(bundle_path: Path) -> None:
    members = list(members_of(bundle_path).items())
    refuse(pack(bundle_path, [*members, ("evil.py", b"")]), "'evil.py' that is not known")
    refuse(pack(bundle_path, [*members, ("../../etc/cron.d/x", b"")]), "that is not known")
    refuse(pack(bundle_path, [*members, ("/model.onnx", b"")]), "that is not known")
    refuse(pack(bundle_path, members[:-1]), "lacks card.md")
    refuse(pack(bundle_path, [*members, members[1]]), "a member twice")
    refuse(pack(bundle_path, []), "lacks")
    refuse(pack(bundle_path, [*members, *((f"{i}" * 40, b"") for i in range(2000))]), "directory of")


def test_compressed_members_are_refused_unread(bundle_path: Path) -> None:
    members = members_of(bundle_path) | {"card.md": bytes(200 << 20)}
    refuse(pack(bundle_path, list(members.items()), compression=zipfile.ZIP_DEFLATED), "is compressed")


def test_sizes_beyond_the_limits_or_the_file_are_refused(bundle_path: Path) -> None:
    members = members_of(bundle_path)
    refuse(pack(bundle_path, list({**members, "card.md": bytes(2 << 20)}.items())), "card.md: is 2097152 bytes")
    write_small_bundle(bundle_path)
    data = bytearray(bundle_path.read_bytes())
    entry = data.rindex(b"PK\1\2")  # card.md in the directory: claim a hundred megabytes, stored
    data[entry + 20 : entry + 28] = (100 << 20).to_bytes(4, "little") * 2
    bundle_path.write_bytes(data)
    refuse(bundle_path, "card.md: is 104857600 bytes")
    entry = data.index(b"model.onnx", data.index(b"PK\1\2")) - 46
    data[entry + 20 : entry + 28] = (100 << 20).to_bytes(4, "little") * 2
    bundle_path.write_bytes(data)
    refuse(bundle_path, "cannot be read|cut short")


def test_something_before_or_behind_the_zip_is_refused(bundle_path: Path) -> None:
    whole = bundle_path.read_bytes()
    bundle_path.write_bytes(b"#!/bin/sh\n" + whole)
    refuse(bundle_path, "before or behind")
    bundle_path.write_bytes(whole + b"\n")
    refuse(bundle_path, "whole zip file")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m.update(surprise=1), "surprise: Extra inputs"),
        (lambda m: m["inputs"]["log_mel"].update(colour="red"), "unknown key colour"),
        (lambda m: m["calibration"].update(n=1), "calibration.n: Extra"),
        (lambda m: m.update(format_version=2), "format_version"),
        (lambda m: m.update(name="../x"), "name"),
        (lambda m: m.update(window_frames=10**12), "window_frames"),
        (lambda m: m.update(window_frames=100), "shorter than one FFT"),
        (lambda m: m.update(sample_rate_hz=16000), "8000 Hz is not the model's"),
        (lambda m: m["inputs"]["log_mel"].update(n_fft=1 << 40), "n_fft: 1099511627776 is above"),
        (lambda m: m["inputs"]["log_mel"].update(n_mels=10**9), "n_mels: 1000000000 is above"),
        (lambda m: m.update(outputs=["residual"]), "must name score"),
        (lambda m: m.update(inputs={}), "neither log_mel nor waveform"),
        (lambda m: m["calibration"]["quantiles"].reverse(), "decrease"),
        (lambda m: m["calibration"].update(tail_shape=float("nan")), "tail_shape"),
        (lambda m: m["sha256"].update({"card.md": "0" * 64}), "card.md: does not have the sha256"),
        (lambda m: m["sha256"].pop("model.onnx"), "model.onnx: does not have the sha256"),
        (lambda m: m["sha256"].update({"other": "0" * 64}), "other: does not have the sha256"),
        (lambda m: m["inputs"].update(waveform=True), "the manifest says"),
        (lambda m: m["outputs"].append("logits"), "the manifest says"),
        (lambda m: m["inputs"]["log_mel"].update(rows=[0, 4]), r"log_mel is not float32 of shape \[batch, 4, 5\]"),
    ],
)
def test_a_manifest_that_does_not_hold_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], says: str
) -> None:
    refuse(with_manifest(tmp_path / "b.edgeasd", change), says)


def test_a_manifest_that_is_no_json_is_refused(bundle_path: Path) -> None:
    members = members_of(bundle_path)
    for text in (b"", b"[]", b"{", b"[" * 100_000, b"\xff\xfe"):
        refuse(pack(bundle_path, list({**members, "manifest.json": text}.items())), "manifest.json")


def external_data() -> Any:
    model = small_graph()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    return model


def with_node(op: str, *, domain: str = "", **attributes: Any) -> Any:
    model = small_graph()
    model.graph.node.append(helper.make_node(op, ["power"], ["unused"], domain=domain, **attributes))
    return model


def loop_bomb() -> Any:
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("go_on", TensorProto.BOOL, [])],
    )
    return with_node("Loop", body=body)


def hidden_subgraph() -> Any:
    """Put a graph into an attribute of an operator that is allowed."""
    empty = helper.make_graph([], "g", [], [])
    return with_node("Identity", body=empty)


def with_function() -> Any:
    model = small_graph()
    model.functions.append(helper.make_function("", "Trick", ["x"], ["y"], [], [helper.make_opsetid("", 20)]))
    return model


def huge_initializer() -> Any:
    model = small_graph()
    model.graph.initializer.append(TensorProto(name="huge", dims=[1 << 20, 1 << 20], data_type=TensorProto.FLOAT))
    return model


def huge_constant() -> Any:
    return with_node("Constant", value=TensorProto(name="c", dims=[1 << 40], data_type=TensorProto.FLOAT))


def with_opset(version: int, domain: str = "") -> Any:
    model = small_graph()
    model.opset_import[0].version = version
    model.opset_import[0].domain = domain
    return model


def second_opset() -> Any:
    model = small_graph()
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    return model


def renamed_input() -> Any:
    model = small_graph()
    model.graph.input[0].name = "mel"
    model.graph.node[0].input[0] = "mel"
    return model


def fixed_batch() -> Any:
    model = small_graph()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    return model


def wrong_rows() -> Any:
    model = small_graph()
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = N_ROWS + 1
    return model


def double_precision_score() -> Any:
    model = small_graph()
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    return model


def extra_output() -> Any:
    model = small_graph()
    model.graph.output.append(helper.make_tensor_value_info("power", TensorProto.FLOAT, ["batch", 8, 5]))
    return model


def many_fields() -> bytes:
    """Return a model of a million empty nodes in two megabytes."""
    nodes = b"\x0a\x00" * (1 << 20)
    length = b"\x80\x80\x80\x01"  # 2 MiB as a varint
    return b"\x08\x09\x42\x02\x10\x14\x3a" + length + nodes


@pytest.mark.parametrize(
    ("make_model", "says"),
    [
        (lambda: b"", "IR version 0"),
        (lambda: b"\x08\x09\x42\x02\x10\x14", "holds no graph"),
        (lambda: b"\x80" * 64, "malformed or cut short"),
        (lambda: small_graph().SerializeToString()[:-7], "malformed or cut short|not allowed|malformed"),
        (lambda: b"MZ" + bytes(4000), "not allowed|malformed"),
        (external_data, "not allowed|outside the file"),
        (loop_bomb, "operator Loop is not allowed"),
        (lambda: with_node("If"), "operator If is not allowed"),
        (lambda: with_node("ConstantOfShape"), "operator ConstantOfShape is not allowed"),
        (lambda: with_node("Shell", domain="com.evil"), "operator com.evil.Shell is not allowed"),
        (hidden_subgraph, "attribute field 6 is not allowed"),
        (with_function, "model field 25 is not allowed"),
        (huge_initializer, "claims 1099511627776 values"),
        (huge_constant, "claims 1099511627776 values"),
        (lambda: with_opset(7), "opset 7"),
        (lambda: with_opset(99), "opset 99"),
        (lambda: with_opset(20, "com.evil"), "other operator sets"),
        (second_opset, "other operator sets"),
        (renamed_input, "takes \\['mel'\\]"),
        (fixed_batch, "log_mel is not float32"),
        (wrong_rows, "log_mel is not float32"),
        (double_precision_score, "score is not float32"),
        (extra_output, "gives"),
        (many_fields, "more than 40000 fields"),
    ],
)
def test_a_model_that_asks_for_more_than_arithmetic_is_refused(
    tmp_path: Path, make_model: Callable[[], Any], says: str
) -> None:
    refuse(with_model(tmp_path / "b.edgeasd", make_model()), says)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /tmp/edgeasd-was-here",)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"input.log_mel": np.array([Evil()], dtype=object)}, "input.log_mel is not a"),
        ({"input.log_mel": small_inputs(3).astype(np.float64)}, "not a plain float32 array"),
        ({"input.log_mel": np.asfortranarray(small_inputs(3))}, "not a plain float32 array"),
        ({"input.log_mel": small_inputs(3)[:, :4]}, "has windows of shape"),
        ({"input.log_mel": small_inputs(2)}, "windows throughout"),
        ({"output.score": np.array([1, 2, np.nan], np.float32)}, "not finite"),
        ({"output.extra": np.zeros(3, np.float32)}, "exactly the graph's"),
        ({"input.log_mel": b"\x93NUMPY"}, "is not an array"),
        ({"input.log_mel": b""}, "is not an array"),
    ],
)
def test_golden_vectors_that_are_not_plain_numbers_are_refused(
    tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    refuse(with_golden(tmp_path / "b.edgeasd", {**golden_arrays(), **change}), says)


def test_golden_vectors_that_claim_to_be_huge_are_refused_before_memory_is_taken(tmp_path: Path) -> None:
    npy = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, N_ROWS, 5)}
    np.lib.format.write_array_header_1_0(npy, header)
    refuse(with_golden(tmp_path / "b.edgeasd", {**golden_arrays(), "input.log_mel": npy.getvalue()}), "size it claims")


def test_compressed_golden_vectors_are_refused(tmp_path: Path) -> None:
    path = with_golden(tmp_path / "b.edgeasd", golden_arrays(), compression=zipfile.ZIP_DEFLATED)
    refuse(path, "is compressed")


def test_no_windows_and_too_many_golden_windows_are_refused(tmp_path: Path) -> None:
    for n_windows in (0, 65):
        golden = (
            small_golden(n_windows)
            if n_windows
            else replace(
                small_golden(),
                inputs={"log_mel": small_inputs(0)},
                outputs={k: v[:0] for k, v in small_golden().outputs.items()},
            )
        )
        path = tmp_path / "b.edgeasd"
        write_bundle(
            path, manifest=small_manifest(), model_onnx=small_graph().SerializeToString(), golden=golden, card=""
        )
        refuse(path, "windows throughout|size it claims")
