"""Work in processes of its own: one that dies or hangs costs its task, not the run.

The processes are interpreters that import nothing of the caller's program: multiprocessing's spawn would run a script
again that has no guard around what it does, and fork would copy the locks of torch's threads without the threads.
"""

from __future__ import annotations

import ctypes
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any, TypeVar

from edgeasd.errors import UnavailableError

_POLL_S = 1.0
_STOP_S = 30.0
_CODE = "import sys; from edgeasd.workers import serve; serve(int(sys.argv[1]), mortal=len(sys.argv) > 2)"
_PR_SET_PDEATHSIG = 1  # prctl(2)

T = TypeVar("T")
R = TypeVar("R")
Open = Callable[[], AbstractContextManager[Callable[[T], R]]]
"""Makes, in the worker, what does the work; it is closed when there is no more, and must survive pickling."""


@dataclass(frozen=True, slots=True)
class Lost:
    """What is returned for a task that ended its worker."""

    reason: str


def usable_cores() -> int:
    """Return how many cores this process may use: its affinity, and what its control group allows, at least 1."""
    cores = len(os.sched_getaffinity(0))
    with suppress(OSError, ValueError):  # no cgroup v2, or no limit ("max")
        quota_us, period_us = map(int, (_own_cgroup() / "cpu.max").read_text().split())
        cores = min(cores, math.ceil(quota_us / period_us))
    return max(1, cores)


def endless(_: object) -> float:
    """Return the patience for work that may take as long as it takes, s."""
    return math.inf


def _own_cgroup() -> Path:
    line = Path("/proc/self/cgroup").read_text().splitlines()[-1]
    return Path("/sys/fs/cgroup", line.rpartition("::")[2].lstrip("/"))


def work(
    open_worker: Open[T, R], tasks: Iterable[T], *, workers: int, patience_s: Callable[[T], float]
) -> Iterator[tuple[T, R | Lost]]:
    """Yield each task with its result, as they come; a worker out of `patience_s` is killed, its task is Lost.

    One worker is this very process, without start-up and without that protection. An exception of the work itself is
    raised here. UnavailableError when worker processes do not start.
    """
    if workers > 1:
        yield from work_apart(open_worker, tasks, workers=workers, patience_s=patience_s)
        return
    with open_worker() as do:
        yield from ((task, do(task)) for task in tasks)


def work_apart(
    open_worker: Open[T, R], tasks: Iterable[T], *, workers: int, patience_s: Callable[[T], float], mortal: bool = False
) -> Iterator[tuple[T, R | Lost]]:
    """Do as `work` does, in other processes even where one is enough.

    When this process is killed they end with their present task, and close what they hold; `mortal` ones die at once.
    """
    start = partial(_Process, open_worker, mortal=mortal)
    pool = [start() for _ in range(workers)]
    try:
        yield from _shared_out(pool, iter(tasks), start, patience_s)
    finally:
        for process in pool:
            process.kill()


def _shared_out(
    pool: list[_Process], tasks: Iterator[Any], start: Callable[[], _Process], patience_s: Callable[[Any], float]
) -> Iterator[tuple[Any, Any]]:
    busy = []
    for process, task in zip(pool, tasks, strict=False):  # in this order no task is taken that no process is left for
        process.give(task, patience_s(task))
        busy.append(process)
    while busy:
        ready = wait([process.connection for process in busy], timeout=_POLL_S)
        for process in list(busy):
            if not (process.late or (process.connection in ready and process.has_result)):
                continue
            task, result = process.take()
            yield task, result
            busy.remove(process)
            following = next(tasks, None)
            if following is None:
                continue
            if isinstance(result, Lost):  # another one takes the dead one's place
                pool.remove(process)
                process = start()  # noqa: PLW2901
                pool.append(process)
            process.give(following, patience_s(following))
            busy.append(process)
    for process in pool:
        process.finish()


class _Process:
    """A worker process seen from outside."""

    def __init__(self, open_worker: Open[Any, Any], *, mortal: bool) -> None:
        self.connection, theirs = Pipe()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._process = subprocess.Popen(  # noqa: S603  # this interpreter, this module
            [sys.executable, "-c", _CODE, str(theirs.fileno()), *(["mortal"] if mortal else [])],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env=environment,
        )
        theirs.close()
        self._send(open_worker)
        self._task: Any = None
        self._patience_s = 0.0
        self._started_s = math.inf  # of the task; importing what it takes to begin is not counted

    @property
    def late(self) -> bool:
        """Return whether the present task has taken longer than it may."""
        return time.monotonic() > self._started_s + self._patience_s

    @property
    def has_result(self) -> bool:
        """Return whether what can be read is about a task, and not the word that the process is ready for one."""
        if self._started_s < math.inf:
            return True
        try:
            begun = self.connection.recv()
        except (EOFError, OSError):
            code = self._process.wait(_STOP_S)
            raise UnavailableError(f"a worker process of {sys.executable} does not start: exit {code}") from None
        if isinstance(begun, Exception):
            raise begun
        self._started_s = time.monotonic()
        return False

    def give(self, task: Any, patience_s: float) -> None:
        """Send a task, which may take `patience_s`."""
        self._task, self._patience_s = task, patience_s
        self._started_s = time.monotonic() if self._started_s < math.inf else math.inf
        self._send(task)

    def take(self) -> tuple[Any, Any]:
        """Return the task given last and what came of it."""
        try:
            if not self.connection.poll():
                self.kill()
                return self._task, Lost(f"took longer than {self._patience_s:.0f} s")
            answer = self.connection.recv()
        except (EOFError, OSError):
            return self._task, Lost(self._death())
        if isinstance(answer, Exception):
            raise answer
        return self._task, answer[0]

    def finish(self) -> None:
        """Have the worker close what it holds, and wait for it."""
        answer = None
        with suppress(EOFError, OSError):  # dead: what it had not made safe will be found missing
            self.connection.send(None)
            answer = self.connection.recv() if self.connection.poll(_STOP_S) else None
        self.kill()
        if isinstance(answer, Exception):
            raise answer

    def kill(self) -> None:
        """End the process, whatever it does."""
        self.connection.close()
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):  # stuck in the kernel, as on a dead network disk
            self._process.wait(_STOP_S)

    def _send(self, message: object) -> None:
        with suppress(OSError):  # already dead: `take` will see it
            self.connection.send(message)

    def _death(self) -> str:
        self.connection.close()
        code = self._process.wait(_STOP_S)
        return f"ended its process by {signal.Signals(-code).name}" if code < 0 else f"ended its process with {code}"


def serve(descriptor: int, *, mortal: bool) -> None:
    """Work in a process of its own for whoever holds the other end of a connection, until that says None or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal tells all processes; only the first one decides
    if mortal:  # killed, the first one can tell nobody; a task of hours should not go on for nothing
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    with Connection(descriptor) as connection:
        try:
            with connection.recv()() as do:
                connection.send(None)
                while (task := connection.recv()) is not None:
                    connection.send((do(task),))
            connection.send((None,))
        except (EOFError, ConnectionError):  # the other end is dead
            pass
        except Exception as exc:  # noqa: BLE001  # root of the process: the other end raises it
            connection.send(exc)
