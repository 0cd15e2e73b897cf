"""What every detector is to the workshop: something to fit, and a graph to ship."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from edgeasd.features.mel import MelSpec
from edgeasd.manifest import OutputName

Batch = Mapping[str, torch.Tensor]
"""Graph inputs by name, first dimension the batch, and `index`, the number of each window in the training set."""


class DetectorOptions(BaseModel):
    """Base of every detector's options: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class Shapes:
    """What a detector is fed, per window."""

    n_rows: int
    n_frames: int
    """Mel frames."""
    window_frames: int
    """Audio frames."""
    sample_rate_hz: int


class Detector(Protocol):
    """A system that learns what normal sound is. Life: prepare, loss for as many batches as it takes, settle, serve."""

    @property
    def network(self) -> nn.Module:
        """Return the module that holds all that is learned and measured: what a checkpoint keeps."""
        ...

    @property
    def outputs(self) -> tuple[OutputName, ...]:
        """Return the graph's outputs, in order."""
        ...

    @property
    def limits(self) -> tuple[str, ...]:
        """Return sentences for the model card: what this detector does not hear."""
        ...

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Measure what is not learned, such as a normalisation, on a sample of the training windows."""
        ...

    def loss(self, batch: Batch) -> torch.Tensor:
        """Return what an optimizer step lowers, a scalar."""
        ...

    def settle(self, batches: Iterable[Batch]) -> None:
        """Measure, after the last step, what the score needs, such as the spread of residuals."""
        ...

    def serve(self) -> nn.Module:
        """Return the module to export: graph inputs in, `outputs` out, finite; `score` (B,) higher is stranger."""
        ...


@dataclass(frozen=True, slots=True)
class DetectorKind:
    """How to make a detector from a recipe."""

    options: type[DetectorOptions]
    front_end: Callable[[MelSpec, Any], MelSpec]
    """The mel front end it wants, given that of the recipe and its options."""
    build: Callable[[Shapes, Any], Detector]
