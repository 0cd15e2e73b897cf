"""Lists of recordings to train on, to hold out and to leave alone, as text files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeasd.errors import InputError, SettingsError
from edgeasd_train.corpus.discover import Recordings
from edgeasd_train.recipe import DataRecipe

BY_SHARE, TRAIN, HELD_OUT, ALONE = 0, 1, 2, 3
"""What `assign` says of a recording: data.held_out decides, train on it, hold it out, leave it alone."""

_LISTS = {"train_list": TRAIN, "held_out_list": HELD_OUT, "test_list": ALONE}


@dataclass(frozen=True, slots=True)
class _Entry:
    """A line of a list that names a recording."""

    source: Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.source}: line {self.line}: {self.text}"


def assign(recordings: Recordings, recipe: DataRecipe) -> NDArray[np.int8]:
    """Return what to do with each recording (n,): BY_SHARE, TRAIN, HELD_OUT or ALONE.

    A list is a text file with one recording a line; lines that begin with # do not count. A relative path counts from
    the folder of the list or, where that is none of the recordings, from one of data.paths. With a train_list only what
    it names is used; without, all that no other list names. With a held_out_list, data.held_out has no effect.

    InputError names the line whose recording is missing; SettingsError the one that is in two lists.
    """
    lists = {name: path for name in _LISTS if (path := getattr(recipe, name)) is not None}
    unnamed = ALONE if "train_list" in lists else TRAIN if "held_out_list" in lists else BY_SHARE
    codes = np.full(len(recordings), unnamed, np.int8)
    if not lists:
        return codes
    finder = _Finder(recordings, recipe.paths)
    lists_of = np.zeros(len(recordings), np.int8)  # 0: none yet
    for name, path in lists.items():
        code = _LISTS[name]
        for entry in _entries(path):
            number = finder.number_of(entry, may_be_left_out=code == ALONE)
            if number is None:
                continue
            if lists_of[number] not in (0, code):
                other = next(other for other, one in _LISTS.items() if one == lists_of[number])
                raise SettingsError(f"data.{name}: {entry} is in data.{other} as well")
            lists_of[number] = code
            codes[number] = BY_SHARE if code == TRAIN and "held_out_list" not in lists else code
    return codes


class _Finder:
    """Finds recordings by path, in sorted 64-bit hashes: no text is kept for a million of them."""

    def __init__(self, recordings: Recordings, roots: list[Path]) -> None:
        self._recordings = recordings
        self._roots = roots
        hashes = np.fromiter((hash(_key(name)) for name in recordings.names()), np.int64, len(recordings))
        self._order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._order]

    def number_of(self, entry: _Entry, *, may_be_left_out: bool) -> int | None:
        """Return which recording a line names; None for one that the cap on files, or the layout, keeps out."""
        places = [folder / entry.text for folder in (entry.source.parent, *self._roots)]
        for place in places:
            key = _key(str(place))
            first = int(np.searchsorted(self._hashes, hash(key)))
            for slot in range(first, len(self._hashes)):
                if self._hashes[slot] != hash(key):
                    break
                number = int(self._order[slot])
                if _key(self._recordings.name(number)) == key:
                    return number
        if not any(place.is_file() for place in places):
            raise InputError(f"{entry}: no such recording")
        if may_be_left_out or self._recordings.n_capped:
            return None
        why = "is not below data.paths, or not matched by data.glob"
        if self._recordings.n_left_out:
            why += ", or left out as DCASE's test clip (data.layout plain takes those too)"
        raise InputError(f"{entry}: {why}")


def _key(name: str) -> str:
    """Return the path with links among its folders resolved, and the file's own name."""
    folder, _, last = name.rpartition(os.sep)
    return _real(folder) + os.sep + last


@lru_cache(maxsize=4096)
def _real(folder: str) -> str:
    return os.path.realpath(folder)


def _entries(path: Path) -> Iterator[_Entry]:
    try:
        text = path.read_text("utf-8-sig")
    except OSError as exc:
        raise InputError(f"{path}: list cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise InputError(f"{path}: list cannot be read: {exc}") from exc
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        if stripped and not stripped.startswith("#"):
            yield _Entry(path, number, stripped)
