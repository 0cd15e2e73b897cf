"""The torchaudio twin of the node's mel front end, and log mel computed once per recording."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
import torchaudio
from numpy.typing import NDArray

from edgeasd.features.mel import MelSpec
from edgeasd.records import FloatArray
from edgeasd_train.corpus import Sound, WindowIndex
from edgeasd_train.corpus.cache import FULL_SCALE, store

_CHUNK_MEL_FRAMES = 4096
_MAX_OPEN_FILES = 256


class MelTwin(torch.nn.Module):
    """Log mel as a MelSpec says, on any device; agrees with the node's front end within 1e-3 dB.

    Computed in double precision: quiet bands beside loud ones lose a thousandth of a dB to float32, and the node's own
    rounding already takes most of what the agreement allows.
    """

    def __init__(self, spec: MelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.spectrogram = torchaudio.transforms.Spectrogram(
            n_fft=spec.n_fft, hop_length=spec.hop_frames, power=2.0, center=False, window_fn=_hann
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # narrow bands between two FFT bins are the recipe's choice
            self.mel = torchaudio.transforms.MelScale(
                n_mels=spec.n_mels,
                sample_rate=spec.sample_rate_hz,
                f_min=spec.f_min_hz,
                f_max=spec.top_hz,
                n_stft=spec.n_bins,
                norm=None if spec.norm == "none" else spec.norm,
                mel_scale=spec.mel_scale,
            )
        self.double()

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        """Turn waveform (.., n) into float32 (.., n_rows, n_frames): dB, or power when the spec says so."""
        mel: torch.Tensor = self.mel(self.spectrogram(waveform.double()))
        if self.spec.rows is not None:
            mel = mel[..., self.spec.rows[0] : self.spec.rows[1], :]
        if self.spec.scale == "power":
            return mel.float()
        floored = mel.clamp(min=self.spec.floor) if self.spec.floor_mode == "clamp" else mel + self.spec.floor
        return (10.0 * torch.log10(floored)).float()


def _hann(n_fft: int) -> torch.Tensor:
    """Return a periodic Hann window, exact to the last bit of float32: torch's own, made in float32, is not."""
    return torch.hann_window(n_fft, dtype=torch.float64).float()


class LogMelCache:
    """Log mel of whole recordings on disk, beside the decoded sound: windows overlap, frames are computed once."""

    def __init__(self, directory: Path, spec: MelSpec, *, device: torch.device | None = None) -> None:
        self._directory = directory
        self._spec = spec
        self._device = device or torch.device("cpu")
        self._twin = MelTwin(spec).to(self._device)
        self._spec_key = hashlib.sha256(repr(spec).encode()).hexdigest()[:12]

    def frames(self, sound: Sound) -> FloatArray:
        """Return the log mel (n, n_rows) of a recording, mapped, computing it if it is not there yet."""
        path = self._directory / sound.key[:2] / f"{sound.key}-{self._spec_key}.f32"
        n_mel_frames = self._spec.n_frames(sound.n_frames)
        if not path.exists() or path.stat().st_size != 4 * n_mel_frames * self._spec.n_rows:
            store(path, lambda file: self._compute(sound, n_mel_frames, file))
        if n_mel_frames == 0:
            return np.empty((0, self._spec.n_rows), np.float32)
        return np.memmap(path, np.float32, mode="r", shape=(n_mel_frames, self._spec.n_rows))

    @torch.inference_mode()
    def _compute(self, sound: Sound, n_mel_frames: int, file: BinaryIO) -> None:
        samples, hop_frames = sound.samples(), self._spec.hop_frames
        for first in range(0, n_mel_frames, _CHUNK_MEL_FRAMES):
            last = min(first + _CHUNK_MEL_FRAMES, n_mel_frames) - 1
            chunk = samples[first * hop_frames : last * hop_frames + self._spec.n_fft].astype(np.float32) / FULL_SCALE
            log_mel = self._twin(torch.from_numpy(chunk).to(self._device))  # (n_rows, frames)
            file.write(np.ascontiguousarray(log_mel.T.cpu().numpy()).data)


class LogMelWindows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """The log mel of numbered windows, by batch: a map-style dataset of `WindowIndex` numbers."""

    def __init__(self, sounds: Sequence[Sound], index: WindowIndex, cache: LogMelCache, *, spec: MelSpec) -> None:
        self._sounds = sounds
        self._index = index
        self._spec = spec
        self._n_frames = spec.n_frames(index.window_frames)
        self._frames = lru_cache(maxsize=_MAX_OPEN_FILES)(lambda sound: cache.frames(sounds[sound]))

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self._index)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        """Return one window as a batch of one."""
        return self.__getitems__([number])

    def __getitems__(self, numbers: Sequence[int]) -> dict[str, torch.Tensor]:
        """Return windows as one batch: log_mel (B, n_rows, n_frames), and index (B,), their numbers."""
        asked: NDArray[np.int64] = np.asarray(numbers, np.int64)
        log_mel = np.empty((len(asked), self._n_frames, self._spec.n_rows), np.float32)
        sounds, firsts = self._index.locate(asked)
        rows = firsts // self._spec.hop_frames
        for out, sound, row in zip(log_mel, sounds.tolist(), rows.tolist(), strict=True):
            out[:] = self._frames(sound)[row : row + self._n_frames]
        return {"log_mel": torch.from_numpy(log_mel).transpose(1, 2).contiguous(), "index": torch.from_numpy(asked)}
