"""Held-out sound as the node hears it: its own front end, the exported model, the node's engine."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgeasd.engine import Engine
from edgeasd.features.mel import MelFrontEnd, MelSpec
from edgeasd.records import FloatArray
from edgeasd_train.corpus import Corpus, WindowIndex
from edgeasd_train.corpus.cache import FULL_SCALE

_BATCH = 64


def node_inputs(
    corpus: Corpus, index: WindowIndex, numbers: NDArray[np.int64], *, spec: MelSpec
) -> dict[str, FloatArray]:
    """Return the graph inputs of windows `numbers` (n,), computed as a node computes them."""
    front_end = MelFrontEnd(spec)
    sounds, firsts = index.locate(numbers)
    windows = (
        corpus.sounds[sound].samples()[frame : frame + index.window_frames].astype(np.float32) / FULL_SCALE
        for sound, frame in zip(sounds.tolist(), firsts.tolist(), strict=True)
    )
    return {"log_mel": np.stack([front_end.window_log_mel(window) for window in windows])}


def score_windows(engine: Engine, corpus: Corpus, index: WindowIndex, *, spec: MelSpec) -> FloatArray:
    """Return the scores (n,) of all windows of an index, in order."""
    numbers = np.arange(len(index), dtype=np.int64)
    batches = (numbers[first : first + _BATCH] for first in range(0, len(index), _BATCH))
    return np.concatenate([engine.score(node_inputs(corpus, index, batch, spec=spec)).score for batch in batches])
