"""What a promise of the reliability table is: a target, and a run that measures whether it is kept."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Measured:
    """What a run of a promise came to."""

    text: str
    """The figures, in a few words, as they stand in the table."""
    kept: bool
    """Whether they meet the target."""


@dataclass(frozen=True, slots=True)
class Promise:
    """A promise with the two sizes in which it is tested."""

    number: str
    """As in the reliability table: P1."""
    title: str
    target: str
    run: Callable[..., Measured]
    """Takes an empty scratch directory and, by name, the values of `short` or `long`."""
    short: Mapping[str, Any]
    """For every test run: some seconds."""
    long: Mapping[str, Any]
    """As the target asks."""
    needs: Callable[[], str | None]
    """Returns why it cannot be run on this machine, None when it can."""

    def measure(self, scratch: Path, values: Mapping[str, Any]) -> Measured:
        """Run it in `scratch`."""
        return self.run(scratch, **values)


def all_promises() -> list[Promise]:
    """Return every promise that the rig can test, in the order of their numbers."""
    package = importlib.import_module("tests.rig.promises")
    found: list[Promise] = []
    for module in pkgutil.iter_modules(package.__path__):
        found += _promises_of(f"{package.__name__}.{module.name}")
    return sorted(found, key=lambda promise: int(promise.number[1:]))


def _promises_of(module_name: str) -> Sequence[Promise]:
    module = importlib.import_module(module_name)
    promises: Sequence[Promise] = module.PROMISES
    return promises
