"""A torch program with a fault anywhere: refused in one line, when it is read or when it is run."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeasd.bundle import Bundle, read_bundle
from edgeasd.engine.program import ATEN_OPERATORS, SIZE_OPERATORS, read_program
from edgeasd.engine.torch import TorchEngine
from edgeasd.errors import BundleError, SelfTestError
from tests.programs import MODEL, WEIGHTS, Json, Members, changed, nodes, packed, small_members
from tests.small_bundle import write_full_bundle


@pytest.fixture(scope="module")
def members() -> Members:
    return small_members()


@pytest.fixture
def bundle(members: Members, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return read_bundle(write_full_bundle(tmp_path_factory.mktemp("b") / "small.edgeasd", program=packed(members)))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_json_that_is_spoilt_anywhere_is_refused_or_still_plain_arithmetic(
    members: Members, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from([MODEL, WEIGHTS]))
    root = json.loads(members[name])
    part = root
    while True:
        keys = sorted(part) if isinstance(part, dict) else range(len(part))
        key = data.draw(st.sampled_from(list(keys)))
        below = part[key]
        if not isinstance(below, dict | list) or not below or data.draw(st.integers(0, 6)) == 0:
            break
        part = below
    part[key] = data.draw(VALUES)
    try:
        program = read_program(packed({**members, name: json.dumps(root).encode()}))
    except BundleError:
        pass
    else:
        assert {step.operator for step in program.steps} <= ATEN_OPERATORS | SIZE_OPERATORS


@settings(max_examples=100, deadline=None)
@given(st.integers(min_value=0), st.binary(min_size=1, max_size=4))
def test_bytes_that_are_spoilt_anywhere_are_refused_or_not_read(members: Members, place: int, spoilt: bytes) -> None:
    program = bytearray(packed(members))
    place %= len(program)
    program[place : place + len(spoilt)] = spoilt
    with suppress(BundleError):
        read_program(bytes(program))


@pytest.mark.parametrize("fault", ["unknown argument", "impossible size", "one input too few"])
def test_a_program_that_makes_no_sense_fails_in_one_line(members: Members, bundle: Bundle, fault: str) -> None:
    def spoil(model: Json) -> None:
        first = nodes(model)[0]
        if fault == "unknown argument":
            first["inputs"].append({"name": "x = 1; import os", "arg": {"as_int": 1}, "kind": 2})
        elif fault == "impossible size":
            first.update(target="torch.ops.aten.view.default")
            first["inputs"][1] = {"name": "size", "arg": {"as_ints": [3, 1 << 20]}, "kind": 1}
        else:
            first["inputs"].pop()

    program = changed(members, MODEL, spoil)
    engine = TorchEngine(bundle_with(bundle, program))
    with pytest.raises(SelfTestError, match="the torch engine failed: ") as caught:
        engine.score(bundle.golden.inputs)
    assert "\n" not in str(caught.value)


def test_a_program_of_another_model_is_not_opened(members: Members, bundle: Bundle) -> None:
    def rename(model: Json) -> None:
        model["graph_module"]["signature"]["output_specs"].pop()

    with pytest.raises(BundleError, match="does not take and give what the manifest says"):
        TorchEngine(bundle_with(bundle, changed(members, MODEL, rename)))
    with pytest.raises(BundleError, match=r"has no torch program \(model\.pt2\)"):
        TorchEngine(bundle_with(bundle, None))


def bundle_with(bundle: Bundle, program: bytes | None) -> Bundle:
    return replace(bundle, optional={} if program is None else {"model.pt2": program})
