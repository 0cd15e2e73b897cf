"""A source that dies of an error: the daemon ends with that error, never as if it had been stopped."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgeasd import daemon
from edgeasd.daemon import RunOptions
from edgeasd.records import AudioBlock, Gap
from edgeasd.settings import load_settings

pytestmark = pytest.mark.usefixtures("bare_environment")


class DyingSource:
    """Gives two seconds of sound, then fails like a bug would."""

    name = "mic0"
    rate_hz = 16_000

    def blocks(self) -> Iterator[AudioBlock | Gap]:
        """Yield two seconds, then raise."""
        sound = np.random.default_rng(0).normal(scale=0.05, size=32_000).astype(np.float32)
        yield AudioBlock(0, sound, 1)
        threading.Event().wait(0.15)  # so that it dies between two looks at the line, half a second apart
        raise ZeroDivisionError("a bug in a source")

    def close(self) -> None:
        """Nothing is held."""


def test_the_daemon_ends_with_the_error_of_a_source(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(daemon, "open_source", lambda _spec: DyingSource())
    settings = load_settings(overrides={"sources": [{"name": "mic0", "device": "hw:1"}], "state_dir": tmp_path})

    with pytest.raises(ZeroDivisionError, match="a bug in a source"):
        daemon.run(settings, RunOptions(duration_s=20.0))

    assert capsys.readouterr().out.count("/mic0/score") == 3
