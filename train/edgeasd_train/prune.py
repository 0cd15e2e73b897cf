"""Leave out, while training, what does not fit with the rest: which windows to drop, and the table of them.

The scheme of anomaly_bird with its defects mended: windows are known by their number in the training set, each is
judged once however many ranks there are, and what was dropped is a matter of the checkpoint. Numpy alone: what a
detector makes of a window, learned or measured, comes in as numbers.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgeasd.errors import CannotWriteError, SelfTestError
from edgeasd_train.recipe import PruneRecipe
from edgeasd_train.sampling import Kept, Numbers

if TYPE_CHECKING:
    from edgeasd_train.corpus.logmel import LogMelWindows
    from edgeasd_train.detectors import measured

JUDGED_TOGETHER = 256
"""Windows per batch when judging: the same batches under any number of ranks, so that every bit of a deviation is."""
TABLE = "pruned.csv"
_COLUMNS = ("index", "file", "offset_s", "deviation", "z", "epoch")
_ROWS = 4096

Doubles = NDArray[np.float64]


def _empty() -> Numbers:
    return np.empty(0, np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Pruned:
    """What was dropped, as columns (n,), in the order in which it went."""

    index: Numbers = field(default_factory=_empty)
    """Number of the window in the training set."""
    deviation: Doubles = field(default_factory=lambda: np.empty(0))
    z: Doubles = field(default_factory=lambda: np.empty(0))
    """Standard deviations above the mean of all that was judged; of a recording, where whole ones are dropped."""
    epoch: Numbers = field(default_factory=_empty)
    """Before which epoch it went, counted from 0; of a detector without epochs, in which round."""

    def __len__(self) -> int:
        """Return how many windows were dropped."""
        return len(self.index)

    def and_then(self, more: Pruned) -> Pruned:
        """Return both, one after the other."""
        columns = ("index", "deviation", "z", "epoch")
        return Pruned(*(np.concatenate([getattr(self, name), getattr(more, name)]) for name in columns))


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """What a detector makes of windows, as columns (n,)."""

    index: Numbers
    deviation: Doubles
    recording: Numbers


def choose(judged: Judged, recipe: PruneRecipe, *, n_windows: int, n_dropped: int, epoch: int) -> Pruned:
    """Return what is to go of the windows judged, the worst first.

    The answer does not depend on the order of the rows, nor on rows that come twice. Of the `n_windows` there were at
    first, with `n_dropped` gone before, never more than `max_share` go. SelfTestError when a deviation is not finite.
    """
    index, rows = np.unique(judged.index, return_index=True)
    deviation, recording = judged.deviation[rows].astype(np.float64), judged.recording[rows]
    if not np.isfinite(deviation).all():
        raise SelfTestError("training ran away: a window's deviation is not finite")
    unit = np.arange(len(index)) if recipe.unit == "window" else np.unique(recording, return_inverse=True)[1]
    n_in_unit = np.bincount(unit)
    value = np.bincount(unit, weights=deviation) / n_in_unit
    spread = value.std()
    z = (value - value.mean()) / spread if spread > 0 else np.zeros(len(value))
    worst_first = np.lexsort((np.arange(len(z)), -z))
    n_units = np.count_nonzero(z > recipe.z_max) if recipe.by == "z" else int(recipe.fraction * len(z))
    room = int(recipe.max_share * n_windows) - n_dropped
    fits = np.cumsum(n_in_unit[worst_first[:n_units]]) <= room
    going = worst_first[: np.count_nonzero(fits)]
    place = np.full(len(z), len(z))
    place[going] = np.arange(len(going))
    gone = np.flatnonzero(place[unit] < len(going))
    gone = gone[np.argsort(place[unit[gone]], kind="stable")]
    return Pruned(index[gone], deviation[gone], z[unit[gone]], np.full(len(gone), epoch, np.int64))


def is_due(recipe: PruneRecipe, *, epoch: int, pruned_before: list[int]) -> bool:
    """Return whether to prune before `epoch`, given the epochs before which it was done."""
    if recipe.every_epochs is None or epoch == 0 or epoch % recipe.every_epochs or epoch in pruned_before:
        return False
    return recipe.rounds is None or len(pruned_before) < recipe.rounds


def recordings_of(windows: LogMelWindows, numbers: Numbers) -> Numbers:
    """Return the number (n,) of the recording that each window lies in."""
    return windows.index.locate(numbers)[0]


def write_table(path: Path, pruned: Pruned, windows: LogMelWindows) -> None:
    """Write which windows were dropped, where they lie and why: the whole table, in one step."""
    sounds, first_frames = windows.index.locate(pruned.index)
    offsets_s = first_frames / windows.corpus.rate_hz
    partial = path.with_suffix(".tmp")
    try:
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(_COLUMNS)
            for first in range(0, len(pruned), _ROWS):
                rows = slice(first, first + _ROWS)
                writer.writerows(
                    (index, windows.corpus.sounds.name(sound), f"{offset_s:.3f}", f"{deviation:.6g}", f"{z:.3f}", epoch)
                    for index, sound, offset_s, deviation, z, epoch in zip(
                        pruned.index[rows].tolist(), sounds[rows].tolist(), offsets_s[rows].tolist(),
                        pruned.deviation[rows].tolist(), pruned.z[rows].tolist(), pruned.epoch[rows].tolist(),
                        strict=True,
                    )
                )  # fmt: skip
        os.replace(partial, path)
    except OSError as exc:
        raise CannotWriteError(f"{path}: cannot be written: {exc.strerror or exc}") from exc


@dataclass(frozen=True, slots=True)
class _Batches:
    """Windows by the batch, as often as they are asked for."""

    windows: LogMelWindows
    kept: Kept

    def __iter__(self) -> Iterator[measured.Batch]:
        for numbers in self.kept.blocks(JUDGED_TOGETHER):
            yield self.windows.batch(numbers)


def prune_measured(
    detector: measured.MeasuredDetector,
    windows: LogMelWindows,
    recipe: PruneRecipe,
    *,
    judge: Callable[[Kept], Doubles],
    run_dir: Path,
) -> Pruned:
    """Measure a detector; where the recipe prunes, judge, drop, and measure again, `rounds` times (or once).

    `judge` gives the deviation of every window, given what is kept. What was dropped is written to pruned.csv in
    `run_dir`, where there is anything to prune for.
    """
    kept, pruned = Kept(len(windows)), Pruned()
    detector.measure(_Batches(windows, kept))
    n_rounds = recipe.rounds or (0 if recipe.every_epochs is None else 1)
    for number in range(n_rounds):
        index = kept.numbers(np.arange(len(kept), dtype=np.int64))
        judged = Judged(index, judge(kept)[index], recordings_of(windows, index))
        worst = choose(judged, recipe, n_windows=len(windows), n_dropped=len(pruned), epoch=number)
        if not len(worst):
            break
        pruned = pruned.and_then(worst)
        kept = kept.without(worst.index)
        detector.measure(_Batches(windows, kept))
    if n_rounds:
        write_table(run_dir / TABLE, pruned, windows)
    return pruned
