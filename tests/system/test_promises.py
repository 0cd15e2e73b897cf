"""The promises of the reliability table, each in its short form; `make rig` tries the long ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rig.promise import Promise, all_promises


@pytest.mark.parametrize("promise", all_promises(), ids=lambda promise: promise.number)
def test_promise_is_kept(promise: Promise, tmp_path: Path) -> None:
    reason = promise.needs()
    if reason is not None:
        pytest.skip(reason)
    measured = promise.measure(tmp_path, promise.short)
    assert measured.kept, f"{promise.title}: {measured.text}, promised is {promise.target}"
