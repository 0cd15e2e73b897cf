"""Reads recordings one by one, each in a process of its own, and tells what came of it and what it cost.

    python -m tests.rig.reader < REQUESTS

A request is a line of JSON: path, and what happens to the file once it is open (`change`). The answer is one line, too.
Every file is read in a fork of one process that has everything loaded, so what is measured is the file's own cost.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

import numpy as np
import soundfile  # noqa: F401  # loaded before the fork: no cost of the file

from edgeasd.capture.files import FileSource
from edgeasd.errors import InputError
from edgeasd.records import AudioBlock
from tests.rig.hostile_wav import fmt, riff

RATE_HZ = 16_000
_NOBODY = 65534
_TIMEOUT_S = 30


def main() -> None:
    """Answer requests until there are no more."""
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(_in_fork(Path(request["path"]), request["change"])), flush=True)


def _in_fork(path: Path, change: str) -> dict[str, object]:
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        signal.alarm(_TIMEOUT_S)
        os.write(writing, json.dumps(_measured(path, change)).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read()
    _, status = os.waitpid(child, 0)
    if told:
        answer: dict[str, object] = json.loads(told)
        return answer
    return {"outcome": f"crashed: wait status {status:#x}", "cpu_s": 0.0, "wall_s": 0.0, "rss_mb": 0.0}


def _measured(path: Path, change: str) -> dict[str, object]:
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    if change == "unprivileged":
        os.chdir(path.parent)  # the folders above are not open to everybody
        path = Path(path.name)
        os.setgroups([])
        os.setgid(_NOBODY)
        os.setuid(_NOBODY)
    before_kb, began_s, cpu_s = _peak_kb(), time.perf_counter(), time.process_time()
    outcome = _outcome(path, change)
    return {
        "outcome": outcome,
        "cpu_s": time.process_time() - cpu_s,
        "wall_s": time.perf_counter() - began_s,
        "rss_mb": (_peak_kb() - before_kb) / 1024,
    }


def _outcome(path: Path, change: str) -> str:
    try:
        source = FileSource(path, name="x", rate_hz=RATE_HZ)
        _apply(path, change)
        n_frames = sum(_n_samples(block) for block in source.blocks())
    except InputError as exc:
        return f"refused: {exc}"
    except BaseException as exc:  # noqa: BLE001  # whatever it is, it is the finding
        return f"leaked: {exc!r}"
    return f"read: {n_frames} frames" + (" truncated" if source.truncated else "")


def _n_samples(block: object) -> int:
    assert isinstance(block, AudioBlock)
    assert block.samples.dtype == np.float32
    return len(block.samples)


def _apply(path: Path, change: str) -> None:
    if change == "grows":
        with path.open("ab") as file:
            file.write(b"\1" * 5000)
    elif change == "shrinks":
        os.truncate(path, len(riff(fmt())) + 8 + 2 * 400 + 1)
    elif change == "replaced":
        other = path.with_name("other")
        other.write_bytes(b"<html>")
        other.replace(path)


def _peak_kb() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
