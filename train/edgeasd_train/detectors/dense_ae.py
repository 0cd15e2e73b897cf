"""dense-ae: the dense autoencoder of the DCASE baselines, scored by mean squared error or selective Mahalanobis.

As DETECTORS.md 2.2 specifies it: five mel frames side by side, 640 numbers, are squeezed through eight units and drawn
again. Each window holds as many such stacks as it has runs of five frames; they are cut inside the graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import nn

from edgeasd.features.mel import MelSpec
from edgeasd.manifest import OutputName
from edgeasd_train.detectors.contract import Batch, LearnedKind
from edgeasd_train.detectors.layers import row_shares
from edgeasd_train.detectors.options import DetectorOptions, Shapes

_STACK = 5
_HIDDEN = (128, 128, 128, 128)
_BOTTLENECK = 8
_DOMAINS = 2
_TARGET = 1
_POWER_FLOOR = 1e-6
_VARIANCE_FLOOR = 1e-6
"""Least mean variance of a residual, dB squared: of sound that is the same throughout, all residuals are rounding."""


class DenseAeOptions(DetectorOptions):
    """Options of dense-ae."""

    score: Literal["mse", "mahalanobis"] = "mse"
    """Mean squared error; or the Mahalanobis distance of the mean residual, in the nearer of the domains."""


def front_end(spec: MelSpec, options: DenseAeOptions) -> MelSpec:  # noqa: ARG001  # the kind's signature
    """Return the recipe's front end, which must be log mel."""
    if spec.scale != "db":
        raise ValueError("dense-ae takes features.scale db: it draws decibels")
    return spec


