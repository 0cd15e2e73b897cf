"""What engines build on this node and keep: TensorRT plans, their timing cache, the engine that was found fastest.

Such a file is code: whoever loads one runs it. So only what this node built itself is handed out, byte for byte. Each
file bears a seal, an HMAC-SHA256 of its key and content under a secret that never leaves the folder.

What the seal tells apart: a file that is damaged, cut short, or renamed to stand for another key; and one that was made
elsewhere, by whoever shares plans for just this GPU, which a bare digest would let pass, since anyone can compute one.
What it does not: somebody who acts as our user, or as root, reads the secret and seals what he likes. He could as well
replace edgeasd itself, so nothing here could stop him; keeping him out is the business of the folder's mode and of the
unit's sandbox. Nor does it hinder who copies the whole folder to another node, secret and all: there the key decides.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from edgeasd import __version__
from edgeasd.disk import replace_file
from edgeasd.engine.sealing import check_ours, key_of, read_ours, seal, unseal
from edgeasd.errors import CannotWriteError, EdgeasdError

log = logging.getLogger(__name__)

MAX_BYTES = 1 << 30
MAX_ENTRIES = 64
LOCK_WAIT_S = 120.0
"""A build that takes longer is not waited for: building the same twice costs time and nothing else."""
_LOCK_POLL_S = 0.1
_SECRET_BYTES = 32


@dataclass(frozen=True, slots=True)
class PlanKey:
    """All that a built thing depends on: where one of these differs, it is another thing."""

    kind: str
    """What it is: a few lower-case letters and hyphens."""
    source_sha256: str
    """Of what it is built from: an ONNX graph, a torch program, a bundle."""
    precision: str
    library: str
    """What built it, with its version, such as "tensorrt 10.3.0"."""
    device: str
    """The GPU or CPU it was built on, by name."""
    capability: str
    """Compute capability of the GPU, such as "8.7"; of a CPU, what `cpu_facts` says of its instructions."""
    extra: str = ""
    """Whatever else went into the build, such as the sizes of batches."""
    edgeasd: str = __version__

    def canonical(self) -> bytes:
        """Return the one way to write this key."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()


@dataclass(frozen=True, slots=True)
class PlanEntry:
    """What is kept under a key."""

    key: PlanKey
    n_bytes: int
    used_utc_s: float
    """When it was last built or fetched."""


