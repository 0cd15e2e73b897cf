"""bird-ae: the anomaly_bird autoencoder, as published or on log mel with a score made for scenes that change.

A convolutional autoencoder whose bottleneck is a softmax: what it can draw is a mixture of a few normal states, and a
strange sound, however loud, cannot pull the drawing after it. (With a linear bottleneck it can, and detection falls.)
In the style for scenes the score is by how many standard deviations, band by band, a window is louder than its drawing,
where it is loudest; as published (DETECTORS.md 1) it is the mean squared error of linear mel.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import nn

from edgeasd.features.mel import MelSpec
from edgeasd.manifest import OutputName
from edgeasd_train.detectors.contract import Batch, LearnedKind
from edgeasd_train.detectors.layers import moments, pool_places, row_shares, unpool
from edgeasd_train.detectors.options import DetectorOptions, Shapes

_CHANNELS = (16, 32, 64, 128)
_SPREAD_FLOOR_DB = 0.5
"""A band quieter in its ways than this would turn rounding into alarms."""
_RESIDUAL_FLOOR = 0.1
"""Least spread of residuals, in units of a band's standard deviation."""
_CROPS = {"second_half": 2, "third_quarter": 4}
_EPS = 1e-6
_POWER_FLOOR = 1e-12
"""Added to each row's squared error of linear mel before shares are taken."""
_SCENE_ONLY = frozenset({"side", "steady_weight", "loudest_frames"})

Size = tuple[int, int]


