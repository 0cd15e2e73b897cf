"""What was set by command, kept in the state directory from one start to the next."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from edgeasd.disk import replace_file
from edgeasd.publish.commands import is_threshold
from edgeasd.publish.message import Override

log = logging.getLogger(__name__)

OVERRIDES_FILE = "overrides.json"
_MAX_BYTES = 64 * 1024


def read_overrides(directory: Path, *, sources: Collection[str]) -> dict[str, Override]:
    """Return what is kept for the sources there are; a damaged file is set aside with a warning, and all is as set."""
    path = directory / OVERRIDES_FILE
    try:
        with path.open("rb") as file:
            found = _parsed(file.read(_MAX_BYTES + 1))
    except FileNotFoundError:
        return {}
    except OSError as exc:
        log.warning("%s cannot be read, nothing in it applies: %s", path, exc.strerror)
        return {}
    except (ValueError, RecursionError) as exc:
        _set_aside(path, reason=str(exc) or type(exc).__name__)
        return {}
    for source in found.keys() - set(sources):
        log.warning("%s speaks of %s, which is no source: forgotten with the next command", path, source)
    return {source: override for source, override in found.items() if source in sources}


def write_overrides(directory: Path, overrides: Mapping[str, Override]) -> None:
    """Replace the file, on disk when this returns; CannotWriteError when that fails."""
    sources = {source: {"threshold": one.threshold, "enabled": one.enabled} for source, one in overrides.items()}
    text = json.dumps({"v": 1, "sources": sources}, allow_nan=False, indent=2)
    replace_file(directory / OVERRIDES_FILE, text.encode() + b"\n")


def _parsed(data: bytes) -> dict[str, Override]:
    if len(data) > _MAX_BYTES:
        raise ValueError(f"larger than {_MAX_BYTES // 1024} KiB")
    document: Any = json.loads(data)
    if not isinstance(document, dict) or document.get("v") != 1 or not isinstance(document.get("sources"), dict):
        raise ValueError("not a file of this version")
    return {source: _override(value) for source, value in document["sources"].items()}


def _override(value: Any) -> Override:
    if not isinstance(value, dict) or value.keys() != {"threshold", "enabled"}:
        raise ValueError("a source without threshold or enabled")
    threshold, enabled = value["threshold"], value["enabled"]
    if not isinstance(enabled, bool) or not (threshold is None or is_threshold(threshold)):
        raise ValueError("a threshold or a switch that no command sets")
    return Override(None if threshold is None else float(threshold), enabled)


def _set_aside(path: Path, *, reason: str) -> None:
    aside = path.with_name(f"{path.name}.corrupt-{int(time.time())}")
    try:
        path.replace(aside)
    except OSError as exc:
        log.warning("%s is damaged (%s) and cannot be moved away: %s", path, reason, exc.strerror)
    else:
        log.warning("%s is damaged (%s), set aside as %s: what was set by command is lost", path, reason, aside.name)
