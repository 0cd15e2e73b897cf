"""From paths to a corpus: recordings decoded once, and which stretches of them to train on and to hold out."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeasd.capture.convert import Channel
from edgeasd.errors import InputError
from edgeasd_train.corpus import splits
from edgeasd_train.corpus.annotations import read_marks
from edgeasd_train.corpus.discover import discover
from edgeasd_train.corpus.facts import DOMAIN_CODES, facts_of
from edgeasd_train.corpus.load import BadFile, Cache, load_sounds
from edgeasd_train.corpus.sounds import Sound, Sounds
from edgeasd_train.corpus.windows import Stretch, Stretches, WindowIndex, hold_out, joined
from edgeasd_train.ranks import ALONE, Ranks
from edgeasd_train.recipe import DataRecipe

MAX_BAD_SHARE = 0.001

__all__ = [
    "BadFile",
    "Corpus",
    "Sound",
    "Sounds",
    "Stretch",
    "Stretches",
    "WindowIndex",
    "discover",
    "open_corpus",
    "write_bad_files",
]


@dataclass(frozen=True, slots=True, eq=False)
class Corpus:
    """Sound to learn from, and sound kept away from learning."""

    sounds: Sounds
    train: Stretches
    held_out: Stretches
    bad_files: tuple[BadFile, ...]
    rate_hz: int
    channel: Channel
    section: NDArray[np.int64]
    """Of each sound, as its name says; -1 where it does not."""
    domain: NDArray[np.int64]
    """Of each sound: 0 source, 1 target, -1 unknown."""

    @property
    def train_s(self) -> float:
        """Return how much sound there is to train on, in seconds."""
        return int(self.train.n_frames.sum()) / self.rate_hz

    @property
    def held_out_s(self) -> float:
        """Return how much sound is held out, in seconds."""
        return int(self.held_out.n_frames.sum()) / self.rate_hz

    def sha256(self) -> str:
        """Return a digest of the sound itself and of the stretches used, whatever the files are called."""
        digest = hashlib.sha256()
        for kind, stretches in (("train", self.train), ("held out", self.held_out)):
            for stretch in stretches:
                sound = self.sounds.sha256(stretch.sound)
                digest.update(f"{kind} {sound} {stretch.first_frame} {stretch.end_frame}\n".encode())
        return digest.hexdigest()


def open_corpus(
    recipe: DataRecipe,
    *,
    cache_dir: Path,
    grid_frames: int,
    ranks: Ranks = ALONE,
    workers: int | None = None,
    on_found: Callable[[int], None] = lambda _: None,
    on_file: Callable[[Path], None] = lambda _: None,
) -> Corpus:
    """Find the recordings a recipe names, decode what is not in the cache and part the sound.

    `on_found` is told how many recordings this rank is to read, `on_file` is called as each is done. Files that cannot
    be used are left out and listed; above 0.1 percent of them, and more than one, InputError. Stretches begin on a grid
    of `grid_frames`, that of the mel frames. `workers` processes decode, unless there is little to do; None takes as
    many as there are cores, up to eight. All ranks get the same corpus, and none decodes what another does.
    """
    recordings = discover(recipe.paths, glob=recipe.glob, max_files=recipe.max_files, layout=recipe.layout)
    codes = splits.assign(recordings, recipe)
    if (codes == splits.ALONE).any():
        used = np.flatnonzero(codes != splits.ALONE)
        recordings, codes = recordings.take(used, n_capped=recordings.n_capped), codes[used]
    on_found(len(range(ranks.rank, len(recordings), ranks.size)))
    cache = Cache(cache_dir, recipe.sample_rate_hz, recipe.channel)
    sounds, bad_files = load_sounds(recordings, cache, ranks=ranks, workers=workers, on_file=on_file)
    _check_bad(bad_files, n_files=len(recordings))
    train, held_out = _part(sounds, codes[sounds.numbers], recipe, grid_frames)
    section, domain = _facts(sounds)
    return Corpus(sounds, train, held_out, tuple(bad_files), recipe.sample_rate_hz, recipe.channel, section, domain)


def write_bad_files(path: Path, bad_files: Sequence[BadFile]) -> None:
    """Write the list of files that could not be used."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "reason"])
        rows.writerows([bad.path, bad.reason] for bad in bad_files)


