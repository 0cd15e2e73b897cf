"""All sound for the measuring, and yet unseen sound for the calibration: each part judged by what the others teach.

A measured detector costs milliseconds, so nothing need be held out for good: parts of the sound are left out in turn,
judged by a detector measured without them, and the detector that ships is measured on everything (Stone, 1974). It has
heard a little more than those that gave the scores, so that these are, if anything, too high.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeasd.records import FloatArray
from edgeasd_train.corpus.logmel import LogMelWindows
from edgeasd_train.detectors.measured import Batch, MeasuredDetector
from edgeasd_train.prune import JUDGED_TOGETHER
from edgeasd_train.sampling import Kept

_BY_RECORDING_FROM = 10
"""With so many recordings whole ones are left out; with fewer, parts of each."""

Folds = NDArray[np.int64]
Cut = Callable[[LogMelWindows], Folds]
"""Says which fold each window of a set is of."""


@dataclass(frozen=True, slots=True)
class _Batches:
    """The kept windows that lie outside of one fold, by the batch, as often as they are asked for."""

    windows: LogMelWindows
    kept: Kept
    folds: Folds
    without: int

    def __iter__(self) -> Iterator[Batch]:
        for numbers in self.kept.blocks(JUDGED_TOGETHER):
            taken = numbers[self.folds[numbers] != self.without]
            if len(taken):
                yield self.windows.batch(taken)


def by_recording(windows: LogMelWindows, *, n_folds: int) -> Folds:
    """Return folds (n,) that leave out whole recordings; or parts in time of each, of few or of unequal ones."""
    sounds, first_frames = windows.index.locate(np.arange(len(windows), dtype=np.int64))
    present, rank, counts = np.unique(sounds, return_inverse=True, return_counts=True)
    if len(present) >= _BY_RECORDING_FROM and counts.max() * n_folds <= len(windows):
        return np.asarray(rank % n_folds, np.int64)
    ends = np.zeros(len(present), np.int64)
    np.maximum.at(ends, rank, first_frames + windows.index.window_frames)
    part: Folds = first_frames * n_folds // ends[rank]
    return part


def dealt(windows: LogMelWindows, *, n_folds: int) -> Folds:
    """Return folds (n,) that leave out every so-manieth window: each is judged by its neighbours too."""
    return np.arange(len(windows), dtype=np.int64) % n_folds


def unseen_scores(
    build: Callable[[], MeasuredDetector], learned: LogMelWindows, kept: Kept, judged: LogMelWindows, *, cut: Cut
) -> FloatArray:
    """Return a score (n,) for each window of `judged`, in order, of a detector measured without that window's fold.

    Measured on are the `kept` windows of `learned`; both sets are windows of the same sound.
    """
    learned_folds, judged_folds = cut(learned), cut(judged)
    scores = np.empty(len(judged), np.float32)
    for fold in np.unique(judged_folds).tolist():
        detector = build()
        detector.measure(_Batches(learned, kept, learned_folds, fold))
        own = np.flatnonzero(judged_folds == fold)
        for first in range(0, len(own), JUDGED_TOGETHER):
            part = own[first : first + JUDGED_TOGETHER]
            scores[part] = detector.deviation(judged.batch(part))
    return scores
