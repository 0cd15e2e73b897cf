"""cnn-ae: the 3CNN autoencoder, a strictly convolutional one over square pieces of log mel.

As DETECTORS.md 2.1 specifies it. Nothing is measured before or after the fit: levels from -90 to 24 dB are the input's
range, and the score is the plain mean squared error in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from edgeasd.features.mel import MelSpec
from edgeasd.manifest import OutputName
from edgeasd_train.detectors.contract import Batch, LearnedKind
from edgeasd_train.detectors.layers import row_shares
from edgeasd_train.detectors.options import DetectorOptions, Shapes

_LOWEST_DB = -90.0
_RANGE_DB = 114.0
"""From there to 24 dB; what lies outside is clipped."""
_SIDE_STEP = 16
_LEAST_SIDE = 64
_POWER_FLOOR = 1e-9
"""Added to each row's squared error, in units of the range squared, before shares are taken."""


class CnnAeOptions(DetectorOptions):
    """Options of cnn-ae."""

    bottleneck: Annotated[int, Field(ge=1, le=1024)] = 40
    """Channels of the innermost map: one position of it sees 64 x 64 of the input."""


def front_end(spec: MelSpec, options: CnnAeOptions) -> MelSpec:  # noqa: ARG001  # the kind's signature
    """Return the recipe's front end, which must be log mel."""
    if spec.scale != "db":
        raise ValueError("cnn-ae takes features.scale db: its input range is in decibels")
    return spec


class CnnAeNet(nn.Module):
    """The autoencoder, on levels scaled to 0 to 1."""

    def __init__(self, bottleneck: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(*_encoder(bottleneck))
        self.decoder = nn.Sequential(*_decoder(bottleneck))

    def scale(self, log_mel: torch.Tensor) -> torch.Tensor:
        """Turn log_mel (B, N, N) in dB into 0 to 1."""
        return ((log_mel - _LOWEST_DB) / _RANGE_DB).clamp(min=0.0, max=1.0)

    def unscale(self, scaled: torch.Tensor) -> torch.Tensor:
        """Turn levels from 0 to 1 back into dB."""
        return scaled * _RANGE_DB + _LOWEST_DB

    def forward(self, scaled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the drawing (B, N, N) of scaled levels, and the mean (B, E) over the innermost map."""
        code = self.encoder(scaled.unsqueeze(1))  # (B, E, (N - 48) / 16, same)
        return self.decoder(code).squeeze(1), code.mean(dim=(2, 3))


def _encoder(bottleneck: int) -> Iterable[nn.Module]:
    yield from (nn.ZeroPad2d((1, 2, 1, 2)), nn.Conv2d(1, 32, 5, stride=2), nn.ReLU())
    yield from (nn.ZeroPad2d((1, 2, 1, 2)), nn.Conv2d(32, 64, 5, stride=2), nn.ReLU(), nn.Dropout(0.2))
    yield from (nn.Conv2d(64, 128, 3, stride=2), nn.ReLU(), nn.Dropout(0.3))
    yield from (nn.Conv2d(128, 256, 3, stride=2), nn.ReLU(), nn.Dropout(0.3))
    yield nn.Conv2d(256, bottleneck, 3)


def _decoder(bottleneck: int) -> Iterable[nn.Module]:
    """Mirror the encoder; negative padding crops what a stage draws too much."""
    yield from (nn.ConvTranspose2d(bottleneck, 256, 3), nn.ReLU(), nn.Dropout(0.3))
    yield from (nn.ConvTranspose2d(256, 128, 3, stride=2), nn.ReLU(), nn.Dropout(0.3))
    yield from (nn.ConvTranspose2d(128, 64, 3, stride=2), nn.ReLU(), nn.Dropout(0.2))
    yield from (nn.ConvTranspose2d(64, 32, 5, stride=2), nn.ReLU(), _Crop(1, 1))
    yield from (nn.ConvTranspose2d(32, 1, 5, stride=2), _Crop(0, 1), nn.Sigmoid())


class _Crop(nn.Module):
    """Drop so many first and last rows and columns."""

    def __init__(self, n_first: int, n_last: int) -> None:
        super().__init__()
        self._kept = slice(n_first, -n_last)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values[:, :, self._kept, self._kept]


class CnnAeServed(nn.Module):
    """The graph that ships: log_mel in; score, embedding, residual and reconstruction out."""

    def __init__(self, network: CnnAeNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, log_mel: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return score (B,), embedding (B, E), residual (B, N) and reconstruction (B, N, N) in dB."""
        scaled = self.network.scale(log_mel)
        drawing, code = self.network(scaled)
        power = (scaled - drawing).square()
        return power.mean(dim=(1, 2)), code, row_shares(power, floor=_POWER_FLOOR), self.network.unscale(drawing)


class CnnAe:
    """The detector: mean squared error as loss and as score."""

    outputs: tuple[OutputName, ...] = ("score", "embedding", "residual", "reconstruction")

    def __init__(self, shapes: Shapes, options: CnnAeOptions) -> None:
        if shapes.n_rows != shapes.n_frames or shapes.n_rows < _LEAST_SIDE or shapes.n_rows % _SIDE_STEP:
            raise ValueError(
                f"cnn-ae takes as many mel frames as rows, a multiple of {_SIDE_STEP} from {_LEAST_SIDE} on; "
                f"here are {shapes.n_rows} rows and {shapes.n_frames} frames: change features.n_mels or data.window_s"
            )
        self.network = CnnAeNet(options.bottleneck)
        self._window_s = shapes.window_frames / shapes.sample_rate_hz

    @property
    def limits(self) -> tuple[str, ...]:
        """Return what the system does not hear."""
        return (
            f"The score is a mean over {self._window_s:.3g} s and all bands: short or narrow sounds weigh little.",
            f"Levels below {_LOWEST_DB:g} dB of a mel band all count as silence.",
        )

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Measure nothing: the input's range is fixed."""

    def loss(self, batch: Batch) -> torch.Tensor:
        """Return the mean squared error of the drawing, levels scaled to 0 to 1."""
        return self._errors(batch).mean()

    @torch.inference_mode()
    def deviation(self, batch: Batch) -> torch.Tensor:
        """Return (B,) the mean squared error of each window."""
        return self._errors(batch)

    def settle(self, batches: Iterable[Batch]) -> None:
        """Measure nothing: the error is the score."""

    def serve(self) -> nn.Module:
        """Return the graph that ships, in evaluation mode."""
        return CnnAeServed(self.network).eval()

    def _errors(self, batch: Batch) -> torch.Tensor:
        scaled = self.network.scale(batch["log_mel"])
        drawing: torch.Tensor = self.network(scaled)[0]
        return (scaled - drawing).square().mean(dim=(1, 2))


KIND = LearnedKind(CnnAeOptions, front_end, CnnAe)
