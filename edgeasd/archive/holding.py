"""Who may work in a folder of parts, and with what: locks, and what the parts that are there depend on."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from edgeasd.archive.parts import Parts
from edgeasd.archive.takes import Shard
from edgeasd.disk import replace_file
from edgeasd.errors import CannotWriteError, TemporaryError, UsageError

_FACTS = "facts"


@contextmanager
def parts_beside(
    table: Path, facts: Mapping[str, object], *, shard: Shard | None = None, resume: bool = False
) -> Iterator[Parts]:
    """Open the folder of parts beside a table; `facts` are what the parts depend on.

    Shards work in one folder together, the whole alone. UsageError when there are parts that nobody asked to go on
    with, or that were made otherwise; TemporaryError when another replay is at work. A folder without a recording that
    is done is not left behind.
    """
    parts = Parts(
        table.with_name(f"{table.name}.parts"), "whole" if shard is None else f"shard-{shard.index}-of-{shard.of}"
    )
    with ExitStack() as stack:
        try:
            parts.folder.mkdir(parents=True, exist_ok=True)
            _hold(parts, "whole", stack, exclusive=shard is None)
            if shard is not None:
                _hold(parts, parts.holder, stack)
        except OSError as exc:
            raise CannotWriteError(f"{parts.folder}: cannot be written: {exc.strerror}") from exc
        _agree(parts, facts, shared=shard is not None, resume=resume)
        parts.clear()
        if shard is None:
            stack.callback(_leave_nothing_empty, parts)
        yield parts


@contextmanager
def joining(parts: Parts) -> Iterator[None]:
    """Wait until nobody else joins these parts; the folder may be gone then."""
    with ExitStack() as stack:
        with suppress(OSError):
            _hold(parts, "join", stack, wait=True)
        yield


def _hold(parts: Parts, name: str, stack: ExitStack, *, exclusive: bool = True, wait: bool = False) -> None:
    descriptor = os.open(parts.folder / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    stack.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError as exc:
        raise TemporaryError(f"{parts.folder}: another replay is at work on this table") from exc
    except OSError:
        pass  # a network disk without locks; parts come to their places whole, so that two at work only work twice


def _agree(parts: Parts, facts: Mapping[str, object], *, shared: bool, resume: bool) -> None:
    """Compare what the parts depend on with what is written there, or write it."""
    path = parts.folder / _FACTS
    said = json.loads(json.dumps(facts, default=str))
    n_done = parts.n_done()
    try:
        there = json.loads(path.read_bytes()) if shared or n_done else None
    except (OSError, ValueError):
        there = None
    if n_done and not (resume or shared):
        raise UsageError(
            f"{parts.folder} holds {n_done} recordings of a replay that was not finished: go on with --resume, "
            "or remove the folder to begin anew"
        )
    if there is None and not n_done:
        replace_file(path, json.dumps(said, indent=1).encode())
    elif there != said:
        raise UsageError(f"{parts.folder} was made otherwise ({_difference(there, said)}); remove it to begin anew")


def _difference(there: object, said: dict[str, object]) -> str:
    if not isinstance(there, dict):
        return "it does not say how"
    keys = [key for key in {**there, **said} if there.get(key) != said.get(key)]
    return ", ".join(f"{key}: {there.get(key)} there, {said.get(key)} now" for key in keys)


def _leave_nothing_empty(parts: Parts) -> None:
    if parts.folder.exists() and not parts.n_done():
        parts.remove()
