"""Run inside the sandbox of the unit: tries what must be denied and what is needed, and writes what came of it.

A program of its own that uses nothing but Python: it is copied into the machine.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import socket
import sqlite3
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_STATE = Path(os.environ.get("STATE_DIRECTORY", "."))
_CREDENTIALS = Path(os.environ.get("CREDENTIALS_DIRECTORY", "."))
_NEWUSER, _SUID = 0x10000000, 0o4755


def _call(name: str, *arguments: object) -> None:
    ctypes.set_errno(0)
    if getattr(_libc, name)(*arguments) == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _own_file() -> Path:
    path = _STATE / "own"
    path.touch()
    return path


DENIED: dict[str, Callable[[], object]] = {
    "write /etc": lambda: Path("/etc/probe").write_text(""),
    "write /usr": lambda: Path("/usr/probe").write_text(""),
    "write its own program": lambda: Path(sys.prefix, "probe").write_text(""),
    "write /var/lib": lambda: Path("/var/lib/probe").write_text(""),
    "write /proc/sys": lambda: Path("/proc/sys/kernel/hostname").write_text("probe"),
    "list /root": lambda: list(Path("/root").iterdir()),
    "list /home": lambda: list(Path("/home").iterdir()),
    "see /tmp of others": lambda: Path("/tmp/of-others").stat(),
    "see process 1": lambda: Path("/proc/1/status").stat(),
    "signal process 1": lambda: os.kill(1, 0),
    "source of a credential": lambda: Path("/etc/credstore/edgeasd.mqtt-password").read_text(),
    "AF_PACKET": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
    "AF_NETLINK": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
    "unshare": lambda: _call("unshare", _NEWUSER),
    "mount": lambda: _call("mount", b"tmpfs", str(_STATE).encode(), b"tmpfs", 0, None),
    "ptrace": lambda: _call("ptrace", 0, 0, None, None),
    "chroot": lambda: os.chroot("/var"),
    "setuid 0": lambda: os.setuid(0),
    "give a file to root": lambda: os.chown(_own_file(), 0, 0),
    "make a file setuid": lambda: _own_file().chmod(_SUID),
    "make a device": lambda: os.mknod(_STATE / "device", stat.S_IFCHR | 0o600, os.makedev(1, 1)),
    "raise priority": lambda: os.setpriority(os.PRIO_PROCESS, 0, -5),
    "realtime scheduling": lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)),
    "set the clock": lambda: time.clock_settime(time.CLOCK_REALTIME, time.time()),
    "set the host name": lambda: socket.sethostname("probe"),
    "personality": lambda: _call("personality", 0x0040000),
    "reboot": lambda: _call("reboot", 0),
}


def _database_works() -> bool:
    with sqlite3.connect(_STATE / "probe.db") as database:
        mode = database.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        database.execute("CREATE TABLE IF NOT EXISTS probe (x)")
    return str(mode) == "wal"


def _affinity_may_be_set() -> bool:
    os.sched_setaffinity(0, os.sched_getaffinity(0))
    return True


def _broker_answers() -> bool:
    with socket.create_connection(("127.0.0.1", int(os.environ["PROBE_PORT"])), timeout=10.0):
        return True


GRANTED: dict[str, Callable[[], bool]] = {
    "a user of its own": lambda: 61184 <= os.geteuid() <= 65519,
    "state directory 0700": lambda: stat.S_IMODE(_STATE.stat().st_mode) == 0o700,
    "SQLite with a WAL": _database_works,
    "the credential": lambda: (_CREDENTIALS / "mqtt-password").read_text() == "canary\n",
    "only credentials that are there": lambda: [path.name for path in _CREDENTIALS.iterdir()] == ["mqtt-password"],
    "root's files known as root's": lambda: Path("/etc/edgeasd").stat().st_uid == 0,
    "settings": lambda: bool(Path("/etc/edgeasd/config.yaml").read_text()),
    "files of the group audio": lambda: Path("/opt/rig/of-audio").read_text() == "heard\n",
    "the broker": _broker_answers,
    "affinity of threads": _affinity_may_be_set,
}


def _denied(attempt: Callable[[], object]) -> str:
    """Return how an attempt was denied, or that it was not."""
    try:
        attempt()
    except OSError as exc:
        return errno.errorcode.get(exc.errno or 0, str(exc))
    return "ALLOWED"


def _granted(need: Callable[[], bool]) -> str:
    try:
        return "yes" if need() else "NO"
    except (OSError, sqlite3.Error, KeyError) as exc:
        return f"NO: {exc}"


if __name__ == "__main__":
    signal.alarm(30)
    found = {
        "denied": {name: _denied(attempt) for name, attempt in DENIED.items()},
        "granted": {name: _granted(need) for name, need in GRANTED.items()},
    }
    (_STATE / "probe.json").write_text(json.dumps(found))
