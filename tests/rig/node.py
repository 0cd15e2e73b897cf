"""A node under the rig's control: the installed `edgeasd run`, with settings of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import yaml

EDGEASD = str(Path(sys.executable).with_name("edgeasd"))
NAME = "n1"


class RunningNode:
    """Starts `edgeasd run` as a supervisor would; its log goes on over restarts in `folder`/log.

    `settings` is what its settings file says; node name and state directory are given unless it names others.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        *,
        environment: Mapping[str, str] | None = None,
        arguments: Sequence[str] = (),
        started: bool = True,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.state_dir = Path(settings.get("state_dir", folder / "state"))
        self.config = folder / "config.yaml"
        self.starts = 0
        self._environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("EDGEASD_")},
            **(environment or {}),
        }
        self._arguments = arguments
        self.process: subprocess.Popen[bytes] | None = None
        self.configure(settings)
        if started:
            self.start()

    @property
    def log(self) -> str:
        """Return what it has logged."""
        path = self.folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def pid(self) -> int:
        """Return the process id of the running node."""
        assert self.process is not None, "the node does not run"
        return self.process.pid

    @property
    def running(self) -> bool:
        """Return whether the process is there."""
        return self.process is not None and self.process.poll() is None

    def configure(self, settings: Mapping[str, Any]) -> None:
        """Write the settings file; a node that runs does not read it by itself."""
        whole = {"node": {"name": NAME}, "state_dir": str(self.state_dir), **settings}
        self.config.write_text(yaml.safe_dump(whole))

    def start(self) -> None:
        """Start it; it may not be ready yet."""
        assert not self.running, "the node runs already"
        self.starts += 1
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [EDGEASD, "run", "-c", str(self.config), *self._arguments],
                env=self._environment,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )

    def kill(self) -> None:
        """End it with SIGKILL."""
        self._end(signal.SIGKILL, 10.0)

    def stop(self, *, timeout_s: float = 20.0) -> tuple[int, float]:
        """End it with SIGTERM; return its exit code and the seconds it took."""
        began_s = time.monotonic()
        code = self._end(signal.SIGTERM, timeout_s)
        return code, time.monotonic() - began_s

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self, timeout_s: float) -> int:
        """Wait until it ends by itself; return its exit code."""
        assert self.process is not None
        return self.process.wait(timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.running:
            self.kill()

    def _end(self, number: signal.Signals, timeout_s: float) -> int:
        assert self.process is not None, "the node does not run"
        self.process.send_signal(number)
        return self.process.wait(timeout_s)
