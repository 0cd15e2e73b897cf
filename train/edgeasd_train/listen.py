"""Recordings as a node hears them: its own reader, front end and engine, without the clock."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeasd.bundle import Bundle
from edgeasd.capture.convert import Channel
from edgeasd.capture.files import FileSource
from edgeasd.engine import LIVE_OUTPUTS, Engine, Outputs
from edgeasd.errors import InputError
from edgeasd.features.mel import MelFrontEnd, MelSpec
from edgeasd.records import AudioBlock, FloatArray

_BATCH = 64


@dataclass(frozen=True, slots=True)
class Heard:
    """A recording and what the model says of its windows."""

    path: Path
    rate_hz: int
    samples: FloatArray
    """Shape (n,), at the model's rate."""
    first_frames: NDArray[np.int64]
    """Shape (n_windows,): where each window begins."""
    log_mel: FloatArray | None
    """Shape (n_windows, n_rows, n_frames); None for a model of the waveform."""
    outputs: Outputs
    """Of all windows, in order."""


def hear(
    path: Path,
    bundle: Bundle,
    engine: Engine,
    *,
    hop_s: float,
    channel: Channel = "mix",
    wanted: Collection[str] = LIVE_OUTPUTS,
) -> Heard:
    """Judge all windows of a recording, `hop_s` apart; one shorter than a window is repeated until it fills one.

    InputError when it cannot be read or holds no sound.
    """
    manifest = bundle.manifest
    rate_hz, window_frames = manifest.sample_rate_hz, manifest.window_frames
    samples = read_samples(path, rate_hz=rate_hz, channel=channel)
    if len(samples) < window_frames:
        samples = np.resize(samples, window_frames)
    first_frames = np.arange(0, len(samples) - window_frames + 1, round(hop_s * rate_hz), dtype=np.int64)
    spec = manifest.inputs.log_mel
    log_mel = None if spec is None else _log_mel(samples, first_frames, spec, window_frames=window_frames)
    answers = []
    for first in range(0, len(first_frames), _BATCH):
        inputs = {} if log_mel is None else {"log_mel": np.ascontiguousarray(log_mel[first : first + _BATCH])}
        if manifest.inputs.waveform:
            starts = first_frames[first : first + _BATCH].tolist()
            inputs["waveform"] = np.stack([samples[start : start + window_frames] for start in starts])
        answers.append(engine.score(inputs, wanted=wanted))
    return Heard(path, rate_hz, samples, first_frames, log_mel, _joined(answers))


def read_samples(path: Path, *, rate_hz: int, channel: Channel = "mix") -> FloatArray:
    """Return the sound (n,) of a recording at `rate_hz`, as a node reads it; InputError when there is none."""
    source = FileSource(path, name="recording", rate_hz=rate_hz, channel=channel)
    try:
        blocks = [block.samples for block in source.blocks() if isinstance(block, AudioBlock)]
    finally:
        source.close()
    if not sum(map(len, blocks)):
        raise InputError(f"{path}: holds no sound")
    return np.concatenate(blocks)


def _log_mel(samples: FloatArray, first_frames: NDArray[np.int64], spec: MelSpec, *, window_frames: int) -> FloatArray:
    """Return the log mel (n_windows, n_rows, n_frames) of windows; frames shared by windows are computed once."""
    front_end = MelFrontEnd(spec)
    if not np.all(first_frames % spec.hop_frames == 0):
        windows: Iterator[FloatArray] = (samples[i : i + window_frames] for i in first_frames.tolist())
        return np.stack([front_end.window_log_mel(window) for window in windows])
    rows = front_end.window_log_mel(samples)  # (n_rows, all frames)
    frames = np.lib.stride_tricks.sliding_window_view(rows, spec.n_frames(window_frames), axis=1)
    return np.ascontiguousarray(frames[:, first_frames // spec.hop_frames].transpose(1, 0, 2))


def _joined(answers: list[Outputs]) -> Outputs:
    """Concatenate what the engine said of successive batches."""
    joined: dict[str, Any] = {}
    for field in fields(Outputs):
        parts = [getattr(answer, field.name) for answer in answers]
        joined[field.name] = None if parts[0] is None else np.concatenate(parts)
    return Outputs(**joined)
