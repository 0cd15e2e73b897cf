"""Reading the files settings come from: bounded, regular, UTF-8, and of YAML only what a configuration needs."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeasd.errors import SettingsError

KeyPath = tuple[str | int, ...]

_MAX_CONFIG_BYTES = 256 * 1024
_MAX_SECRET_BYTES = 64 * 1024
_MAX_DEPTH = 8


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """What a configuration file says."""

    path: Path
    values: dict[str, Any]
    """Nested dicts and lists; every scalar is the text that stands there, or None."""
    lines: dict[KeyPath, int]
    """Line of each key, counted from 1."""
    world_readable: bool


def read_config(path: Path) -> ConfigFile:
    """Read a YAML configuration; raise SettingsError when it is not one.

    Scalars stay text, for the field to read: `off`, `0123` and `1:30` mean what they look like, whatever YAML version.
    """
    text, mode = _read_text(path, max_bytes=_MAX_CONFIG_BYTES)
    values, lines = _Reader(path).read(text)
    return ConfigFile(path=path, values=values, lines=lines, world_readable=bool(mode & stat.S_IROTH))


def read_secret(path: Path, *, setting: str, shared_ok: bool) -> str:
    """Return the text of a secret file without its final line end; refuse one that everybody may read."""
    text, mode = _read_text(path, max_bytes=_MAX_SECRET_BYTES, setting=setting)
    if mode & stat.S_IROTH and not shared_ok:
        raise SettingsError(f"{setting}: {path} can be read by everybody; chmod 600 it")
    secret = text.removesuffix("\n").removesuffix("\r")
    if not secret or any(ord(char) < 32 for char in secret):
        raise SettingsError(f"{setting}: {path} does not hold one line of text")
    return secret


def refuse_shared(path: Path, *, setting: str) -> None:
    """Refuse a secret file, read by others than us, that everybody may read; whether it exists is for them to find."""
    with suppress(OSError):
        if path.stat().st_mode & stat.S_IROTH:
            raise SettingsError(f"{setting}: {path} can be read by everybody; chmod 600 it")


def _read_text(path: Path, *, max_bytes: int, setting: str = "config") -> tuple[str, int]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO must not block the start
        with os.fdopen(descriptor, "rb") as file:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode):
                raise SettingsError(f"{setting}: {path} is not a file")
            data = file.read(max_bytes + 1)
    except OSError as exc:
        raise SettingsError(f"{setting}: cannot read {path}: {(exc.strerror or str(exc)).lower()}") from exc
    if len(data) > max_bytes:
        raise SettingsError(f"{setting}: {path} is larger than {max_bytes // 1024} KiB")
    try:
        return data.decode("utf-8-sig"), mode
    except UnicodeDecodeError as exc:
        raise SettingsError(f"{setting}: {path} is not UTF-8 (byte {exc.start})") from exc


class _Reader:
    """Builds plain values from YAML events: no tags, no aliases, no duplicate keys, a few levels deep."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: dict[KeyPath, int] = {}
        self._events: Any = iter(())

    def read(self, text: str) -> tuple[dict[str, Any], dict[KeyPath, int]]:
        import yaml  # noqa: PLC0415  # a node without a file does without

        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        self._events = yaml.parse(text, Loader=loader)
        try:
            next(self._events)  # start of stream
            value = self._document()
        except yaml.MarkedYAMLError as exc:
            mark: Any = exc.problem_mark
            raise self._refuse(exc.problem or "not YAML", mark) from exc
        except (yaml.YAMLError, RecursionError) as exc:
            raise self._refuse(str(getattr(exc, "reason", "not YAML")), None) from exc
        if value is None:
            return {}, {}
        if not isinstance(value, dict):
            raise self._refuse("expected settings as `key: value`", None)
        return value, self._lines

    def _document(self) -> Any:
        import yaml  # noqa: PLC0415

        event = next(self._events)
        if isinstance(event, yaml.StreamEndEvent):
            return None
        value = self._value(next(self._events), ())
        next(self._events)  # end of document
        event = next(self._events)
        if not isinstance(event, yaml.StreamEndEvent):
            raise self._refuse("a second document starts", event.start_mark)
        return value

    def _value(self, event: Any, path: KeyPath) -> Any:
        import yaml  # noqa: PLC0415

        self._lines[path] = _line(event)
        if isinstance(event, yaml.AliasEvent):
            raise self._refuse("aliases (*name) are not accepted", event.start_mark)
        if event.tag is not None:
            raise self._refuse("tags (!name) are not accepted", event.start_mark)
        if len(path) > _MAX_DEPTH:
            raise self._refuse("nested too deep", event.start_mark)
        if isinstance(event, yaml.ScalarEvent):
            return None if event.implicit[0] and event.value in ("", "~", "null") else event.value
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(path)
        return self._mapping(path)

    def _sequence(self, path: KeyPath) -> list[Any]:
        import yaml  # noqa: PLC0415

        values: list[Any] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            values.append(self._value(event, (*path, len(values))))
        return values

    def _mapping(self, path: KeyPath) -> dict[str, Any]:
        import yaml  # noqa: PLC0415

        values: dict[str, Any] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                raise self._refuse("a key must be a word", event.start_mark)
            line = _line(event)
            if event.value in values:
                raise self._refuse(f"{event.value[:40]!r} is given twice", event.start_mark)
            values[event.value] = self._value(next(self._events), (*path, event.value))
            self._lines[(*path, event.value)] = line
        return values

    def _refuse(self, problem: str, mark: Any) -> SettingsError:
        where = f" line {mark.line + 1}" if mark is not None else ""
        return SettingsError(f"config: {self._path}{where}: {problem}")


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1
