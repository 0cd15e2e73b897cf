"""Where settings come from and which place wins; the only reader of the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import SecretStr, ValidationError
from pydantic_settings import EnvSettingsSource
from pydantic_settings import SettingsError as EnvironmentValueError

from edgeasd.errors import SettingsError
from edgeasd.settings.complaints import complaint
from edgeasd.settings.files import KeyPath, read_config, read_secret, refuse_shared
from edgeasd.settings.model import Settings
from edgeasd.settings.mqtt import expand_url

_PREFIX = "EDGEASD_"
# What Kubernetes puts into every pod beside a Service that is called edgeasd: no settings of ours.
_SERVICE_LINK = re.compile(r"EDGEASD_(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP)(_(PROTO|PORT|ADDR))?)?)")

_CREDENTIALS = {
    "mqtt-username": "username",
    "mqtt-password": "password",
    "mqtt-ca": "ca_file",
    "mqtt-client-cert": "cert_file",
    "mqtt-client-key": "key_file",
}
"""File names in a credentials directory, and the setting in `mqtt` that each stands for."""
_READ_CREDENTIALS = ("username", "password")

_FILE_SETTINGS: tuple[KeyPath, ...] = (
    ("bundle",),
    ("state_dir",),
    ("trusted_keys_dir",),
    *(("mqtt", key) for key in ("ca_file", "cert_file", "key_file", "password_file")),
)
"""Paths in a configuration file are relative to that file."""


class InvalidSettingsError(SettingsError):
    """Raised when settings are wrong; its text is the first complaint, `lines` holds all."""

    def __init__(self, lines: Sequence[str]) -> None:
        more = f" (and {len(lines) - 1} more: edgeasd config validate)" if len(lines) > 1 else ""
        super().__init__(lines[0] + more)
        self.lines = tuple(lines)


def _credential_dirs() -> tuple[Path, ...]:
    given = os.environ.get("CREDENTIALS_DIRECTORY")
    return (*([Path(given)] if given else []), Path("/run/secrets"))


def _config_files() -> tuple[Path, ...]:
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return (Path("/etc/edgeasd/config.yaml"), home / "edgeasd" / "config.yaml")


@dataclass(frozen=True, slots=True)
class Places:
    """Where to look when nothing is said."""

    credential_dirs: tuple[Path, ...] = field(default_factory=_credential_dirs)
    """The first directory that holds a credential wins."""
    config_files: tuple[Path, ...] = field(default_factory=_config_files)
    """The first file that exists is read."""


@dataclass(frozen=True, slots=True)
class _Layer:
    """Settings from one place."""

    values: dict[str, Any]
    name_of: Callable[[Sequence[str | int]], str]


@dataclass(frozen=True, slots=True)
class Resolved:
    """Settings, and where each was given."""

    settings: Settings
    config: Path | None
    """The file that was read."""
    origin: Callable[[Sequence[str | int]], str]
    """Tells the place a setting came from, '' for a default."""


def load_settings(config: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Return the settings in force; `overrides` are nested like the file and come from flags, None means not given.

    Raises SettingsError with one line for whatever is wrong.
    """
    return resolve_settings(config, overrides).settings


def resolve_settings(
    config: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    places: Places | None = None,
) -> Resolved:
    """Return the settings in force and where each came from; see load_settings."""
    places = places or Places()
    config = config or next((path for path in places.config_files if path.exists()), None)
    layers = [
        _flags(overrides or {}),
        _environment(),
        _credentials(places.credential_dirs),
        *([_file(config)] if config is not None else []),
    ]
    values: dict[str, Any] = {}
    for layer in reversed(layers):
        _merge(values, layer.values)

    def origin(path: Sequence[str | int]) -> str:
        return next((layer.name_of(path) for layer in layers if _holds(layer.values, path)), "")

    # A leading underscore would reach the constructor as an option of pydantic-settings.
    if private := sorted(key for key in values if key.startswith("_")):
        raise InvalidSettingsError([f"{key}: unknown setting (from {origin([key])})" for key in private])
    try:
        settings = Settings(**values)
    except ValidationError as exc:
        lines = [complaint(error, model=Settings, where=origin) for error in exc.errors(include_url=False)]
        raise InvalidSettingsError(lines) from None  # the cause would carry the values, and with them a password
    return Resolved(settings=_with_secrets(settings, places), config=config, origin=origin)


def _flags(overrides: Mapping[str, Any]) -> _Layer:
    values = _given(overrides)
    mqtt = values.get("mqtt")
    if isinstance(mqtt, dict):
        values["mqtt"] = _expanded(mqtt)
        if "password" in values["mqtt"]:
            raise SettingsError("mqtt.password: on the command line every user can read it; use mqtt.password_file")
    return _Layer(values, lambda _: "the command line")