class PlanCache:
    """A folder of sealed files, bounded in bytes and in number: the ones longest unused go first.

    A folder that cannot be written, or that others may write, costs a warning and the time to build again, nothing
    else. Processes share it: whoever builds holds its lock.
    """

    def __init__(self, folder: Path, *, max_bytes: int = MAX_BYTES, max_entries: int = MAX_ENTRIES) -> None:
        """Make the folder and its secret where they are missing."""
        self.folder = folder
        self._built = folder / "built"
        self._max_bytes, self._max_entries = max_bytes, max_entries
        self._secret = self._open()

    def get(self, key: PlanKey) -> bytes | None:
        """Return what this node put under the key; None, and the file is gone, when it is not exactly that."""
        path = self._path(key)
        if self._secret is None:
            return None
        try:
            content = unseal(read_ours(path, max_bytes=self._max_bytes), self._secret, key=key.canonical())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as exc:
            log.warning("%s: %s; it is built anew", path, exc)
            self._remove(path)
            return None
        with suppress(OSError):
            os.utime(path, follow_symlinks=False)
        return content

    def put(self, key: PlanKey, data: bytes) -> None:
        """Keep something under a key; a warning says why it could not be kept."""
        if self._secret is None:
            return
        sealed = seal(key.canonical(), data, self._secret)
        if len(sealed) > self._max_bytes:
            log.warning(
                "%s: %s of %d bytes is not kept: the limit is %d", self.folder, key.kind, len(data), self._max_bytes
            )
            return
        try:
            replace_file(self._path(key), sealed, mode=0o600)
        except CannotWriteError as exc:
            log.warning("%s; it is built anew at the next start", exc)
        self._shrink()

    def remove(self, key: PlanKey) -> None:
        """Forget what is under a key."""
        self._remove(self._path(key))

    @contextmanager
    def building(self) -> Iterator[None]:
        """Hold the folder's lock; after two minutes, or without a folder, go on without. Not to be nested."""
        descriptor = self._lock()
        try:
            yield
        finally:
            if descriptor is not None:
                with suppress(OSError):
                    fcntl.flock(descriptor, fcntl.LOCK_UN)  # a compiler's workers, forked meanwhile, hold it open
                os.close(descriptor)

    def entries(self) -> list[PlanEntry]:
        """Return what is kept and sound, the latest used first; reads all of it."""
        if self._secret is None:
            return []
        found = []
        for path, status in reversed(self._files()):
            with suppress(OSError, ValueError, TypeError):  # what is not sound is not listed
                data = read_ours(path, max_bytes=self._max_bytes)
                key = PlanKey(**json.loads(key_of(data)))
                content = unseal(data, self._secret, key=key.canonical())
                found.append(PlanEntry(key, len(content), status.st_mtime))
        return found

    def clear(self) -> int:
        """Remove all that was built; return how many files are gone. CannotWriteError when one stays."""
        paths = [path for path, _ in self._files()]
        for path in paths:
            try:
                path.unlink(missing_ok=True)
            except OSError as exc:
                raise CannotWriteError(f"{path}: cannot be removed: {exc.strerror}") from exc
        return len(paths)

    def _open(self) -> bytes | None:
        """Return the secret, None when there is no folder to trust."""
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            for folder in (self.folder, self._built):
                folder.mkdir(mode=0o700, exist_ok=True)
                check_ours(folder.stat(), forbidden=stat.S_IWGRP | stat.S_IWOTH)
            return self._read_secret() or self._make_secret()
        except (OSError, ValueError, CannotWriteError) as exc:
            log.warning("%s: %s; nothing that is built is kept", self.folder, exc)
            return None

    def _read_secret(self) -> bytes | None:
        try:
            secret = read_ours(self.folder / "secret", max_bytes=_SECRET_BYTES)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as exc:
            log.warning("%s: %s; a new one is made", self.folder / "secret", exc)
            return None
        return secret if len(secret) == _SECRET_BYTES else None

    def _make_secret(self) -> bytes:
        with self.building():  # of two that find none, the second takes what the first has made
            if (secret := self._read_secret()) is None:
                secret = secrets.token_bytes(_SECRET_BYTES)
                replace_file(self.folder / "secret", secret, mode=0o600)
        return secret

    def _path(self, key: PlanKey) -> Path:
        return self._built / f"{hashlib.sha256(key.canonical()).hexdigest()}.sealed"

    def _files(self) -> list[tuple[Path, os.stat_result]]:
        """Return all files, what a killed process left half-written too, the longest unused first."""
        files = []
        with suppress(OSError):
            for path in self._built.iterdir():
                with suppress(FileNotFoundError):
                    files.append((path, path.lstat()))
        return sorted(files, key=lambda file: file[1].st_mtime_ns)

    def _shrink(self) -> None:
        files = self._files()
        n_bytes = sum(status.st_size for _, status in files)
        for i, (path, status) in enumerate(files):
            if n_bytes <= self._max_bytes and len(files) - i <= self._max_entries:
                return
            self._remove(path)
            n_bytes -= status.st_size

    def _remove(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as exc:
            log.warning("%s: cannot be removed: %s", path, exc.strerror)

    def _lock(self) -> int | None:
        try:
            descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError:
            return None  # a folder that cannot be written has been warned of
        deadline_s = time.monotonic() + LOCK_WAIT_S
        while time.monotonic() < deadline_s:  # flock has no form that waits for so long and no longer
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(_LOCK_POLL_S)
            except OSError:
                break  # a file system without locks
            else:
                break
        return descriptor


def open_proven(
    cache: PlanCache | None, key: PlanKey, *, build: Callable[[], bytes], prove: Callable[[bytes], None]
) -> bool:
    """Let `prove` take what is under the key, built where it is missing; return whether it was there.

    `prove` raises an EdgeasdError for what does not work or answers wrongly. Something kept that fails is forgotten and
    built anew; something new that fails is not kept, and its error is raised. While another process builds, this one
    waits: it may be building the same, and two builds at once would spoil each other's timing.
    """
    if cache is None:
        prove(build())
        return False
    if _still_holds(cache, key, prove):
        return True
    with cache.building():
        if _still_holds(cache, key, prove):
            return True
        data = build()
        prove(data)
        cache.put(key, data)
    return False


def _still_holds(cache: PlanCache, key: PlanKey, prove: Callable[[bytes], None]) -> bool:
    data = cache.get(key)
    if data is None:
        return False
    try:
        prove(data)
    except EdgeasdError as exc:
        log.warning("%s: the %s that was kept does not hold: %s; it is built anew", cache.folder, key.kind, exc)
        cache.remove(key)
        return False
    return True


def cpu_facts(cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[str, str]:
    """Return what this machine's CPU is called, and a digest of the instructions it has, for keys."""
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    facts = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    by_number = " ".join(f"{name} {facts[name]}" for name in ("cpu implementer", "cpu part") if name in facts)
    flags = " ".join(sorted(facts.get("flags", facts.get("features", "")).split()))
    name = facts.get("model name") or by_number or os.uname().machine
    return name, hashlib.sha256(flags.encode()).hexdigest()[:16]
