"""The promises of the reliability table, each in its short form; `make rig` tries the long ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rig.promise import Measured, Promise, all_promises


@pytest.mark.parametrize("promise", all_promises(), ids=lambda promise: promise.number)
def test_promise_is_kept(promise: Promise, tmp_path: Path) -> None:
    reason = promise.needs()
    if reason is not None:
        pytest.skip(reason)
    # Their targets are seconds of the clock, and machines that test are shared: what is broken is broken twice.
    first = _tried(promise, tmp_path / "first")
    if not first.kept:
        second = _tried(promise, tmp_path / "second")
        assert second.kept, f"{promise.title}: {first.text}; again: {second.text}; promised is {promise.target}"


def _tried(promise: Promise, scratch: Path) -> Measured:
    scratch.mkdir()
    try:
        return promise.measure(scratch, promise.short)
    except (AssertionError, OSError) as exc:
        return Measured(f"{type(exc).__name__}: {exc}", kept=False)
