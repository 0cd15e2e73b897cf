"""The files of the systemd service: those that come with edgeasd, and how they are put on a node and taken off it."""

from __future__ import annotations

import difflib
import importlib.resources
import os
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgeasd.errors import CannotWriteError, UnavailableError

UNIT = "edgeasd.service"
UNIT_DIR = Path("/etc/systemd/system")
_UNSEEN = tuple(Path(name) for name in ("/home", "/root", "/run/user", "/tmp", "/var/tmp"))  # noqa: S108
"""What ProtectHome= and PrivateTmp= hide from the service."""
_ELSEWHERE = "python3 -m venv /opt/edgeasd && /opt/edgeasd/bin/pip install edgeasd"


@dataclass(frozen=True, slots=True)
class Installation:
    """An edgeasd as the service would start it."""

    program: Path
    """Its command, in the environment that runs now."""
    config: Path

    @property
    def unit(self) -> str:
        """Return the unit file for it."""
        command = " ".join(_quoted(word) for word in (str(self.program), "run", "--config", str(self.config)))
        lines = packaged(UNIT).splitlines(keepends=True)
        return "".join(f"ExecStart={command}\n" if line.startswith("ExecStart=") else line for line in lines)

    def refuse_unreachable(self) -> None:
        """Raise UnavailableError when the sandbox would hide the program, its interpreter or the settings."""
        package = Path(str(importlib.resources.files("edgeasd")))
        for path in (self.config.parent, self.program, Path(sys.prefix), Path(sys.base_prefix), package):
            real = path.resolve()
            hidden = next((place for place in _UNSEEN if real.is_relative_to(place)), None)
            if hidden is not None:
                raise UnavailableError(f"{path} is in {hidden}, hidden from the service: {_advice(self, path)}")
            closed = next((place for place in reversed((real, *real.parents)) if _is_closed(place)), None)
            if closed is not None:
                raise UnavailableError(f"{closed} is closed to the service's user: {_advice(self, path)}")


def this_installation(config: Path) -> Installation:
    """Return the edgeasd that runs now."""
    return Installation(Path(sys.prefix) / "bin" / "edgeasd", config.absolute())


def packaged(name: str) -> str:
    """Return the text of a file that comes with edgeasd: the unit, or drop-ins/NAME.conf."""
    return importlib.resources.files("edgeasd").joinpath("units", *name.split("/")).read_text(encoding="utf-8")


def packaged_drop_ins() -> list[str]:
    """Return the names of the drop-ins that come with edgeasd."""
    folder = importlib.resources.files("edgeasd").joinpath("units", "drop-ins")
    return sorted(entry.name for entry in folder.iterdir())


def drop_in_dir(unit_dir: Path) -> Path:
    """Return where the drop-ins of the unit lie."""
    return unit_dir / f"{UNIT}.d"


def put_unit(unit_dir: Path, text: str) -> Iterator[str]:
    """Write the unit; one that is there and differs is kept beside it and shown. Yield what was done."""
    path = unit_dir / UNIT
    before = _read(path)
    if before == text:
        yield f"unchanged {path}"
        return
    if before is not None:
        yield from _set_aside(path, before)
        shown = difflib.unified_diff(before.splitlines(), text.splitlines(), "before", "now", lineterm="", n=0)
        yield from (f"  {line}" for line in shown)
    _write(path, text)
    yield f"wrote {path}"


def put_drop_in(unit_dir: Path, name: str) -> Iterator[str]:
    """Write a drop-in unless one of that name is there already. Yield what was done."""
    path = drop_in_dir(unit_dir) / name
    text = packaged(f"drop-ins/{name}")
    before = _read(path)
    if before is None:
        _write(path, text)
        yield f"wrote {path}"
    else:
        yield f"unchanged {path}" if before == text else f"kept {path}: it is not the one that comes with edgeasd"


def remove(unit_dir: Path) -> Iterator[str]:
    """Remove the unit and the drop-ins that came with edgeasd, keep what was changed by hand. Yield what was done."""
    path = unit_dir / UNIT
    before = _read(path)
    if before is not None:
        if _apart_from_command(before) != _apart_from_command(packaged(UNIT)):
            yield from _set_aside(path, before)
        path.unlink()
        yield f"removed {path}"
    folder = drop_in_dir(unit_dir)
    for name in packaged_drop_ins():
        if _read(folder / name) == packaged(f"drop-ins/{name}"):
            (folder / name).unlink()
            yield f"removed {folder / name}"
    left = sorted(folder.iterdir()) if folder.is_dir() else []
    yield from (f"kept {entry}" for entry in left)
    if folder.is_dir() and not left:
        folder.rmdir()


def _apart_from_command(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith("ExecStart=")]


def _set_aside(path: Path, text: str) -> Iterator[str]:
    number = 1
    while (aside := path.with_name(f"{path.name}.before-{number}")).exists():
        number += 1
    _write(aside, text)
    yield f"kept the former unit as {aside}"


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def _write(path: Path, text: str) -> None:
    """Write a file that everybody may read, whole or not at all."""
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}.new")
        new.write_text(text, encoding="utf-8")
        new.chmod(0o644)
        os.replace(new, path)
    except OSError as exc:
        raise CannotWriteError(f"{path}: {(exc.strerror or str(exc)).lower()}") from exc


def _advice(installation: Installation, path: Path) -> str:
    if path == installation.config.parent:
        return "give --config in /etc/edgeasd"
    return f"install edgeasd elsewhere, {_ELSEWHERE}, and use that one"


def _is_closed(path: Path) -> bool:
    try:
        return not path.stat().st_mode & stat.S_IXOTH
    except FileNotFoundError:
        return False


def _quoted(word: str) -> str:
    """Return a word as systemd reads it in a command line."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return escaped if escaped == word and " " not in word else f'"{escaped}"'