class DenseAeNet(nn.Module):
    """The autoencoder, with the inverse covariance of its residuals by domain as a buffer."""

    precision: torch.Tensor  # (2, n_rows, n_rows), 1 / dB^2: of source and target

    def __init__(self, n_rows: int) -> None:
        super().__init__()
        self.register_buffer("precision", torch.eye(n_rows).repeat(_DOMAINS, 1, 1))
        self.encoder = nn.Sequential(*_blocks((_STACK * n_rows, *_HIDDEN, _BOTTLENECK)))
        self.decoder = nn.Sequential(
            *_blocks((_BOTTLENECK, *_HIDDEN)),
            nn.Linear(_HIDDEN[-1], _STACK * n_rows),
        )

    def forward(self, stacks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the drawings (B, V, 5, n_rows) of stacks of that shape, and their bottlenecks (B, V, 8)."""
        code = self.encoder(stacks.flatten(2).flatten(0, 1))  # (B V, 8)
        return self.decoder(code).reshape(stacks.shape), code.reshape(*stacks.shape[:2], _BOTTLENECK)


def cut_stacks(log_mel: torch.Tensor) -> torch.Tensor:
    """Return all stacks (B, n_frames - 4, 5, n_rows) of log_mel (B, n_rows, n_frames), one frame apart."""
    frames = log_mel.transpose(1, 2)
    n_stacks = log_mel.shape[2] - _STACK + 1
    return torch.stack([frames[:, first : first + n_stacks] for first in range(_STACK)], dim=2)


def _blocks(widths: Sequence[int]) -> Iterable[nn.Module]:
    for n_in, n_out in pairwise(widths):
        yield from (nn.Linear(n_in, n_out), nn.BatchNorm1d(n_out, eps=1e-3, momentum=0.01), nn.ReLU())


def overlap_mean(drawings: torch.Tensor) -> torch.Tensor:
    """Return (B, n_rows, n_frames), each frame the mean of what the stacks (B, V, 5, n_rows) over it draw."""
    n_stacks = drawings.shape[1]
    total = sum(
        nn.functional.pad(drawings[:, :, place], (0, 0, place, _STACK - 1 - place)) for place in range(_STACK)
    )  # (B, n_frames, n_rows)
    assert isinstance(total, torch.Tensor)
    last = n_stacks + _STACK - 2
    n_over = [min(frame, last - frame, _STACK - 1, n_stacks - 1) + 1 for frame in range(last + 1)]
    return (total / torch.tensor(n_over, dtype=total.dtype, device=total.device).reshape(1, -1, 1)).transpose(1, 2)


class DenseAeServed(nn.Module):
    """The graph that ships: log_mel in; score, embedding, residual and reconstruction out."""

    def __init__(self, network: DenseAeNet, options: DenseAeOptions) -> None:
        super().__init__()
        self.network = network
        self.mahalanobis = options.score == "mahalanobis"

    def forward(self, log_mel: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return score (B,), embedding (B, 8), residual (B, n_rows) and reconstruction (B, n_rows, n_frames) in dB."""
        stacks = cut_stacks(log_mel)
        drawings, code = self.network(stacks)
        residuals = stacks - drawings  # (B, V, 5, n_rows)
        if self.mahalanobis:
            score, power = self._distance(residuals.mean(dim=(1, 2)))
        else:
            power = residuals.square().mean(dim=(1, 2))  # (B, n_rows)
            score = power.mean(dim=1)
        shares = row_shares(power.unsqueeze(2), floor=_POWER_FLOOR)
        return score, code.mean(dim=1), shares, overlap_mean(drawings)

    def _distance(self, mean: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (B,) the distance of mean residuals (B, n_rows) in the nearer domain, and each row's part (B, n_rows).

        The baseline takes the mean over all pairs of frames i, j of delta_i' P delta_j, which is the distance of the
        mean residual. A row's part may be negative where it makes up for another; it counts as none then.
        """
        parts = mean.unsqueeze(0) * torch.matmul(mean, self.network.precision)  # (2, B, n_rows)
        distances = parts.sum(dim=2)
        nearer = (distances[1] < distances[0]).unsqueeze(1)
        part = torch.where(nearer, parts[1], parts[0])
        return distances.amin(dim=0).clamp(min=0.0), part.clamp(min=0.0)


class _Scatter:
    """Sums over the residual frames of one domain."""

    def __init__(self, n_rows: int) -> None:
        self.n = 0
        self._total = torch.zeros(n_rows, dtype=torch.float64)
        self._products = torch.zeros(n_rows, n_rows, dtype=torch.float64)

    def add(self, residuals: torch.Tensor) -> None:
        """Take residuals (n, n_rows)."""
        doubles = residuals.double()
        self.n += len(doubles)
        self._total += doubles.sum(dim=0)
        self._products += doubles.T @ doubles

    def precision(self) -> torch.Tensor:
        """Return the inverse (n_rows, n_rows) of the covariance, drawn towards independent bands of equal variance.

        The weight is that of n_rows observations: (n S + n_rows v I) / (n + n_rows), v the mean variance, what an
        inverse Wishart prior of that strength gives. It fades where there is plenty of sound, and where there is
        little, or a band that never varies, it keeps the matrix invertible.
        """
        n_rows = len(self._total)
        mean = self._total / self.n
        covariance = (self._products - self.n * torch.outer(mean, mean)) / max(1, self.n - 1)
        variance = covariance.diagonal().mean().clamp(min=_VARIANCE_FLOOR)
        prior = variance * torch.eye(n_rows, dtype=torch.float64)
        inverse: torch.Tensor = torch.linalg.inv((self.n * covariance + n_rows * prior) / (self.n + n_rows))
        return ((inverse + inverse.T) / 2.0).float()


class DenseAe:
    """The detector: mean squared error as loss; that or the selective Mahalanobis distance as score."""

    outputs: tuple[OutputName, ...] = ("score", "embedding", "residual", "reconstruction")

    def __init__(self, shapes: Shapes, options: DenseAeOptions) -> None:
        if shapes.n_frames < _STACK:
            raise ValueError(f"dense-ae takes windows of {_STACK} mel frames or more, not {shapes.n_frames}")
        self.network = DenseAeNet(shapes.n_rows)
        self._options = options

    @property
    def limits(self) -> tuple[str, ...]:
        """Return what the score does not hear."""
        if self._options.score == "mahalanobis":
            return ("The score is that of the mean over the window: what comes and goes within it weighs little.",)
        return ("The score is a mean over the window and all bands: a sound that is short or narrow weighs little.",)

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Measure nothing: levels are taken in dB as they are."""

    def loss(self, batch: Batch) -> torch.Tensor:
        """Return the mean squared error of the drawings of all stacks, dB squared.

        Stacks of one window resemble each other, and steps that see few recordings learn worse: windows of a single
        stack (data.train_window_s) are best to learn from.
        """
        stacks = cut_stacks(batch["log_mel"])
        drawings: torch.Tensor = self.network(stacks)[0]
        return nn.functional.mse_loss(drawings, stacks)

    @torch.inference_mode()
    def deviation(self, batch: Batch) -> torch.Tensor:
        """Return (B,) the mean squared error of each window."""
        return self._residuals(batch).square().mean(dim=(1, 2, 3))

    @torch.inference_mode()
    def settle(self, batches: Iterable[Batch]) -> None:
        """Measure the covariance of residual frames, by domain: an unknown one is source.

        Where there is no sound of the target domain, the source's stands for it.
        """
        if self._options.score != "mahalanobis":
            return
        n_rows = self.network.precision.shape[1]
        scatters = [_Scatter(n_rows) for _ in range(_DOMAINS)]
        for batch in batches:
            residuals, is_target = self._residuals(batch), batch["domain"] == _TARGET
            for scatter, chosen in zip(scatters, (~is_target, is_target), strict=True):
                scatter.add(residuals[chosen].reshape(-1, n_rows))
        known = [scatter.precision() for scatter in scatters if scatter.n]
        self.network.precision.copy_(torch.stack((known[0], known[-1])))

    def serve(self) -> nn.Module:
        """Return the graph that ships, in evaluation mode."""
        return DenseAeServed(self.network, self._options).eval()

    def _residuals(self, batch: Batch) -> torch.Tensor:
        """Return what is left of all stacks (B, V, 5, n_rows) of each window without their drawings, in dB."""
        stacks = cut_stacks(batch["log_mel"])
        drawings: torch.Tensor = self.network(stacks)[0]
        return stacks - drawings


KIND = LearnedKind(DenseAeOptions, front_end, DenseAe, learns_from_pieces=True)
