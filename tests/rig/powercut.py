"""What a power cut leaves of a directory: rebuilt from the system calls of a process that wrote to it.

strace records what is written, synchronised, renamed and removed. From that `Medium` knows at any moment what is on the
medium for good, and what may or may not be: of the writes since a file's last fsync any part can be missing, torn at
512 bytes; of the changes of names since the directory's last fsync any number of the latest.
"""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

_CALLS = (
    "openat,write,pwrite64,fsync,fdatasync,ftruncate,unlink,rename,"
    "pwritev,writev,fallocate,unlinkat,renameat,renameat2,sync_file_range,msync"
)
_UNFINISHED, _RESUMED = " <unfinished ...>", re.compile(r"<\.\.\. \w+ resumed>")
_FD = r"\d+<([^>]*)>(?:\(deleted\))?"
What = Literal["open", "write", "sync", "truncate", "unlink", "rename"]
_PATTERNS: dict[What, re.Pattern[str]] = {
    "open": re.compile(r'openat\(AT_FDCWD<[^>]*>, "([^"]*)", ([A-Z_|]*O_CREAT[A-Z_|]*), \d+\) += \d+<'),
    "write": re.compile(rf'(?:write|pwrite64)\({_FD}, "([^"]*)", \d+(?:, (\d+))?\) += (\d+)'),
    "sync": re.compile(rf"(?:fsync|fdatasync)\({_FD}\) += 0"),
    "truncate": re.compile(rf"ftruncate\({_FD}, (\d+)\) += 0"),
    "unlink": re.compile(r'unlink\("([^"]*)"\) += 0'),
    "rename": re.compile(r'rename\("([^"]*)", "([^"]*)"\) += 0'),
}
_HARMLESS = re.compile(r"openat\(|.* = -1 |exit|--- |\+\+\+ ")
_SECTOR_BYTES = 512


@dataclass(frozen=True, slots=True)
class Call:
    """One system call that succeeded."""

    what: What
    path: str
    other: str = ""
    """The new name of what is renamed."""
    data: bytes = b""
    offset: int | None = None
    """None writes where the last write ended; the size to which a file is cut."""


@cache
def no_strace() -> str | None:
    """Return why system calls cannot be recorded here, None when they can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    tried = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, check=False)
    return None if tried.returncode == 0 else "the kernel does not let strace look on"


def record(script: str, arguments: Sequence[str], *, trace: Path) -> list[Call]:
    """Run a Python script to its end; return what it did to files, and what it wrote to its standard output."""
    command = ["strace", "-f", "-xx", "-y", "-s", "1000000", "-e", f"trace={_CALLS}", "-o", str(trace)]
    output = trace.with_suffix(".out")
    with output.open("wb") as file:
        subprocess.run(
            [*command, sys.executable, "-c", script, *arguments], stdout=file, check=True, cwd=Path(__file__).parents[2]
        )
    with trace.open(encoding="ascii") as lines:
        return [call for line in _whole(lines) if (call := _parsed(line)) is not None]


def _whole(lines: Iterator[str]) -> Iterator[str]:
    """Yield calls as they end; those that another thread interrupted are put together."""
    begun: dict[str, str] = {}
    for line in lines:
        pid, _, text = line.rstrip("\n").partition(" ")
        text = text.lstrip()
        if text.endswith(_UNFINISHED):
            begun[pid] = text.removesuffix(_UNFINISHED)
        elif resumed := _RESUMED.match(text):
            yield begun.pop(pid) + text[resumed.end() :]
        else:
            yield text


def _parsed(text: str) -> Call | None:
    for what, pattern in _PATTERNS.items():
        if (found := pattern.match(text)) is None:
            continue
        path = _plain(found[1])
        if what == "write":
            data = bytes.fromhex(found[2].replace("\\x", ""))[: int(found[4])]
            return Call("write", path, data=data, offset=None if found[3] is None else int(found[3]))
        if what == "truncate":
            return Call("truncate", path, offset=int(found[2]))
        return Call(what, path, _plain(found[2]) if what == "rename" else "")
    assert _HARMLESS.match(text) is not None, f"a call that the model does not know: {text[:200]}"
    return None


def _plain(text: str) -> str:
    return bytes.fromhex(text.replace("\\x", "")).decode() if text.startswith("\\x") else text


@dataclass(slots=True)
class _File:
    durable: bytearray = field(default_factory=bytearray)
    pending: list[Call] = field(default_factory=list)
    position: int = 0


class Medium:
    """One directory, without folders in it, as the medium holds it."""

    def __init__(self, directory: Path) -> None:
        self._directory = str(directory)
        self._names: dict[str, _File] = {}
        self._durable_names: dict[str, _File] = {}
        self._pending_names: list[tuple[Call, _File | None]] = []

    def holds(self, call: Call) -> bool:
        """Return whether a call is about this directory or a file in it."""
        return call.path == self._directory or call.path.startswith(self._directory + "/")

    def apply(self, call: Call) -> None:
        """Take note of a call."""
        if call.path == self._directory:
            assert call.what == "sync", call
            self._durable_names = dict(self._names)
            self._pending_names.clear()
        elif call.what in ("open", "rename", "unlink"):
            self._rename(call)
        else:
            self._write(self._names[call.path], call)

    def cut(self, folder: Path, chance: random.Random | None, *, share: float) -> None:
        """Write into `folder` what is there after a cut: of what is not synchronised each part with that chance."""
        names, changes = dict(self._durable_names), self._pending_names
        n_kept = round(share * len(changes)) if chance is None else chance.randint(0, len(changes))
        for call, file in changes[:n_kept]:
            _change_name(names, call, file)
        for path, file in names.items():
            content = bytearray(file.durable)
            for call in file.pending:
                for part in _parts(call):
                    if share == 1.0 or (chance is not None and chance.random() < share):
                        _change(content, part)
            (folder / Path(path).name).write_bytes(content)

    def _rename(self, call: Call) -> None:
        if call.what == "open" and call.path in self._names:
            return
        file = _File() if call.what == "open" else None
        _change_name(self._names, call, file)
        self._pending_names.append((call, file))

    def _write(self, file: _File, call: Call) -> None:
        if call.what == "sync":
            for written in file.pending:
                _change(file.durable, written)
            file.pending.clear()
            return
        if call.what == "write" and call.offset is None:
            call = Call("write", call.path, data=call.data, offset=file.position)
            file.position += len(call.data)
        file.pending.append(call)


def _change_name(names: dict[str, _File], call: Call, file: _File | None) -> None:
    if call.what == "open" and file is not None:
        names[call.path] = file
    elif call.what == "rename":
        names[call.other] = names.pop(call.path)
    else:
        names.pop(call.path, None)


def _parts(call: Call) -> Iterator[Call]:
    """Yield what of a call can reach the medium by itself: sectors."""
    if call.what == "truncate":
        yield call
        return
    assert call.offset is not None
    start, end = call.offset, call.offset + len(call.data)
    while start < end:
        stop = min(end, (start // _SECTOR_BYTES + 1) * _SECTOR_BYTES)
        yield Call("write", call.path, data=call.data[start - call.offset : stop - call.offset], offset=start)
        start = stop


def _change(content: bytearray, call: Call) -> None:
    assert call.offset is not None
    if call.what == "truncate":
        del content[call.offset :]
        content.extend(b"\0" * (call.offset - len(content)))
        return
    content.extend(b"\0" * (call.offset - len(content)))
    content[call.offset : call.offset + len(call.data)] = call.data
