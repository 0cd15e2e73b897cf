"""What a manifest may not say, beyond what Hypothesis finds."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from edgeasd.manifest import Manifest, first_fault
from tests.small_bundle import small_manifest


def _with(path: str, value: object) -> str:
    whole: dict[str, Any] = small_manifest().model_dump(mode="json")
    *outer, last = path.split(".")
    inner = whole
    for key in outer:
        inner = inner[key]
    inner[last] = value
    return json.dumps(whole)


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("inputs.log_mel.n_mels", 130, "n_mels: 130 is above the 129 bins of an FFT of 256"),
        ("inputs.log_mel.sample_rate_hz", 0, "sample_rate_hz: 0 is below 1"),
        ("inputs.log_mel.hop_frames", 0, "hop_frames: 0 is not within 1 and n_fft 256"),
        ("inputs.log_mel.floor", float("nan"), "floor"),
        ("window_frames", 1 << 40, "window_frames: "),
        ("window_frames", -1, "window_frames: "),
        ("sample_rate_hz", 0, "sample_rate_hz: "),
        ("name", "../../etc", "name: "),
        ("calibration.tail_start", float("nan"), "calibration.tail_start: "),
        ("x\n\x1b[31m", 1, "x??[31m: "),
        ("y" * 100_000, 1, "yyy"),
    ],
)
def test_impossible_value_is_one_clause(path: str, value: object, says: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Manifest.model_validate_json(_with(path, value))
    fault = first_fault(caught.value)
    assert says in fault
    assert fault.isprintable()
    assert len(fault) <= 300
