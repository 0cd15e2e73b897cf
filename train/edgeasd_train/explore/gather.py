"""Hearing recordings for the page: all scores, and of a bounded number of windows everything there is to show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeasd.features.mel import MelFrontEnd, MelSpec
from edgeasd.manifest import Manifest
from edgeasd.records import FloatArray
from edgeasd_train.corpus.annotations import Annotation
from edgeasd_train.corpus.facts import Facts
from edgeasd_train.listen import Heard

N_STRANGEST = 200
"""So many of the strangest windows are shown whatever is thinned out."""
MAX_PICTURE_VALUES = 64_000_000
"""Pixels of all spectrograms and reconstructions together; beyond, only some windows keep theirs."""
_SILENCE_DBFS = -120.0
_CLIPPED = 0.999


@dataclass(frozen=True, slots=True)
class HeardRecording:
    """One recording: how it sounds as a whole, and the score of every window."""

    path: Path
    label: str
    n_frames: int
    rms_dbfs: float
    peak_dbfs: float
    clipped_pct: float
    first_frames: NDArray[np.int64]
    """Shape (n_windows,): of all windows."""
    scores: FloatArray
    """Shape (n_windows,)."""
    events: tuple[Annotation, ...]
    facts: Facts


@dataclass(frozen=True, slots=True)
class Picture:
    """What a window looks like, dB, half precision."""

    log_mel: NDArray[np.float16]
    """Shape (n_frames, n_rows): time first, so that what overlapping windows share packs well."""
    expected: NDArray[np.float16] | None
    """The same of the model's reconstruction, where it gives one."""


@dataclass(frozen=True, slots=True)
class ShownWindows:
    """The n windows on the page, in order of recording and time."""

    recording: NDArray[np.int64]
    """Shape (n,): which recording."""
    first_frame: NDArray[np.int64]
    score: FloatArray
    place: FloatArray
    """Shape (n, E): the embedding, or the mean log mel where the model gives none."""
    residual: FloatArray | None
    """Shape (n, n_rows)."""
    pictures: tuple[Picture | None, ...]


@dataclass(frozen=True, slots=True)
class _Kept:
    """What is held of one window until it is known whether it is shown."""

    recording: int
    first_frame: int
    score: float
    place: FloatArray
    residual: FloatArray | None
    picture: Picture | None
    by_turn: bool
    """Its turn in the even sample had come; otherwise it must be among the strangest."""


