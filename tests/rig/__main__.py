"""Try the promises of the reliability table by hand.

    python -m tests.rig [P1 P8 ...] [--short] [--set NAME=NUMBER ...] [--keep DIR]

Prints a Markdown table: what was promised, what was measured, and the command that prints the row. Exits with 1 when a
promise is broken. The long form takes hours in all; --short is what every test run does.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import machine_line
from tests.rig.promise import Measured, Promise, all_promises


def main() -> int:
    """Run what was asked for and print the table."""
    promises = {promise.number: promise for promise in all_promises()}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("promises", nargs="*", choices=[*promises, []], metavar="P1", help="default: all")
    parser.add_argument("--short", action="store_true", help="the size of every test run")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=NUMBER", help="another size: kills=1000")
    parser.add_argument("--keep", type=Path, help="leave logs and state here")
    arguments = parser.parse_args()
    wanted = [promises[number] for number in arguments.promises or promises]
    own = dict(_pair(text) for text in arguments.set)
    print(f"{machine_line()}\n")
    print("| promise | | target | measured | kept | s | command |\n|---|---|---|---|---|---|---|")
    broken = 0
    for promise in wanted:
        values = {**(promise.short if arguments.short else promise.long), **own}
        broken += not _row(promise, values, keep=arguments.keep)
    return 1 if broken else 0


def _row(promise: Promise, values: Mapping[str, Any], *, keep: Path | None) -> bool:
    began_s = time.monotonic()
    measured = _skipped(promise) or _measure(promise, values, keep=keep)
    command = f"`python -m tests.rig {promise.number}{_sizes(values)}`"
    kept = "yes" if measured.kept else "**no**"
    cells = [promise.number, promise.title, promise.target, measured.text, kept]
    print(f"| {' | '.join(cells)} | {time.monotonic() - began_s:.0f} | {command} |", flush=True)
    return measured.kept


def _skipped(promise: Promise) -> Measured | None:
    reason = promise.needs()
    return None if reason is None else Measured(f"not run: {reason}", kept=False)


def _measure(promise: Promise, values: Mapping[str, Any], *, keep: Path | None) -> Measured:
    if keep is None:
        with tempfile.TemporaryDirectory(prefix=f"edgeasd-{promise.number}-") as passing:
            return _tried(promise, Path(passing), values)
    scratch = keep / promise.number
    scratch.mkdir(parents=True)
    return _tried(promise, scratch, values)


def _tried(promise: Promise, scratch: Path, values: Mapping[str, Any]) -> Measured:
    try:
        return promise.measure(scratch, values)
    except (AssertionError, OSError, subprocess.SubprocessError) as exc:
        traceback.print_exc()
        return Measured(f"failed: {' '.join(str(exc).split())[:200]}", kept=False)


def _sizes(values: Mapping[str, Any]) -> str:
    pairs: Sequence[str] = [f"{name}={value}" for name, value in values.items()]
    return f" --set {' '.join(pairs)}" if pairs else ""


def _pair(text: str) -> tuple[str, float | int]:
    name, _, value = text.partition("=")
    number = float(value)
    return name, int(number) if number.is_integer() else number


if __name__ == "__main__":
    sys.exit(main())
