"""Find the recordings below the paths a user names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeasd.errors import InputError, SettingsError

SUFFIXES = frozenset({".wav", ".wave", ".flac", ".ogg", ".oga"})


@dataclass(frozen=True, slots=True)
class Recording:
    """A file that should hold sound."""

    path: Path
    named: bool
    """The user named this very file, not a directory above it."""


def discover(paths: Sequence[Path], *, glob: str = "**/*", max_files: int | None = None) -> list[Recording]:
    """Return the recordings at and below `paths`, each once, sorted by path; InputError when there are none.

    `max_files` takes that many, spread evenly over the list, so that machines and days stay represented.
    """
    if not paths:
        raise InputError("no recordings: name files or directories of WAV, FLAC or Ogg")
    found: dict[Path, Recording] = {}
    for path in paths:
        for recording in _below(path, glob):
            found.setdefault(recording.path.resolve(), recording)
    if not found:
        raise InputError(f"{', '.join(map(str, paths))}: no WAV, FLAC or Ogg file")
    recordings = sorted(found.values(), key=lambda recording: str(recording.path))
    if max_files is None or len(recordings) <= max_files:
        return recordings
    return [recordings[i * len(recordings) // max_files] for i in range(max_files)]


def _below(path: Path, glob: str) -> Iterable[Recording]:
    if path.is_file():
        return [Recording(path, named=True)]
    if not path.is_dir():
        raise InputError(f"{path}: no such file or directory")
    try:
        entries = list(path.glob(glob))
    except (ValueError, NotImplementedError) as exc:
        raise SettingsError(f"data.glob: {glob!r} is no pattern relative to a directory") from exc
    return (Recording(entry, named=False) for entry in entries if _is_recording(entry.relative_to(path), entry))


def _is_recording(relative: Path, entry: Path) -> bool:
    """Tell recordings from what else lies in a tree: hidden files and folders are other programs' business."""
    hidden = any(part.startswith(".") for part in relative.parts)
    return entry.suffix.lower() in SUFFIXES and not hidden and entry.is_file()
