"""`auto` on a GPU: every engine that is installed is measured once, and only the winner is opened again."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeasd.bundle import read_bundle
from edgeasd.engine.choosing import candidates_of, choose_engine
from edgeasd.engine.machine import gpu_name, has_module
from tests.small_bundle import small_program, write_full_bundle

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(900),
    pytest.mark.skipif(gpu_name() is None, reason="no CUDA device"),
]


def test_the_fastest_engine_is_found_and_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = small_program() if has_module("torch") else None
    bundle = read_bundle(write_full_bundle(tmp_path / "small.edgeasd", program=program))
    candidates = candidates_of(bundle, "auto", "auto")
    assert {one.kind for one in candidates} == {"onnx", *(kind for kind in ("torch", "tensorrt") if has_module(kind))}
    chosen = choose_engine(bundle, precision="auto", cache_dir=tmp_path / "engines")
    assert chosen.passed_over == ()
    assert chosen.window_ms is not None
    assert all(str(one) in chosen.why for one in candidates if one.kind != chosen.engine.name)
    chosen.engine.close()

    monkeypatch.setattr("edgeasd.engine.choosing.latency_ms", None)  # would be called again
    again = choose_engine(bundle, precision="auto", cache_dir=tmp_path / "engines")
    assert (again.engine.name, again.engine.precision) == (chosen.engine.name, chosen.engine.precision)
    again.engine.close()
