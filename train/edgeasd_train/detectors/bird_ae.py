"""bird-ae: the anomaly_bird autoencoder on log mel, with a score made for scenes that change.

A convolutional autoencoder whose bottleneck is a softmax: what it can draw is a mixture of a few normal states, and a
strange sound, however loud, cannot pull the drawing after it. (With a linear bottleneck it can, and detection falls.)
The score is by how many standard deviations, band by band, a window is louder than its drawing, where it is loudest.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from edgeasd.features.mel import MelSpec
from edgeasd.manifest import OutputName
from edgeasd_train.detectors.contract import Batch, DetectorKind, DetectorOptions, Shapes

_CHANNELS = (16, 32, 64, 128)
_SPREAD_FLOOR_DB = 0.5
"""A band quieter in its ways than this would turn rounding into alarms."""
_RESIDUAL_FLOOR = 0.1
"""Least spread of residuals, in units of a band's standard deviation."""
_CROPS = {"second_half": 2, "third_quarter": 4}
_EPS = 1e-6


class BirdAeOptions(DetectorOptions):
    """Options of bird-ae."""

    variant: Literal["strided", "nearest"] = "strided"
    """Decoder: transposed convolutions, or nearest-neighbour upsampling and convolutions."""
    crop: Literal["none", "second_half", "third_quarter"] = "none"
    """Mel rows seen: all n_mels; as many, but the upper half of twice the bands; or the third quarter of four times."""
    bottleneck: Annotated[int, Field(ge=2, le=1024)] = 10
    side: Literal["louder", "both"] = "louder"
    """Whether only what is louder than expected counts, or also what is missing."""
    steady_weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    """How much of a deviation counts that lasts for the whole window: more likely the scene than an event in it."""
    loudest_frames: Annotated[int, Field(ge=0)] = 4
    """The score is the mean over so many frames, the strangest; 0 takes all."""


