"""P16: hostile recordings, settings and state, one by one and as Hypothesis thinks them up."""

from __future__ import annotations

import csv
import json
import logging
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeasd.assembly import JudgeOptions
from edgeasd.replay import ReplayJob, TablePaths, replay
from tests.rig.disks import in_memory
from tests.rig.fuzzing import TARGETS
from tests.rig.fuzzing_state import STATE_TARGETS
from tests.rig.hostile_wav import Case, compressed, lay_out, odd_floats
from tests.rig.promise import Measured, Promise

_READERS = TARGETS | STATE_TARGETS
_LIMIT_S, _LIMIT_MB = 0.1, 64.0
_SLACK = 10.0
"""A busy machine may take this many times as long; the figures in the table come from one that is not."""


def survive_every_file(_scratch: Path, *, examples: int, mangled: int) -> Measured:
    """Read the hostile corpus, mangled FLAC and Ogg, odd floats through the whole line, and what Hypothesis finds."""
    with in_memory() as folder:
        return _survived(folder, n_examples=examples, n_mangled=mangled)


def _survived(folder: Path, *, n_examples: int, n_mangled: int) -> Measured:
    cases = lay_out(folder / "corpus")
    read = _read([(case.path, case.change) for case in cases])
    wrong = [
        f"{case.name}: {answer['outcome']}" for case, answer in zip(cases, read, strict=True) if not _met(case, answer)
    ]
    mangled_paths = _mangled(folder / "mangled", n_files=n_mangled)
    tried = _read([(path, "") for path in mangled_paths])
    wrong += [str(each["outcome"]) for each in tried if not str(each["outcome"]).startswith(("read: ", "refused: "))]
    wrong += _odd_floats(folder)
    wrong += _fuzzed(n_examples=n_examples)
    slowest_s, largest_mb = (max(float(each[key]) for each in [*read, *tried]) for key in ("cpu_s", "rss_mb"))
    text = (
        f"{len(cases)} hostile and {len(tried)} mangled recordings, {n_examples} examples for each of {len(_READERS)} "
        f"readers: {len(wrong)} not as they should be; the dearest file {1000 * slowest_s:.0f} ms of a processor "
        f"and {largest_mb:.1f} MB"
    )
    kept = not wrong and slowest_s <= _LIMIT_S * _SLACK and largest_mb <= _LIMIT_MB
    return Measured(f"{text} ({'; '.join(wrong[:3])})" if wrong else text, kept=kept)


def _met(case: Case, answer: dict[str, Any]) -> bool:
    return case.met_by(str(answer["outcome"]))


def _read(requests: Sequence[tuple[Path, str]]) -> list[dict[str, Any]]:
    """Return what the reader of recordings, in processes of its own, says of each."""
    lines = [json.dumps({"path": str(path), "change": change}) for path, change in requests]
    command = [sys.executable, "-m", "tests.rig.reader"]
    done = subprocess.run(
        command, input="\n".join(lines), stdout=subprocess.PIPE, text=True, check=True, cwd=Path(__file__).parents[3]
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def _mangled(folder: Path, *, n_files: int) -> list[Path]:
    """Write FLAC and Ogg files with bytes changed, some cut short."""
    folder.mkdir()
    random = np.random.default_rng(9)
    whole = {".flac": compressed("FLAC", 4000), ".ogg": compressed("OGG", 4000)}
    paths = []
    for number in range(n_files):
        suffix = (".flac", ".ogg")[number % 2]
        content = bytearray(whole[suffix])
        reach = len(content) if number % 4 < 2 else 200  # half of them in what describes the sound
        for at in random.integers(4, reach, random.integers(1, 20)):
            content[at] = random.integers(256)
        if number % 3 == 0:
            del content[random.integers(4, len(content)) :]
        paths.append(folder / f"{number}{suffix}")
        paths[-1].write_bytes(content)
    return paths


def _odd_floats(scratch: Path) -> list[str]:
    """Replay sound with NaN, infinities and the like in it; return what is wrong with the scores."""
    path = scratch / "odd.wav"
    path.write_bytes(odd_floats())
    replay(ReplayJob((path,), JudgeOptions()), TablePaths(scores=scratch / "scores.csv"))
    with (scratch / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    figures = ("score", "p_value", "prompt", "prompt_p_value", "confirmed", "rms_dbfs")
    wrong = [
        f"{key} {row[key]} at {row['start_s']} s"
        for row in rows
        for key in figures
        if not math.isfinite(float(row[key] or 0))
    ]
    invalid = {float(row["start_s"]) for row in rows if row["valid"] == "false"}
    # The first six values spoil the two windows they lie in; the last two are too small to matter.
    spoiled = {10.0 + 2 * number - back for number in range(6) for back in (0.0, 0.5)}
    return wrong + ([f"windows at {sorted(invalid ^ spoiled)} s"] if invalid != spoiled else [])


def _fuzzed(*, n_examples: int) -> list[str]:
    """Return what each target leaks, and the example that makes it."""
    wrong = []
    logging.disable(logging.CRITICAL)  # every damaged file is worth a line on a node, and thousands are none here
    try:
        for name, target in _READERS.items():
            try:
                with in_memory() as folder:
                    target(n_examples, folder)
            except Exception as exc:  # noqa: BLE001  # whatever it is, it is the finding
                notes = " ".join(getattr(exc, "__notes__", []))
                wrong.append(f"{name}: {exc!r} {' '.join(notes.split())[:500]}")
    finally:
        logging.disable(logging.NOTSET)
    return wrong


PROMISES = (
    Promise(
        number="P16",
        title="No crash or hang on any file or setting",
        target="0 crashes, one typed error each, <= 100 ms, <= 64 MB",
        run=survive_every_file,
        short={"examples": 100, "mangled": 100},
        long={"examples": 20_000, "mangled": 10_000},
        needs=lambda: None,
    ),
)