def picture_spec(manifest: Manifest) -> MelSpec:
    """Return the mel front end of the pictures: the model's own, else one like it for a model of the waveform."""
    if manifest.inputs.log_mel is not None:
        return manifest.inputs.log_mel
    rate_hz = manifest.sample_rate_hz
    n_fft = min(1 << max(6, round(np.log2(rate_hz * 0.064))), manifest.window_frames // 2 * 2)
    return MelSpec(sample_rate_hz=rate_hz, n_fft=n_fft, hop_frames=max(1, min(n_fft, rate_hz // 40)))


@dataclass(slots=True)
class Gatherer:
    """Takes recordings one after another and keeps no more than the page will show.

    `n_expected` windows are spread evenly over `max_windows` places; the strangest are kept beside them. Where all
    pictures would be too large, every k-th of the even sample has one, and each of the strangest.
    """

    spec: MelSpec
    window_frames: int
    n_expected: int
    max_windows: int
    recordings: list[HeardRecording] = field(default_factory=list)
    n_windows: int = 0
    _kept: list[_Kept] = field(default_factory=list)
    _strangest: FloatArray = field(default_factory=lambda: np.empty(0, np.float32))

    def add(self, heard: Heard, *, label: str, events: Sequence[Annotation], facts: Facts) -> None:
        """Take one recording in."""
        scores = heard.outputs.score
        self._strangest = np.sort(np.concatenate((self._strangest, scores)))[-N_STRANGEST:]
        numbers = self.n_windows + np.arange(len(scores))
        turns = self._turns(numbers + 1)
        by_turn = turns > self._turns(numbers)
        n_even = min(self.max_windows, max(1, self.n_expected))
        every = -(-n_even // self._n_pictures(heard))  # of the even sample, one in so many has a picture
        for i in np.flatnonzero(by_turn | (scores >= self._strangest[0])).tolist():
            stands_out = bool(scores[i] >= self._strangest[0])
            with_picture = stands_out or int(turns[i]) % every == 0
            self._kept.append(self._keep(heard, i, by_turn=bool(by_turn[i]), with_picture=with_picture))
        self.recordings.append(_recording(heard, label=label, events=events, facts=facts))
        self.n_windows += len(scores)

    def shown(self) -> ShownWindows:
        """Return the windows to show: the strangest of all, and the even sample."""
        kept = self._kept
        order = sorted(range(len(kept)), key=lambda i: -kept[i].score)
        n_strangest = min(N_STRANGEST, self.max_windows)
        strangest = order[:n_strangest]
        even = [i for i in order[n_strangest:] if kept[i].by_turn]
        room = self.max_windows - n_strangest
        if len(even) > room:
            even = [sorted(even)[i * len(even) // room] for i in range(room)]
        rows = [kept[i] for i in sorted([*strangest, *even])]
        residuals = [row.residual for row in rows if row.residual is not None]
        return ShownWindows(
            recording=np.array([row.recording for row in rows], np.int64),
            first_frame=np.array([row.first_frame for row in rows], np.int64),
            score=np.array([row.score for row in rows], np.float32),
            place=np.stack([row.place for row in rows]),
            residual=np.stack(residuals) if residuals else None,
            pictures=tuple(row.picture for row in rows),
        )

    def _turns(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many windows of the even sample lie before each number."""
        places = min(self.max_windows, max(1, self.n_expected))
        return numbers * places // max(1, self.n_expected)

    def _n_pictures(self, heard: Heard) -> int:
        n_values = self.spec.n_rows * self.spec.n_frames(self.window_frames)
        if heard.outputs.reconstruction is not None:
            n_values *= 2
        return max(1, MAX_PICTURE_VALUES // n_values - N_STRANGEST)

    def _keep(self, heard: Heard, i: int, *, by_turn: bool, with_picture: bool) -> _Kept:
        outputs = heard.outputs
        log_mel = self._log_mel(heard, i)
        picture = None
        if with_picture:
            expected = None if outputs.reconstruction is None else self._pixels(outputs.reconstruction[i])
            picture = Picture(self._pixels(log_mel), expected)
        return _Kept(
            recording=len(self.recordings),
            first_frame=int(heard.first_frames[i]),
            score=float(outputs.score[i]),
            place=log_mel.mean(axis=1) if outputs.embedding is None else outputs.embedding[i].copy(),
            residual=None if outputs.residual is None else outputs.residual[i].copy(),
            picture=picture,
            by_turn=by_turn,
        )

    def _log_mel(self, heard: Heard, i: int) -> FloatArray:
        if heard.log_mel is not None:
            window: FloatArray = heard.log_mel[i]
            return window
        first = int(heard.first_frames[i])
        return MelFrontEnd(self.spec).window_log_mel(heard.samples[first : first + self.window_frames])

    def _pixels(self, log_mel: FloatArray) -> NDArray[np.float16]:
        """Return (n_rows, n_frames) as time-first dB."""
        db = log_mel if self.spec.scale == "db" else 10.0 * np.log10(np.maximum(log_mel, self.spec.floor))
        return np.ascontiguousarray(db.T, np.float16)


def _recording(heard: Heard, *, label: str, events: Sequence[Annotation], facts: Facts) -> HeardRecording:
    samples = heard.samples
    magnitude = np.abs(samples)
    rms, peak = float(np.sqrt(np.mean(np.square(samples, dtype=np.float64)))), float(magnitude.max())
    return HeardRecording(
        path=heard.path,
        label=label,
        n_frames=len(samples),
        rms_dbfs=_dbfs(rms),
        peak_dbfs=_dbfs(peak),
        clipped_pct=100.0 * float(np.mean(magnitude >= _CLIPPED)),
        first_frames=heard.first_frames,
        scores=heard.outputs.score,
        events=tuple(events),
        facts=facts,
    )


def _dbfs(value: float) -> float:
    return max(_SILENCE_DBFS, 20.0 * float(np.log10(max(value, 1e-12))))
