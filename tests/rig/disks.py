"""Disks that are small, full or refuse: real ones, so that the kernel says no and not a stand-in."""

from __future__ import annotations

import os
import resource
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

_BALLAST = "ballast"


@contextmanager
def in_memory() -> Iterator[Path]:
    """Make a passing folder in memory where there is such a place: for thousands of files that no disk should bear."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="edgeasd-", dir=memory if memory.is_dir() else None) as passing:
        yield Path(passing)


@cache
def no_mount() -> str | None:
    """Return why no small disk can be mounted here, None when it can."""
    if os.geteuid() != 0:
        return "only root can mount a small disk"
    tried = subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False)
    return None if tried.returncode == 0 else "the kernel does not let this root mount"


@contextmanager
def small_disk(path: Path, *, size_mb: int = 2) -> Iterator[Path]:
    """Mount an empty disk of so many megabytes at `path`."""
    path.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_mb}m,mode=700", "tmpfs", str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def read_only(path: Path, *, yes: bool) -> None:
    """Remount a small disk that nobody writes to, for reading only or for writing again."""
    subprocess.run(["mount", "-o", f"remount,{'ro' if yes else 'rw'}", str(path)], check=True)


def fill(path: Path) -> None:
    """Take the last free byte of a disk."""
    with (path / _BALLAST).open("ab", buffering=0) as file:
        for n_bytes in (1 << 16, 1):
            try:
                while file.write(b"\0" * n_bytes):
                    pass
            except OSError:
                continue


def relieve(path: Path) -> None:
    """Give back what `fill` took."""
    (path / _BALLAST).unlink()


def used_bytes(path: Path) -> int:
    """Return the size of all files in a directory, ballast aside."""
    total = 0
    for entry in os.scandir(path):
        if entry.name != _BALLAST and entry.is_file():
            total += entry.stat().st_size
    return total


@contextmanager
def no_room() -> Iterator[None]:
    """Let no file of this process grow, nor be written: what a disk that has died does to files that are open."""
    with _limited(resource.RLIMIT_FSIZE, 0):
        yield


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Let this process open nothing more."""
    with _limited(resource.RLIMIT_NOFILE, 3):
        yield


@contextmanager
def _limited(what: int, limit: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(what)
    resource.setrlimit(what, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(what, (soft, hard))
