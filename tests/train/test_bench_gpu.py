"""The measurement of GPUs, in small and on the CPU: it must run where there is a GPU at last."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.small_bundle import small_program, write_full_bundle


def test_all_parts_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    from benchmarks.bench_gpu import main

    bundle = write_full_bundle(tmp_path / "small.edgeasd", program=small_program())
    main(["--device", "cpu", "--small", "--bundle", str(bundle)])
    lines = capsys.readouterr().out.splitlines()
    ways = {cells[1].strip(): cells for line in lines if (cells := line.split("|"))[1:]}
    assert {"copy from the host", "1", "8", "StftLogMel", "MatmulLogMel", "bird-ae"} <= ways.keys()
    assert any(line.startswith("The torch engine on cpu, opened in ") for line in lines)
    for way in ("StftLogMel", "MatmulLogMel"):
        assert float(ways[way][7]) < 1e-2  # dB, off the node's front end