def _part(sounds: Sounds, codes: NDArray[np.int8], recipe: DataRecipe, grid_frames: int) -> tuple[Stretches, Stretches]:
    """Return the stretches to train on and those held out: the part of each sound that the recipe uses, marks cut out.

    A recording of which no window is left takes no part. Marks are cut out after the sound was parted, so that adding
    one does not move recordings from one side to the other.
    """
    window_frames = 1 if recipe.window_s == "clip" else recipe.window_frames
    stretches, marked = _used(sounds, recipe, grid_frames), _marked(sounds, recipe)
    left = stretches.without(marked, grid_frames=grid_frames)
    usable = np.isin(stretches.sounds, left.sounds[left.n_frames >= window_frames])
    stretches, codes = stretches.take(usable), codes[usable]
    train, held_out = hold_out(stretches.take(codes == splits.BY_SHARE), share=recipe.held_out, grid_frames=grid_frames)
    train = joined(train, stretches.take(codes == splits.TRAIN))
    held_out = joined(held_out, stretches.take(codes == splits.HELD_OUT))
    return train.without(marked, grid_frames=grid_frames), held_out.without(marked, grid_frames=grid_frames)


def _used(sounds: Sounds, recipe: DataRecipe, grid_frames: int) -> Stretches:
    """Return the part of each sound that the recipe uses; it may be empty."""
    starts_s = np.full(len(sounds), recipe.start_s)
    ends_s = np.full(len(sounds), np.inf if recipe.end_s is None else recipe.end_s)
    if recipe.spans:
        for number in range(len(sounds)):
            span = recipe.span_of(Path(sounds.name(number)))
            starts_s[number], ends_s[number] = span.start_s, np.inf if span.end_s is None else span.end_s
    first_frames = -(-np.rint(starts_s * recipe.sample_rate_hz).astype(np.int64) // grid_frames) * grid_frames
    end_frames = np.minimum(np.rint(ends_s * recipe.sample_rate_hz), sounds.n_frames).astype(np.int64)
    return Stretches(np.arange(len(sounds)), first_frames, np.maximum(first_frames, end_frames))


def _marked(sounds: Sounds, recipe: DataRecipe) -> Stretches:
    """Return what the recipe's table of annotations marks; InputError when it marks none of the recordings."""
    if recipe.annotations is None:
        return Stretches.of(())
    marks = read_marks(recipe.annotations)
    rate_hz = recipe.sample_rate_hz
    spans = [
        Stretch(number, int(event.onset_s * rate_hz), int(np.ceil(event.offset_s * rate_hz)))
        for number in range(len(sounds))
        for event in marks.of(Path(sounds.name(number)))
    ]
    if len(marks) and not spans:
        raise InputError(f"{recipe.annotations}: names none of the {len(sounds)} recordings")
    return Stretches.of(spans)


def _facts(sounds: Sounds) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return section and domain (n,) of each sound, as names say."""
    section, domain = np.full((2, len(sounds)), -1, np.int64)
    for number in range(len(sounds)):
        facts = facts_of(os.path.abspath(sounds.name(number)))  # noqa: PTH100  # a million of them
        section[number], domain[number] = facts.section, DOMAIN_CODES[facts.domain]
    return section, domain


def _check_bad(bad_files: Sequence[BadFile], *, n_files: int) -> None:
    if len(bad_files) <= max(1, int(MAX_BAD_SHARE * n_files)) and len(bad_files) < n_files:
        return
    listed = "; ".join(f"{bad.path}: {bad.reason}" for bad in bad_files[:20])
    more = f"; and {len(bad_files) - 20} more" if len(bad_files) > 20 else ""
    if n_files == 1:
        raise InputError(listed)
    raise InputError(f"{len(bad_files)} of {n_files} recordings cannot be used: {listed}{more}")
