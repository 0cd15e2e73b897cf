"""Reads bundles one by one, each in a fork of one process that has everything loaded, and tells what that cost.

    python -m tests.rig.bundle_reader < PATHS

The answer to each path is a line of JSON: what was raised, its exit code, the seconds of computing, and the bytes by
which the resident memory grew at its height.
"""

from __future__ import annotations

import json
import os
import re
import resource
import sys
import time
from pathlib import Path

from edgeasd.bundle import read_bundle
from edgeasd.errors import EdgeasdError


def main() -> None:
    """Answer until there are no more paths."""
    for line in sys.stdin:
        print(json.dumps(_in_fork(Path(line.rstrip("\n")))), flush=True)


def _in_fork(path: Path) -> dict[str, object]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, json.dumps(_read(path)).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        text = answer.read()
    os.waitpid(child, 0)
    found: dict[str, object] = json.loads(text or b'{"error": "died"}')
    return found


def _read(path: Path) -> dict[str, object]:
    before_kib, began_s = _memory_kib("VmRSS"), time.process_time()
    answer: dict[str, object] = {"error": None, "exit_code": 0, "text": ""}
    try:
        read_bundle(path)
    except EdgeasdError as exc:
        answer = {"error": type(exc).__name__, "exit_code": exc.exit_code, "text": str(exc)}
    except BaseException as exc:  # noqa: BLE001  # the very thing that must not happen
        answer = {"error": f"unexpected {type(exc).__name__}", "exit_code": 1, "text": str(exc)}
    answer["cpu_s"] = time.process_time() - began_s
    answer["grown_bytes"] = 1024 * max(0, _memory_kib("VmHWM") - before_kib)
    return answer


def _memory_kib(field: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    found = re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
