"""What a learned detector is to the workshop: something to fit by gradients, and a graph to ship."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from edgeasd.features.mel import MelSpec
from edgeasd.manifest import OutputName
from edgeasd_train.detectors.options import DetectorOptions, Shapes

Batch = Mapping[str, torch.Tensor]
"""Graph inputs by name, first dimension the batch; and, int64 (B,): `index`, the number of each window in its set;
`section`, -1 where unknown; `domain`, 0 source, 1 target, -1 unknown."""


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

    def deviation(self, batch: Batch) -> torch.Tensor:
        """Return (B,) how badly each window fits what was learned so far: what pruning sorts by. Evaluation mode."""
        ...

    def settle(self, batches: Iterable[Batch]) -> None:
        """Measure, after the last step, what the score needs, such as the spread of residuals."""
        ...

    def serve(self) -> nn.Module:
        """Return the module to export: graph inputs in, `outputs` out, finite; `score` (B,) higher is stranger."""
        ...


@dataclass(frozen=True, slots=True)
class LearnedKind:
    """How to make a learned detector from a recipe."""

    options: type[DetectorOptions]
    front_end: Callable[[MelSpec, Any], MelSpec]
    """The mel front end it wants, given that of the recipe and its options."""
    build: Callable[[Shapes, Any], Detector]
    learns_from_pieces: bool = False
    """It may learn from windows shorter than those it judges: `data.train_window_s`."""
