"""Torch programs for tests to spoil."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from edgeasd.engine.program import read_program
from edgeasd.errors import BundleError
from tests.small_bundle import small_program

MODEL = "archive/models/model.json"
WEIGHTS = "archive/data/weights/model_weights_config.json"
SAMPLES = "archive/data/sample_inputs/model.pt"

Members = dict[str, bytes]
Json = Any


@cache
def small_members() -> Members:
    """Return the members of a program that is in order."""
    with zipfile.ZipFile(io.BytesIO(small_program())) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(members: Members, *, compression: int = zipfile.ZIP_STORED) -> bytes:
    """Return the archive of members."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, compress_type=compression)
    return file.getvalue()


def changed(members: Members, name: str, change: Callable[[Json], object]) -> bytes:
    """Return the program with the JSON of one member changed in place."""
    value = json.loads(members[name])
    change(value)
    return packed({**members, name: json.dumps(value).encode()})


def refusal(program: bytes) -> str:
    """Return the one line with which a program is refused."""
    with pytest.raises(BundleError) as caught:
        read_program(program)
    message = str(caught.value)
    assert message.startswith("model.pt2: ")
    assert message.isprintable()
    return message


def nodes(model: Json) -> list[Json]:
    """Return the operators of a graph."""
    found: list[Json] = model["graph_module"]["graph"]["nodes"]
    return found