class BirdAeOptions(DetectorOptions):
    """Options of bird-ae."""

    style: Literal["scene", "published"] = "scene"
    """scene: bands normalised, batch normalisation, the score by excess. published: linear mel as it is, no
    normalisation anywhere, mean squared error; recipe anomaly-bird."""
    variant: Literal["strided", "nearest", "unpool"] = "strided"
    """Decoder: transposed convolutions; nearest-neighbour upsampling and convolutions; or max pooling undone with the
    places of the maxima, which bypass the bottleneck: it draws anomalies well, and so detects badly."""
    crop: Literal["none", "second_half", "third_quarter"] = "none"
    """Mel rows seen: all n_mels; as many, but the upper half of twice the bands; or the third quarter of four times."""
    bottleneck: Annotated[int, Field(ge=2, le=1024)] = 10
    side: Literal["louder", "both"] = "louder"
    """Whether only what is louder than expected counts, or also what is missing."""
    steady_weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    """How much of a deviation counts that lasts for the whole window: more likely the scene than an event in it."""
    loudest_frames: Annotated[int, Field(ge=0)] = 4
    """The score is the mean over so many frames, the strangest; 0 takes all."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.style == "published" and (without_effect := sorted(_SCENE_ONLY & self.model_fields_set)):
            raise ValueError(f"{without_effect[0]} has no effect in style published")
        return self


def front_end(spec: MelSpec, options: BirdAeOptions) -> MelSpec:
    """Return the front end whose rows the crop selects."""
    if options.style == "published" and spec.scale != "power":
        raise ValueError("style published takes features.scale power; log mel is for style scene")
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
        self.unpools = options.variant == "unpool"
        sizes = list(_sizes((shapes.n_rows, shapes.n_frames), pools=self.unpools))
        self.unpooled_sizes = [(height + 2, width + 2) for height, width in reversed(sizes[:-1])]
        self.top_shape = (_CHANNELS[-1], *sizes[-1])
        n_top = _CHANNELS[-1] * sizes[-1][0] * sizes[-1][1]
        if n_top == 0:
            raise ValueError(f"variant unpool takes more than {shapes.n_rows} mel rows by {shapes.n_frames} frames")
        published = options.style == "published"
        self.encoder = nn.Sequential(*_encoder(options.variant, published=published))
        self.to_bottleneck = nn.Linear(n_top, options.bottleneck)
        self.from_bottleneck = nn.Linear(options.bottleneck, n_top)
        self.decoder = nn.Sequential(*_decoder(sizes, options.variant, published=published))

    def normalise(self, log_mel: torch.Tensor) -> torch.Tensor:
        """Turn log_mel (B, n_rows, n_frames) into standard deviations from each band's mean."""
        return (log_mel - self.mean) / self.spread

    def denormalise(self, normal: torch.Tensor) -> torch.Tensor:
        """Turn what `normalise` gave, or a drawing of it, back into the unit of log_mel."""
        return normal * self.spread + self.mean

    def forward(self, normal: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the drawing (B, n_rows, n_frames) of a normalised window, and its bottleneck (B, E)."""
        top, places = self._encode(normal.unsqueeze(1))
        code = self.to_bottleneck(top.flatten(1)).softmax(dim=1)
        top = self.from_bottleneck(code).unflatten(1, self.top_shape)
        return self._decode(top, places).squeeze(1), code

    def _encode(self, values: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the top of the encoder, and where the maxima of each pooling were."""
        if not self.unpools:
            return self.encoder(values), []
        places = []
        for stage in self.encoder:
            values, where = pool_places(stage(values))
            places.append(where)
        return values, places

    def _decode(self, values: torch.Tensor, places: Sequence[torch.Tensor]) -> torch.Tensor:
        if not self.unpools:
            return self.decoder(values)  # type: ignore[no-any-return]
        for stage, where, size in zip(self.decoder, reversed(places), self.unpooled_sizes, strict=True):
            values = stage(unpool(values, where, size=size))
        return values


def _sizes(size: Size, *, pools: bool) -> Iterator[Size]:
    """Yield the size of the input and of what each encoder stage makes of it."""
    height, width = size
    yield size
    for _ in _CHANNELS:
        height, width = (((height + 2) // 2, (width + 2) // 2)) if pools else ((height + 1) // 2, (width + 1) // 2)
        yield height, width


def _norm(n_channels: int, *, published: bool) -> Iterable[nn.Module]:
    return () if published else (nn.BatchNorm2d(n_channels),)


def _encoder(variant: str, *, published: bool) -> Iterable[nn.Module]:
    """Yield layers, or whole stages where each is followed by a pooling."""
    step, padding = (1, 2) if variant == "unpool" else (2, 1)
    for n_in, n_out in pairwise((1, *_CHANNELS)):
        convolution = nn.Conv2d(n_in, n_out, 3, stride=step, padding=padding, bias=published)
        stage = (convolution, *_norm(n_out, published=published), nn.ReLU())
        yield from (nn.Sequential(*stage),) if variant == "unpool" else stage


def _decoder(sizes: Sequence[Size], variant: str, *, published: bool) -> Iterable[nn.Module]:
    """Mirror the encoder; each stage lands exactly on the size the encoder had there.

    As published the last stage too ends in a ReLU, but for unpool, where one comes before each convolution instead.
    """
    channels = (*reversed(_CHANNELS), 1)
    for stage, ((small, large), (n_in, n_out)) in enumerate(
        zip(pairwise(reversed(sizes)), pairwise(channels), strict=True)
    ):
        last = stage == len(_CHANNELS) - 1
        bias = published or last
        norm = () if last else _norm(n_out, published=published)
        if variant == "unpool":
            yield nn.Sequential(nn.ReLU(), nn.ConvTranspose2d(n_in, n_out, 3, padding=2, bias=bias), *norm)
            continue
        if variant == "nearest":
            yield nn.Upsample(size=large, mode="nearest")
            yield nn.Conv2d(n_in, n_out, 3, padding=1, bias=bias)
        else:
            extra = (large[0] - (2 * small[0] - 1), large[1] - (2 * small[1] - 1))
            yield nn.ConvTranspose2d(n_in, n_out, 3, stride=2, padding=1, output_padding=extra, bias=bias)
        yield from (*norm, *(() if last and not published else (nn.ReLU(),)))


class SceneServed(nn.Module):
    """The graph that ships in style scene: log_mel in; score, embedding, residual and reconstruction out."""

    def __init__(self, network: BirdAeNet, options: BirdAeOptions, *, n_frames: int) -> None:
        super().__init__()
        self.network = network
        self.louder = options.side == "louder"
        self.steady_weight = options.steady_weight
        self.loudest_frames = min(options.loudest_frames or n_frames, n_frames)

    def forward(self, log_mel: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return score (B,), embedding (B, E), residual (B, n_rows) and reconstruction (B, n_rows, n_frames)."""
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
        return score, code, row_shares(power * counted, floor=_EPS), self.network.denormalise(drawing)


class PublishedServed(nn.Module):
    """The graph that ships in style published: linear mel in; the same outputs, the score a mean squared error."""

    def __init__(self, network: BirdAeNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, log_mel: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return score (B,), embedding (B, E), residual (B, n_rows) and reconstruction (B, n_rows, n_frames)."""
        drawing, code = self.network(log_mel)
        power = (log_mel - drawing).square()
        return power.mean(dim=(1, 2)), code, row_shares(power, floor=_POWER_FLOOR), drawing


class BirdAe:
    """The detector: reconstruction as loss, excess over the reconstruction or its error as score."""

    outputs: tuple[OutputName, ...] = ("score", "embedding", "residual", "reconstruction")

    def __init__(self, shapes: Shapes, options: BirdAeOptions) -> None:
        self.network = BirdAeNet(shapes, options)
        self._options = options
        self._n_frames = shapes.n_frames
        self._published = options.style == "published"

    @property
    def limits(self) -> tuple[str, ...]:
        """Return what the options keep this detector from hearing."""
        if self._published:
            return (
                "The error is one of linear power: the score mostly follows loudness, and quiet bands hardly count.",
            )
        limits = []
        if self._options.side == "louder":
            limits.append("Only what is louder than expected in some band counts: a sound that goes missing does not.")
        if self._options.steady_weight < 1.0:
            limits.append("Sound that lasts for the whole window counts less than sound that comes and goes.")
        return tuple(limits)

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Measure mean and standard deviation of each mel band; as published, nothing."""
        if self._published:
            return
        mean, spread = moments((batch["log_mel"] for batch in batches), about=None)
        self.network.mean.copy_(mean)
        self.network.spread.copy_(spread.clamp(min=_SPREAD_FLOOR_DB))

    def loss(self, batch: Batch) -> torch.Tensor:
        """Return the mean squared error of the drawing, in units of each band's variance."""
        return self._residuals(batch).square().mean()

    @torch.inference_mode()
    def deviation(self, batch: Batch) -> torch.Tensor:
        """Return (B,) the mean squared error of each window, in the unit of the loss."""
        return self._residuals(batch).square().mean(dim=(1, 2))

    @torch.inference_mode()
    def settle(self, batches: Iterable[Batch]) -> None:
        """Measure how far each band of normal sound strays from its drawing; as published, nothing."""
        if self._published:
            return
        _, spread = moments((self._residuals(batch) for batch in batches), about=0.0)
        self.network.residual_spread.copy_(spread.clamp(min=_RESIDUAL_FLOOR))

    def serve(self) -> nn.Module:
        """Return the graph that ships, in evaluation mode."""
        if self._published:
            return PublishedServed(self.network).eval()
        return SceneServed(self.network, self._options, n_frames=self._n_frames).eval()

    def _residuals(self, batch: Batch) -> torch.Tensor:
        """Return what is left of windows (B, n_rows, n_frames) without their drawings, normalised."""
        normal = self.network.normalise(batch["log_mel"])
        drawing: torch.Tensor = self.network(normal)[0]
        return normal - drawing


KIND = LearnedKind(BirdAeOptions, front_end, BirdAe)
