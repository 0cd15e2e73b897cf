"""Find the recordings below the paths a user names."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Literal, overload

import numpy as np
from numpy.typing import NDArray

from edgeasd.errors import InputError, SettingsError
from edgeasd_train.corpus.facts import facts_of

SUFFIXES = (".wav", ".wave", ".flac", ".ogg", ".oga")
CAP_VARIABLE = "AUDIO_FILE_CAP"
_ANY = ("**", "*")

Layout = Literal["auto", "plain", "dcase"]


@dataclass(frozen=True, slots=True)
class Recording:
    """A file that should hold sound."""

    path: Path
    named: bool
    """The user named this very file, not a directory above it."""


class Recordings(Sequence[Recording]):
    """Recordings sorted by path; their paths lie in one buffer, and a Recording is made when it is asked for."""

    def __init__(self, paths: Sequence[str], named: Sequence[bool], *, n_left_out: int = 0, n_capped: int = 0) -> None:
        """Keep `paths`, each with whether the user named it.

        `n_left_out` counts clips that the layout keeps from training, `n_capped` those beyond the cap on files.
        """
        encoded = [os.fsencode(path) for path in paths]
        self._buffer = b"".join(encoded)
        self._ends = np.cumsum([len(path) for path in encoded], dtype=np.int64)
        self._named = np.array(named, np.bool_)
        self.n_left_out = n_left_out
        self.n_capped = n_capped

    def __len__(self) -> int:
        """Return the number of recordings."""
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> Recording: ...
    @overload
    def __getitem__(self, index: slice) -> Recordings: ...
    def __getitem__(self, index: int | slice) -> Recording | Recordings:
        """Return one recording, or those of a slice."""
        if isinstance(index, slice):
            numbers = range(*index.indices(len(self)))
            return Recordings([self.name(i) for i in numbers], self._named[index].tolist())
        number = range(len(self))[index]
        return Recording(Path(self.name(number)), bool(self._named[number]))

    def name(self, number: int) -> str:
        """Return the path of recording `number`, from 0, as text: quicker than a Path."""
        first = int(self._ends[number - 1]) if number else 0
        return os.fsdecode(self._buffer[first : int(self._ends[number])])

    def names(self) -> Iterator[str]:
        """Yield all paths as text, in order."""
        return map(self.name, range(len(self)))

    def take(self, numbers: NDArray[np.int64], *, n_capped: int) -> Recordings:
        """Return the recordings `numbers` (n,), the others counted as beyond the cap."""
        names = [self.name(number) for number in numbers.tolist()]
        return Recordings(names, self._named[numbers].tolist(), n_left_out=self.n_left_out, n_capped=n_capped)


def discover(
    paths: Sequence[Path], *, glob: str = "**/*", max_files: int | None = None, layout: Layout = "auto"
) -> Recordings:
    """Return the recordings at and below `paths`, each once, sorted by path; InputError when there are none.

    Below a directory count files with a suffix of WAV, FLAC or Ogg, in upper or lower case, whose path relative to it
    matches `glob`; hidden files and folders do not. Linked directories are followed, each directory once.

    `layout` says what DCASE's names do. plain: nothing. auto: each file below a directory goes by its own name: one
    that `facts_of` knows as DCASE's is taken if name or folder says train, and never otherwise: test clips are for
    judging; any other file is taken. dcase: only DCASE's training clips are taken. A file that is named itself always
    is.

    `max_files` takes that many, spread evenly over the list, so that machines and days stay represented; where it is
    None, the environment's AUDIO_FILE_CAP stands in. SettingsError when glob or cap cannot be.
    """
    cap = file_cap() if max_files is None else max_files
    if not paths:
        raise InputError("no recordings: name files or directories of WAV, FLAC or Ogg")
    found = _Found(_patterns(glob), layout)
    for path in paths:
        found.add(path)
    if not found.names:
        listed = ", ".join(map(str, paths))
        if not found.n_left_out:
            raise InputError(f"{listed}: no WAV, FLAC or Ogg file")
        raise InputError(f"{listed}: no training clip among {found.n_left_out} files; data.layout plain takes them all")
    recordings = found.sorted()
    if cap is None or len(recordings) <= cap:
        return recordings
    return recordings.take(np.arange(cap) * len(recordings) // cap, n_capped=len(recordings) - cap)


def file_cap() -> int | None:
    """Return the cap on files that the environment sets, None without one; SettingsError when it is no number."""
    text = os.environ.get(CAP_VARIABLE, "").strip()
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise SettingsError(f"{CAP_VARIABLE}: {text!r} is not a number of files of at least 1")
    return int(text)


class _Found:
    """Gathers recordings; a file that is reached twice counts once, under the path met first."""

    def __init__(self, patterns: tuple[str, ...], layout: Layout) -> None:
        self.names: list[str] = []
        self.n_left_out = 0
        self._named: set[str] = set()
        self._patterns = patterns
        self._layout = layout
        self._seen: dict[str, set[str]] = {}  # names of files by the real path of their folder

    def add(self, path: Path) -> None:
        """Take the file or the tree at `path`."""
        if path.is_file():
            if self._is_new(path.resolve()):
                self.names.append(str(path))
                self._named.add(str(path))
        elif path.is_dir():
            self._add_tree(path)
        else:
            raise InputError(f"{path}: no such file or directory")

    def sorted(self) -> Recordings:
        """Return what was found, sorted by path."""
        self.names.sort()
        return Recordings(self.names, [name in self._named for name in self.names], n_left_out=self.n_left_out)

    def _is_new(self, real: Path) -> bool:
        names = self._seen.setdefault(str(real.parent), set())
        if real.name in names:
            return False
        names.add(real.name)
        return True

    def _add_tree(self, root: Path) -> None:
        links: list[Path] = []  # after all others: a file is known by its own path, not by a link's
        for folder, files in _walk(root):
            above = folder.relative_to(root).parts
            seen = self._seen.setdefault(os.path.realpath(folder), set())
            names = []
            for entry in files:
                if not _holds(entry.is_file) or not _matches((*above, entry.name), self._patterns):
                    continue
                if entry.is_symlink():
                    links.append(folder / entry.name)
                elif entry.name not in seen:
                    seen.add(entry.name)
                    names.append(entry.name)
            self._take(folder, names)
        for link in links:
            if self._is_new(link.resolve()):
                self._take(link.parent, [link.name])

    def _take(self, folder: Path, names: list[str]) -> None:
        """Keep those files of a folder that the layout allows."""
        prefix, absolute = str(folder / "_")[:-1], str(folder.absolute() / "_")[:-1]
        for name in names:
            if self._layout != "plain":
                facts = facts_of(absolute + name)
                if facts.split != "train" and (facts.known or self._layout == "dcase"):
                    self.n_left_out += 1
                    continue
            self.names.append(prefix + name)


def _walk(root: Path) -> Iterator[tuple[Path, list[os.DirEntry[str]]]]:
    """Yield each folder and what in it has a recording's suffix, hidden entries left out.

    Linked folders come after all others, and each real folder comes once: so loops end.
    """
    folders: deque[Path] = deque([root])
    links: deque[Path] = deque()
    visited: set[str] = set()
    while folders or links:
        folder = folders.popleft() if folders else links.popleft()
        real = os.path.realpath(folder)
        if real in visited:
            continue
        visited.add(real)
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:  # not ours to read, such as lost+found
            continue
        shown = [entry for entry in entries if not entry.name.startswith(".")]
        yield folder, [entry for entry in shown if entry.name.lower().endswith(SUFFIXES)]
        for entry in shown:
            if _holds(entry.is_dir):
                (links if entry.is_symlink() else folders).append(folder / entry.name)


def _holds(question: Callable[[], bool]) -> bool:
    """Return the answer about a directory entry; no, for a link that leads nowhere or in a circle."""
    try:
        return question()
    except OSError:
        return False


def _patterns(glob: str) -> tuple[str, ...]:
    """Return a pattern's parts, one a folder; SettingsError when it could reach beyond the directory."""
    parts = PurePosixPath(glob).parts
    if not parts or glob.startswith("/") or ".." in parts or any("**" in part and part != "**" for part in parts):
        raise SettingsError(f"data.glob: {glob!r} is no pattern relative to a directory")
    return parts


def _matches(names: tuple[str, ...], patterns: tuple[str, ...]) -> bool:
    """Return whether a path matches: ** stands for any number of folders, * for any part of one name."""
    if patterns in ((), _ANY):
        return bool(names) == bool(patterns)
    first, rest = patterns[0], patterns[1:]
    if first == "**":
        return not rest or any(_matches(names[i:], rest) for i in range(len(names)))
    return bool(names) and fnmatchcase(names[0], first) and _matches(names[1:], rest)
