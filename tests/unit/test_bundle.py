"""A bundle is read whole and as it was written, or refused in one line, at once and cheaply."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeasd.bundle import Bundle, read_bundle
from edgeasd.errors import BundleError, CannotWriteError
from tests.rig.hostile_bundles import HOSTILE_BUNDLES, members_of
from tests.rig.hostile_optional import HOSTILE_OPTIONALS
from tests.small_bundle import small_golden, small_graph, small_manifest, write_full_bundle, write_small_bundle

HOSTILE = {**HOSTILE_BUNDLES, **HOSTILE_OPTIONALS}
MAX_CPU_S = 0.1
MAX_GROWN_BYTES = 64 << 20


@pytest.fixture
def bundle_path(tmp_path: Path) -> Path:
    return write_small_bundle(tmp_path / "small.edgeasd")


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What a process of its own says of every hostile bundle, by name."""
    folder = tmp_path_factory.mktemp("hostile")
    paths = {name: folder / f"{name}.edgeasd" for name in HOSTILE}
    for name, (make, _) in HOSTILE.items():
        make(paths[name])
    reader = subprocess.run(
        [sys.executable, "-m", "tests.rig.bundle_reader"],
        input="".join(f"{path}\n" for path in paths.values()),
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    return {name: json.loads(line) for name, line in zip(paths, reader.stdout.splitlines(), strict=True)}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_bundle_is_refused_in_one_line_at_once_and_cheaply(
    answers: dict[str, dict[str, Any]], name: str
) -> None:
    answer, (_, says) = answers[name], HOSTILE[name]
    assert (answer["error"], answer["exit_code"]) == ("BundleError", 65)
    assert re.search(says, answer["text"])
    assert f"{name}.edgeasd: " in answer["text"]
    assert "\n" not in answer["text"]
    assert len(answer["text"]) < 1000
    assert answer["cpu_s"] <= MAX_CPU_S
    assert answer["grown_bytes"] <= MAX_GROWN_BYTES


def test_what_is_written_is_read_back(bundle_path: Path) -> None:
    bundle = read_bundle(bundle_path)
    assert bundle.manifest.model_copy(update={"sha256": {}}) == small_manifest()
    assert bundle.model_onnx == small_graph().SerializeToString()
    assert bundle.card == "# small\n"
    assert bundle.sha256 == hashlib.sha256(bundle_path.read_bytes()).hexdigest()
    assert same_arrays(bundle, small_golden().inputs, small_golden().outputs)


def test_optional_members_are_read_back_each_with_its_calibration(tmp_path: Path) -> None:
    bundle = read_bundle(write_full_bundle(tmp_path / "full.edgeasd", program=b"program"))
    assert bundle.precisions == ("fp32", "fp16", "int8")
    for precision in ("fp16", "int8"):
        assert bundle.graph(precision) == small_graph(precision).SerializeToString()
        assert bundle.calibration(precision) == bundle.manifest.precisions[precision].calibration
    assert bundle.program == b"program"
    assert dict(bundle.optional) == {
        "model.fp16.onnx": bundle.graph("fp16"),
        "model.int8.onnx": bundle.graph("int8"),
        "model.pt2": b"program",
    }


def test_a_precision_that_a_bundle_lacks_is_named(bundle_path: Path) -> None:
    bundle = read_bundle(bundle_path)
    assert (bundle.precisions, bundle.program) == (("fp32",), None)
    for ask in (bundle.graph, bundle.calibration):
        with pytest.raises(BundleError, match=r"small.edgeasd: has no graph in int8, only in fp32$"):
            ask("int8")


def test_an_optional_member_is_what_was_verified_or_nothing(tmp_path: Path) -> None:
    path = write_full_bundle(tmp_path / "full.edgeasd", program=b"program")
    whole, bundle = path.read_bytes(), read_bundle(path)
    write_full_bundle(path, program=b"another")
    assert bundle.graph("int8") == small_graph("int8").SerializeToString()
    with pytest.raises(BundleError, match=r"full.edgeasd: model.pt2: has changed since"):
        _ = bundle.program
    for left in (whole[:5000], members_of(whole)["golden.npz"]):
        path.write_bytes(left)
        with pytest.raises(BundleError, match=r"full.edgeasd: model.int8.onnx: cannot be read again"):
            bundle.graph("int8")
    path.unlink()
    with pytest.raises(BundleError, match=r"model.fp16.onnx: cannot be read again: .*No such file"):
        bundle.graph("fp16")


def test_a_bundle_at_hand_keeps_no_optional_member_in_memory(tmp_path: Path) -> None:
    path = write_full_bundle(tmp_path / "full.edgeasd", program=bytes(8 << 20))
    tracemalloc.start()
    try:
        bundle = read_bundle(path)
        kept_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept_bytes < 1 << 20
    assert bundle.program == bytes(8 << 20)


def test_the_same_content_gives_the_same_file(bundle_path: Path, tmp_path: Path) -> None:
    assert write_small_bundle(tmp_path / "again.edgeasd").read_bytes() == bundle_path.read_bytes()


def test_golden_vectors_open_in_numpy_without_pickle(bundle_path: Path) -> None:
    arrays = np.load(io.BytesIO(members_of(bundle_path.read_bytes())["golden.npz"]), allow_pickle=False)
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
    os.mkfifo(tmp_path / "fifo")
    for path, says in (
        (tmp_path / "none.edgeasd", "No such file"),
        (tmp_path, "Is a directory|is not a file"),
        (Path("/dev/zero"), "is not a file"),
        (tmp_path / "fifo", "is not a file"),
    ):
        with pytest.raises(BundleError, match=says):
            read_bundle(path)


Edit = tuple[float, bytes, bool]
"""Where, as a share of the file, what is put there, and whether it takes the place of what was there."""


@settings(
    max_examples=300,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(edits=st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=8), st.booleans()), min_size=1, max_size=4))
def test_a_mutated_bundle_is_refused_or_says_the_same(bundle_path: Path, edits: list[Edit]) -> None:
    whole = bundle_path.read_bytes()
    mutated = bytearray(whole)
    for share, put, replaces in edits:
        at = round(share * len(mutated))
        mutated[at : at + (len(put) if replaces else 0)] = put
    path = bundle_path.with_name("mutated.edgeasd")
    path.write_bytes(mutated)
    try:
        bundle = read_bundle(path)
    except BundleError:
        return
    honest = read_bundle(bundle_path)  # time stamps and the like of the zip may differ, nothing that is used
    assert (bundle.manifest, bundle.model_onnx, bundle.card) == (honest.manifest, honest.model_onnx, honest.card)
    assert same_arrays(bundle, honest.golden.inputs, honest.golden.outputs)


def same_arrays(bundle: Bundle, *expected: Any) -> bool:
    """Whether the golden arrays are to the bit those of `expected`: inputs, outputs."""
    return all(
        group.keys() == wanted.keys() and all(np.array_equal(group[name], wanted[name]) for name in wanted)
        for group, wanted in zip((bundle.golden.inputs, bundle.golden.outputs), expected, strict=True)
    )


_READ_WITH_LITTLE_MEMORY = """
import resource, sys
from edgeasd.bundle import read_bundle
used = [line for line in open("/proc/self/status") if line.startswith("VmData")][0]
limit = (int(used.split()[1]) << 10) + (64 << 20)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
print(read_bundle(sys.argv[1]).manifest.name)
"""


def test_a_small_bundle_takes_little_memory(tmp_path: Path) -> None:
    path = write_small_bundle(tmp_path / "small.edgeasd")
    command = [sys.executable, "-c", _READ_WITH_LITTLE_MEMORY, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "small"), done.stderr
