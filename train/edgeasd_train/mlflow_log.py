"""The course of a training in an MLflow tracking store, for those who ask for it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console

from edgeasd.errors import UnavailableError, UsageError
from edgeasd_train.quiet import quiet

EXTRA = "--mlflow needs mlflow, which is not installed: pip install 'edgeasd[mlflow]'"
_EXPERIMENT = "edgeasd"
_SEND_EVERY_S = 5.0
_AT_ONCE = 500
"""MLflow takes no more than a thousand figures, and a hundred parameters, at a time."""
_PARAMS_AT_ONCE = 100
_PARAM_CHARS = 500
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
"""A training does not wait for minutes for its tracking server, unless the environment says so."""


def check_uri(uri: str) -> None:
    """Refuse a URI with credentials in it: command lines are seen by everybody."""
    if urlsplit(uri).password or urlsplit(uri).username:
        raise UsageError("--mlflow: credentials belong in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD")


class MlflowLog:
    """A run of MLflow; a store that fails later on costs its figures, not the training."""

    def __init__(self, uri: str, *, note: Path, name: str, resumes: bool, console: Console) -> None:
        """Begin a run called `name`, or take up the one that the file `note` names; UnavailableError if that fails."""
        for variable, value in _PATIENCE.items():
            os.environ.setdefault(variable, value)
        if urlsplit(uri).scheme in ("", "file"):
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # who names a folder means a folder
        self._console = console
        self._pending: list[tuple[str, float, int, int]] = []
        self._sent_s = time.monotonic()
        self._broken = False
        with quiet("mlflow"):
            try:
                from mlflow import entities  # noqa: PLC0415  # an extra, and a second of imports
                from mlflow.tracking import MlflowClient  # noqa: PLC0415
            except ImportError as exc:
                raise UnavailableError(EXTRA) from exc
            self._entities = entities
            try:
                self._client = MlflowClient(tracking_uri=uri)
                self._run_id = (self._taken_up(note, uri) if resumes else None) or self._created(name)
            except Exception as exc:
                raise UnavailableError(f"--mlflow {uri}: {_line(exc)}") from exc
        note.write_text(json.dumps({"uri": uri, "run_id": self._run_id}) + "\n", "utf-8")

    def params(self, values: Mapping[str, str]) -> None:
        """Say what was set."""
        params = [self._entities.Param(key, value[:_PARAM_CHARS]) for key, value in values.items()]
        for first in range(0, len(params), _PARAMS_AT_ONCE):
            self._try(partial(self._client.log_batch, self._run_id, params=params[first : first + _PARAMS_AT_ONCE]))

    def scalars(self, figures: Mapping[str, float], *, step: int) -> None:
        """Note figures down; they are sent every few seconds."""
        now_ms = int(1000 * time.time())
        self._pending += [(name, value, now_ms, step) for name, value in figures.items()]
        if len(self._pending) >= _AT_ONCE or time.monotonic() - self._sent_s >= _SEND_EVERY_S:
            self._send()

    def artifacts(self, paths: Sequence[Path]) -> None:
        """Keep these files beside the figures."""
        for path in paths:
            self._try(partial(self._client.log_artifact, self._run_id, str(path)))

    def text(self, name: str, text: str) -> None:
        """Keep a text beside the figures, as a file of this name."""
        self._try(partial(self._client.log_text, self._run_id, text, name))

    def close(self, *, ok: bool) -> None:
        """Send what is left, and say how the training ended."""
        self._send()
        self._try(partial(self._client.set_terminated, self._run_id, "FINISHED" if ok else "FAILED"))

    def _created(self, name: str) -> str:
        title = os.environ.get("MLFLOW_EXPERIMENT_NAME", _EXPERIMENT)
        experiment = self._client.get_experiment_by_name(title)
        experiment_id = self._client.create_experiment(title) if experiment is None else experiment.experiment_id
        run_id: str = self._client.create_run(experiment_id, run_name=name).info.run_id
        return run_id

    def _taken_up(self, note: Path, uri: str) -> str | None:
        known = json.loads(note.read_text("utf-8")) if note.exists() else {}
        if known.get("uri") != uri:
            return None
        run_id: str = known["run_id"]
        self._client.update_run(run_id, status="RUNNING")
        return run_id

    def _send(self) -> None:
        metrics = [self._entities.Metric(*figure) for figure in self._pending]
        self._pending.clear()
        self._sent_s = time.monotonic()
        for first in range(0, len(metrics), _AT_ONCE):
            self._try(partial(self._client.log_batch, self._run_id, metrics=metrics[first : first + _AT_ONCE]))

    def _try(self, send: Callable[[], object]) -> None:
        """Give the store up, and say so once, when it fails."""
        if self._broken:
            return
        try:
            with quiet("mlflow"):
                send()
        except Exception as exc:  # noqa: BLE001  # whatever a client of somebody's server may raise
            self._broken = True
            told = f"MLflow is left out from here on: {_line(exc)}"
            self._console.print(told, highlight=False, markup=False, soft_wrap=True)


def _line(exc: Exception) -> str:
    return str(exc).splitlines()[0] if str(exc) else type(exc).__name__