def front_end(spec: MelSpec, options: BirdAeOptions) -> MelSpec:
    """Return the front end whose rows the crop selects."""
    if options.crop == "none":
        return spec
    if spec.rows is not None:
        raise ValueError("crop and features.rows exclude each other")
    times = _CROPS[options.crop]
    first_row = spec.n_mels * (times // 2)
    return replace(spec, n_mels=spec.n_mels * times, rows=(first_row, first_row + spec.n_mels))


class BirdAeNet(nn.Module):
    """The autoencoder, with the normalisation of its input and of its residuals as buffers."""

    mean: torch.Tensor  # (1, n_rows, 1), dB
    spread: torch.Tensor  # (1, n_rows, 1), dB
    residual_spread: torch.Tensor  # (1, n_rows, 1), in units of `spread`

    def __init__(self, shapes: Shapes, options: BirdAeOptions) -> None:
        super().__init__()
        for name, value in (("mean", 0.0), ("spread", 1.0), ("residual_spread", 1.0)):
            self.register_buffer(name, torch.full((1, shapes.n_rows, 1), value))
        sizes = [(shapes.n_rows, shapes.n_frames)]
        for _ in _CHANNELS:
            sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
        self.top_shape = (_CHANNELS[-1], *sizes[-1])
        n_top = _CHANNELS[-1] * sizes[-1][0] * sizes[-1][1]
        self.encoder = nn.Sequential(*_encoder())
        self.to_bottleneck = nn.Linear(n_top, options.bottleneck)
        self.from_bottleneck = nn.Linear(options.bottleneck, n_top)
        self.decoder = nn.Sequential(*_decoder(sizes, options.variant))

    def normalise(self, log_mel: torch.Tensor) -> torch.Tensor:
        """Turn log_mel (B, n_rows, n_frames) into standard deviations from each band's mean."""
        return (log_mel - self.mean) / self.spread

    def forward(self, normal: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the drawing (B, n_rows, n_frames) of a normalised window, and its bottleneck (B, E)."""
        code = self.to_bottleneck(self.encoder(normal.unsqueeze(1)).flatten(1)).softmax(dim=1)
        top = self.from_bottleneck(code).unflatten(1, self.top_shape)
        return self.decoder(top).squeeze(1), code


def _encoder() -> Iterable[nn.Module]:
    for n_in, n_out in pairwise((1, *_CHANNELS)):
        yield from (nn.Conv2d(n_in, n_out, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU())


def _decoder(sizes: Sequence[tuple[int, int]], variant: str) -> Iterable[nn.Module]:
    """Mirror the encoder; each stage lands exactly on the size the encoder had there."""
    channels = (*reversed(_CHANNELS), 1)
    for stage, ((small, large), (n_in, n_out)) in enumerate(
        zip(pairwise(reversed(sizes)), pairwise(channels), strict=True)
    ):
        last = stage == len(_CHANNELS) - 1
        if variant == "nearest":
            yield nn.Upsample(size=large, mode="nearest")
            yield nn.Conv2d(n_in, n_out, 3, padding=1, bias=last)
        else:
            extra = (large[0] - (2 * small[0] - 1), large[1] - (2 * small[1] - 1))
            yield nn.ConvTranspose2d(n_in, n_out, 3, stride=2, padding=1, output_padding=extra, bias=last)
        if not last:
            yield from (nn.BatchNorm2d(n_out), nn.ReLU())


class BirdAeServed(nn.Module):
    """The graph that ships: log_mel in; score, embedding and residual out."""

    def __init__(self, network: BirdAeNet, options: BirdAeOptions, *, n_frames: int) -> None:
        super().__init__()
        self.network = network
        self.louder = options.side == "louder"
        self.steady_weight = options.steady_weight
        self.loudest_frames = min(options.loudest_frames or n_frames, n_frames)

    def forward(self, log_mel: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return score (B,), embedding (B, E) and residual (B, n_rows)."""
        normal = self.network.normalise(log_mel)
        drawing, code = self.network(normal)
        excess = (normal - drawing) / self.network.residual_spread
        if self.steady_weight < 1.0:
            steady = excess.mean(dim=2, keepdim=True)
            steady = steady.clamp(min=0.0) if self.louder else steady
            excess = excess - (1.0 - self.steady_weight) * steady
        if self.louder:
            excess = excess.clamp(min=0.0)
        power = excess.square()  # (B, n_rows, n_frames)
        loudness = power.mean(dim=1)  # (B, n_frames)
        loudest = loudness.topk(self.loudest_frames, dim=1).values
        score = (loudest.mean(dim=1) + _EPS).sqrt()
        counted = (loudness >= loudest[:, -1:]).unsqueeze(1)
        by_row = (power * counted).sum(dim=2) + _EPS
        return score, code, by_row / by_row.sum(dim=1, keepdim=True)


class BirdAe:
    """The detector: reconstruction as loss, excess over the reconstruction as score."""

    outputs: tuple[OutputName, ...] = ("score", "embedding", "residual")

    def __init__(self, shapes: Shapes, options: BirdAeOptions) -> None:
        self.network = BirdAeNet(shapes, options)
        self._options = options
        self._n_frames = shapes.n_frames

    @property
    def limits(self) -> tuple[str, ...]:
        """Return what the options keep this detector from hearing."""
        limits = []
        if self._options.side == "louder":
            limits.append("Only what is louder than expected in some band counts: a sound that goes missing does not.")
        if self._options.steady_weight < 1.0:
            limits.append("Sound that lasts for the whole window counts less than sound that comes and goes.")
        return tuple(limits)

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Measure mean and standard deviation of each mel band."""
        mean, spread = _moments((batch["log_mel"] for batch in batches), about=None)
        self.network.mean.copy_(mean)
        self.network.spread.copy_(spread.clamp(min=_SPREAD_FLOOR_DB))

    def loss(self, batch: Batch) -> torch.Tensor:
        """Return the mean squared error of the drawing, in units of each band's variance."""
        normal = self.network.normalise(batch["log_mel"])
        drawing, _ = self.network(normal)
        return nn.functional.mse_loss(drawing, normal)

    @torch.inference_mode()
    def settle(self, batches: Iterable[Batch]) -> None:
        """Measure how far each band of normal sound strays from its drawing."""

        def residuals() -> Iterable[torch.Tensor]:
            for batch in batches:
                normal = self.network.normalise(batch["log_mel"])
                yield normal - self.network(normal)[0]

        _, spread = _moments(residuals(), about=0.0)
        self.network.residual_spread.copy_(spread.clamp(min=_RESIDUAL_FLOOR))

    def serve(self) -> nn.Module:
        """Return the graph that ships, in evaluation mode."""
        return BirdAeServed(self.network, self._options, n_frames=self._n_frames).eval()


def _moments(arrays: Iterable[torch.Tensor], *, about: float | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and root mean square deviation (1, n_rows, 1) of (B, n_rows, n_frames) arrays, `about` the mean."""
    n, total, squares = 0, torch.zeros(()), torch.zeros(())
    for array in arrays:
        n += array.shape[0] * array.shape[2]
        doubles = array.double()
        total = total.to(array.device) + doubles.sum(dim=(0, 2))
        squares = squares.to(array.device) + doubles.square().sum(dim=(0, 2))
    mean = total / n
    centre = mean if about is None else torch.full_like(mean, about)
    deviation = (squares / n - 2.0 * centre * mean + centre.square()).clamp(min=0.0).sqrt()
    return mean.float().reshape(1, -1, 1), deviation.float().reshape(1, -1, 1)


KIND = DetectorKind(BirdAeOptions, front_end, BirdAe)
