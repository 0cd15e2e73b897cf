"""What is noted down of a training: its directory NAME.run, recipe and environment, the course of the figures."""

from __future__ import annotations

import csv
import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from edgeasd import __version__
from edgeasd.errors import CannotWriteError
from edgeasd_train.ranks import Ranks
from edgeasd_train.recipe import Recipe, dump_recipe

if TYPE_CHECKING:
    from edgeasd_train.mlflow_log import MlflowLog
    from edgeasd_train.tensorboard_log import Rgb, TensorBoardLog

RECIPE, ENVIRONMENT, METRICS = "recipe.yaml", "environment.json", "metrics.csv"
CHECKPOINTS, TENSORBOARD, MLFLOW = "checkpoints", "tensorboard", "mlflow.json"
_PACKAGES = (
    "numpy", "scipy", "soundfile", "soxr", "onnxruntime", "onnx", "scikit-learn", "torch", "torchaudio", "lightning",
)  # fmt: skip
_PLAIN_KEY = re.compile(r"[a-z0-9_]+")
_CREDENTIALS = re.compile(r"://[^/@\s]+@")


class Run:
    """The directory of a training, and its logs; on ranks but the first nothing is written."""

    def __init__(self, directory: Path, *, ranks: Ranks, resumes: bool) -> None:
        self.directory = directory
        self.ranks = ranks
        self.resumes = resumes
        """There is a checkpoint to go on from."""
        self.tensorboard: TensorBoardLog | None = None
        self.mlflow: MlflowLog | None = None
        self._metrics = MetricsFile(directory / METRICS)

    def log(self, figures: Mapping[str, float], *, step: int) -> None:
        """Note figures down in every log; what a run that was cut off logged of `step` and later gives way."""
        if self.ranks.is_first:
            for log in (self._metrics, self.tensorboard, self.mlflow):
                if log is not None:
                    log.scalars(figures, step=step)

    def log_image(self, name: str, picture: Rgb, *, step: int) -> None:
        """Note a picture down for TensorBoard."""
        if self.ranks.is_first and self.tensorboard is not None:
            self.tensorboard.image(name, picture, step=step)

    def begin(self, recipe: Recipe, argv: Sequence[str]) -> None:
        """Write recipe and environment; of a run that goes on only where it does, under `resumed`."""
        if not self.ranks.is_first:
            return
        facts, path = environment(self.ranks, argv), self.directory / ENVIRONMENT
        if self.resumes:
            before = json.loads(path.read_text("utf-8"))
            facts = {**before, "resumed": [*before.get("resumed", ()), facts]}
        else:
            write_text(self.directory / RECIPE, dump_recipe(recipe))
        write_text(path, json.dumps(facts, indent=2) + "\n")

    def close(self, *, ok: bool) -> None:
        """Write what the logs still hold, and say how the training ended."""
        if self.tensorboard is not None:
            self.tensorboard.close()
        if self.mlflow is not None:
            self.mlflow.close(ok=ok)


def prepare_directory(directory: Path, *, resume: bool, console: Console) -> bool:
    """Make the directory of a run, empty unless there is something to resume in it; return whether there is.

    CannotWriteError before anything is computed.
    """
    resumes = resume and _can_resume(directory)
    if resume:
        told = f"going on with {directory}" if resumes else f"nothing to resume in {directory}: starting afresh"
        console.print(told, highlight=False, markup=False, soft_wrap=True)
    _make(directory, empty=not resumes)
    return resumes


def _can_resume(directory: Path) -> bool:
    notes = (directory / RECIPE).exists() and (directory / ENVIRONMENT).exists()
    return notes and any((directory / CHECKPOINTS).glob("*.ckpt"))


def _make(directory: Path, *, empty: bool) -> None:
    try:
        if empty and (directory / RECIPE).exists():  # what is no run of ours is not ours to remove
            shutil.rmtree(directory)
        directory.mkdir(parents=True, exist_ok=True)
        if not os.access(directory, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as exc:
        raise CannotWriteError(f"{directory}: cannot be written: {exc.strerror}") from exc


def write_text(path: Path, text: str) -> None:
    """Write a file in one step; CannotWriteError when that fails."""
    partial = path.with_name(path.name + ".tmp")
    try:
        partial.write_text(text, "utf-8")
        os.replace(partial, path)
    except OSError as exc:
        raise CannotWriteError(f"{path}: cannot be written: {exc.strerror}") from exc


def flat(recipe: Recipe) -> dict[str, str]:
    """Return a recipe as dotted keys and values in JSON; what has keys of its own making, such as spans, is a value."""
    found: dict[str, str] = {}

    def descend(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value and all(_PLAIN_KEY.fullmatch(str(key)) for key in value):
            for key, below in value.items():
                descend(f"{prefix}.{key}" if prefix else str(key), below)
        else:
            found[prefix] = value if isinstance(value, str) else json.dumps(value)

    descend("", recipe.model_dump(mode="json"))
    return found


def environment(ranks: Ranks, argv: Sequence[str]) -> dict[str, Any]:
    """Return what a training ran on and with; credentials in `argv` are left out."""
    return {
        "command": [_CREDENTIALS.sub("://", word) for word in argv],
        "edgeasd": __version__,
        "python": platform.python_version(),
        "packages": {name: found for name in _PACKAGES if (found := _version(name)) is not None},
        "system": platform.platform(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": _gpus(),
        "ranks": ranks.size,
        "nodes": ranks.n_nodes,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _gpus() -> list[str]:
    """Return the names of the GPUs, as torch says where the training needs it: else it is not imported for that."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]


@dataclass(slots=True)
class MetricsFile:
    """metrics.csv: a row for whatever is logged together."""

    path: Path
    _columns: tuple[str, ...] = ()
    _begun: bool = False

    def scalars(self, figures: Mapping[str, float], *, step: int) -> None:
        """Add a row; a figure not seen before is a new column."""
        if not self._begun:
            self._begin(step)
        row = {**{name: f"{value:.9g}" for name, value in figures.items()}, "step": str(step)}
        if not set(row) <= set(self._columns):
            rows = self._rows()
            self._columns = (*self._columns, *sorted(set(row) - set(self._columns)))
            self._rewrite([*rows, row])
            return
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._columns).writerow(row)

    def _begin(self, step: int) -> None:
        """Keep what a run that was cut off wrote before `step`: the rest comes again."""
        self._begun = True
        rows = [row for row in self._rows() if int(row["step"]) < step]
        self._columns = tuple(rows[0]) if rows else ("step",)
        self._rewrite(rows)

    def _rows(self) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def _rewrite(self, rows: Sequence[Mapping[str, str]]) -> None:
        partial = self.path.with_suffix(".tmp")
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns, restval="")
            writer.writeheader()
            writer.writerows(rows)
        os.replace(partial, self.path)
