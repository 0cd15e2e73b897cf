"""Probes tell a node that judges from one that is stuck."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from edgeasd.exporting import Exporter
from edgeasd.health.metrics import Metrics
from edgeasd.publish import PublisherStats


def test_a_loop_that_no_longer_turns_is_not_healthy(tmp_path: Path) -> None:
    now_s = [100.0]
    reporter = SimpleNamespace(
        publisher=SimpleNamespace(stats=lambda: PublisherStats(connected=True, protocol="5")),
        realtime_factor=lambda _line: 500.0,
        bundle_label="small@abcdef",
        engine_name="onnx",
    )
    exporter = Exporter(
        Metrics(version="0", bundle=None, backend=None),
        cast("Any", reporter),
        cast("Any", SimpleNamespace(state_dir=tmp_path)),
        monotonic_s=lambda: now_s[0],
    )
    assert (exporter.ready, exporter.healthy) == (False, False)

    exporter.refresh(cast("Any", SimpleNamespace(tracks=())))
    assert (exporter.ready, exporter.healthy) == (True, True)

    now_s[0] += 10.0
    assert (exporter.ready, exporter.healthy) == (True, False)

    exporter.refresh(cast("Any", SimpleNamespace(tracks=())))
    assert exporter.healthy
