"""From paths to a corpus: recordings decoded once, and which stretches of them to train on and to hold out."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeasd.errors import InputError
from edgeasd_train.corpus.cache import AudioCache, BadFile, Sound
from edgeasd_train.corpus.discover import Recording, discover
from edgeasd_train.corpus.windows import Stretch, WindowIndex, hold_out
from edgeasd_train.recipe import DataRecipe

MAX_BAD_SHARE = 0.001

__all__ = ["BadFile", "Corpus", "Sound", "Stretch", "WindowIndex", "discover", "open_corpus", "write_bad_files"]


@dataclass(frozen=True, slots=True)
class Corpus:
    """Sound to learn from, and sound kept away from learning."""

    sounds: tuple[Sound, ...]
    train: tuple[Stretch, ...]
    held_out: tuple[Stretch, ...]
    bad_files: tuple[BadFile, ...]
    rate_hz: int

    @property
    def train_s(self) -> float:
        """Return how much sound there is to train on, in seconds."""
        return sum(stretch.end_frame - stretch.first_frame for stretch in self.train) / self.rate_hz

    @property
    def held_out_s(self) -> float:
        """Return how much sound is held out, in seconds."""
        return sum(stretch.end_frame - stretch.first_frame for stretch in self.held_out) / self.rate_hz

    def sha256(self) -> str:
        """Return a digest of the sound itself and of the stretches used, whatever the files are called."""
        digest = hashlib.sha256()
        for kind, stretches in (("train", self.train), ("held out", self.held_out)):
            for stretch in stretches:
                sound = self.sounds[stretch.sound].sha256
                digest.update(f"{kind} {sound} {stretch.first_frame} {stretch.end_frame}\n".encode())
        return digest.hexdigest()


def open_corpus(
    recordings: Sequence[Recording],
    recipe: DataRecipe,
    *,
    cache_dir: Path,
    grid_frames: int,
    on_file: Callable[[Recording], None] = lambda _: None,
) -> Corpus:
    """Decode what is not in the cache and part the sound; `on_file` is called as each file is done.

    Files that cannot be used are left out and listed; above 0.1 percent of them, and more than one, InputError.
    Stretches begin on a grid of `grid_frames`, that of the mel frames.
    """
    sounds: list[Sound] = []
    bad_files: list[BadFile] = []
    cache = AudioCache(cache_dir, rate_hz=recipe.sample_rate_hz)
    for recording, loaded in zip(recordings, cache.load(recordings), strict=True):
        on_file(recording)
        if isinstance(loaded, Sound):
            sounds.append(loaded)
        else:
            bad_files.append(loaded)
    _check_bad(bad_files, n_files=len(recordings))
    stretches = [_stretch(index, sound, recipe, grid_frames) for index, sound in enumerate(sounds)]
    usable = [stretch for stretch in stretches if stretch.end_frame - stretch.first_frame >= recipe.window_frames]
    train, held_out = hold_out(usable, share=recipe.held_out, grid_frames=grid_frames)
    return Corpus(tuple(sounds), tuple(train), tuple(held_out), tuple(bad_files), recipe.sample_rate_hz)


def write_bad_files(path: Path, bad_files: Sequence[BadFile]) -> None:
    """Write the list of files that could not be used."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "reason"])
        rows.writerows([bad.path, bad.reason] for bad in bad_files)


def _stretch(index: int, sound: Sound, recipe: DataRecipe, grid_frames: int) -> Stretch:
    """Return the part of a sound that the recipe uses; it may be empty."""
    span = recipe.span_of(sound.path)
    first_frame = -(-round(span.start_s * recipe.sample_rate_hz) // grid_frames) * grid_frames
    end_frame = sound.n_frames if span.end_s is None else round(span.end_s * recipe.sample_rate_hz)
    return Stretch(index, first_frame, max(first_frame, min(sound.n_frames, end_frame)))


def _check_bad(bad_files: Sequence[BadFile], *, n_files: int) -> None:
    if len(bad_files) <= max(1, int(MAX_BAD_SHARE * n_files)) and len(bad_files) < n_files:
        return
    listed = "; ".join(f"{bad.path}: {bad.reason}" for bad in bad_files[:20])
    more = f"; and {len(bad_files) - 20} more" if len(bad_files) > 20 else ""
    if n_files == 1:
        raise InputError(listed)
    raise InputError(f"{len(bad_files)} of {n_files} recordings cannot be used: {listed}{more}")