def _environment() -> _Layer:
    try:
        values = EnvSettingsSource(Settings)()
    except (EnvironmentValueError, RecursionError) as exc:
        quoted = re.search(r'field "(\w+)"', str(exc))
        variable = _PREFIX + quoted[1].upper() if quoted else "a variable nested too deep"
        raise SettingsError(f"environment: not valid JSON: {variable}") from None

    given = {name.upper() for name, text in os.environ.items() if name.upper().startswith(_PREFIX) and text}
    unknown = [name for name in sorted(given) if not _SERVICE_LINK.fullmatch(name) and not _holds(values, _keys(name))]
    if unknown:
        raise InvalidSettingsError([f"{name}: unknown setting (from the environment)" for name in unknown])

    def name_of(path: Sequence[str | int]) -> str:
        names = [_PREFIX + "__".join(map(str, path[:end])).upper() for end in range(len(path), 0, -1)]
        return next((name for name in names if name in given), "the environment")

    mqtt = values.get("mqtt")
    return _Layer(values | {"mqtt": _expanded(mqtt)} if isinstance(mqtt, dict) else values, name_of)


def _keys(variable: str) -> list[str]:
    return variable.removeprefix(_PREFIX).lower().split("__")


def _credentials(directories: Sequence[Path]) -> _Layer:
    found: dict[str, str] = {}
    for name, key in _CREDENTIALS.items():
        path = next((directory / name for directory in directories if (directory / name).is_file()), None)
        if path is None:
            continue
        read = key in _READ_CREDENTIALS
        found[key] = read_secret(path, setting=f"mqtt.{key}", shared_ok=True) if read else str(path)
    names = {key: name for name, key in _CREDENTIALS.items()}
    return _Layer({"mqtt": found} if found else {}, lambda path: f"credential {names[str(path[-1])]}")


def _file(path: Path) -> _Layer:
    file = read_config(path)
    values = _given(file.values)
    if isinstance(values.get("mqtt"), dict):
        values["mqtt"] = _expanded(values["mqtt"])
    for keys in _FILE_SETTINGS:
        _anchor(values, keys, path.absolute().parent)
    if file.world_readable and _holds(values, ("mqtt", "password")):
        raise SettingsError(f"mqtt.password: {path} can be read by everybody; chmod 600 it or use mqtt.password_file")

    def name_of(keys: Sequence[str | int]) -> str:
        line = next((file.lines[key] for end in range(len(keys), 0, -1) if (key := tuple(keys[:end])) in file.lines), 1)
        return f"{path} line {line}"

    return _Layer(values, name_of)


def _anchor(values: dict[str, Any], keys: KeyPath, directory: Path) -> None:
    *outer, last = keys
    group: Any = values
    for key in outer:
        group = group.get(key) if isinstance(group, dict) else None
    if isinstance(group, dict) and isinstance(group.get(last), str) and group[last] and not group[last].startswith("~"):
        group[last] = str(directory / group[last])  # an absolute path stays as it is


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy without what is None: a flag that was not given, a section whose lines are all comments."""
    return {
        key: _given(value) if isinstance(value, Mapping) else value
        for key, value in values.items()
        if value is not None
    }


def _expanded(mqtt: dict[str, Any]) -> dict[str, Any]:
    try:
        return expand_url(mqtt)
    except ValueError:
        return mqtt  # the model refuses it in the same words, with its place


def _merge(values: dict[str, Any], higher: Mapping[str, Any]) -> None:
    for key, value in higher.items():
        if isinstance(value, Mapping) and isinstance(values.get(key), dict):
            _merge(values[key], value)
        elif key in ("password", "password_file"):
            # One replaces the other; within one place the file wins.
            if key == "password_file" or higher.get("password_file") is None:
                values.pop("password", None)
                values.pop("password_file", None)
                values[key] = value
        else:
            values[key] = _copy(value)


def _copy(value: Any) -> Any:
    return {key: _copy(inner) for key, inner in value.items()} if isinstance(value, Mapping) else value


def _holds(values: Any, path: Sequence[str | int]) -> bool:
    for key in path:
        named = isinstance(values, Mapping) and key in values
        if not named and not (isinstance(values, list | tuple) and isinstance(key, int) and key < len(values)):
            return False
        values = values[key]
    return True


def _with_secrets(settings: Settings, places: Places) -> Settings:
    path, key_path = settings.mqtt.password_file, settings.mqtt.key_file
    if key_path is not None and not _is_credential(key_path, places):
        refuse_shared(key_path, setting="mqtt.key_file")
    if path is None:
        return settings
    password = SecretStr(read_secret(path, setting="mqtt.password_file", shared_ok=_is_credential(path, places)))
    return settings.model_copy(update={"mqtt": settings.mqtt.model_copy(update={"password": password})})


def _is_credential(path: Path, places: Places) -> bool:
    return any(path.is_relative_to(directory) for directory in places.credential_dirs)
