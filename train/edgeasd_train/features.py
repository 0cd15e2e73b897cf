"""Log mel for torch: the torchaudio twin of the node's front end, and the windows of a corpus as tensors."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
import torchaudio

from edgeasd.features.mel import MelSpec
from edgeasd_train.corpus.logmel import LogMelWindows


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


class TorchWindows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Windows as tensors, by the batch: a map-style dataset of window numbers."""

    def __init__(self, windows: LogMelWindows) -> None:
        self._windows = windows

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self._windows)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        """Return one window as a batch of one."""
        return self.__getitems__([number])

    def __getitems__(self, numbers: Sequence[int]) -> dict[str, torch.Tensor]:
        """Return windows as one batch, as `LogMelWindows.batch` does."""
        batch = self._windows.batch(np.asarray(numbers, np.int64))
        return {name: torch.from_numpy(values) for name, values in batch.items()}
