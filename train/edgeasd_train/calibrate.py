"""Held-out sound as the node hears it: the exported model, in the node's engine."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgeasd.engine import Engine
from edgeasd.records import FloatArray
from edgeasd_train.corpus.decode import FULL_SCALE
from edgeasd_train.corpus.logmel import LogMelWindows

_BATCH = 64


def node_inputs(windows: LogMelWindows, numbers: NDArray[np.int64], *, waveform: bool = False) -> dict[str, FloatArray]:
    """Return the graph inputs of windows `numbers` (n,), to the bit as a node computes them.

    That is log_mel (n, n_rows, n_frames) or, on request, waveform (n, window_frames).
    """
    if not waveform:
        return {"log_mel": windows.batch(numbers)["log_mel"]}
    sounds, firsts = windows.index.locate(numbers)
    samples = np.empty((len(numbers), windows.index.window_frames), np.float32)
    for out, sound, first in zip(samples, sounds.tolist(), firsts.tolist(), strict=True):
        out[:] = windows.corpus.sounds.samples(sound)[first : first + len(out)]
    samples /= np.float32(FULL_SCALE)
    return {"waveform": samples}


def score_windows(engine: Engine, windows: LogMelWindows, *, waveform: bool = False) -> FloatArray:
    """Return the scores (n,) of all windows of a set, in order, by a model of log mel or one of the waveform."""
    numbers = np.arange(len(windows), dtype=np.int64)
    batches = (numbers[first : first + _BATCH] for first in range(0, len(windows), _BATCH))
    return np.concatenate([engine.score(node_inputs(windows, some, waveform=waveform)).score for some in batches])
