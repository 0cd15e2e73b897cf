"""What a measured detector is to the workshop: statistics of normal sound in closed form, numpy from end to end.

No gradients, no epochs, no torch: such a detector is measured in milliseconds and writes its own ONNX graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeasd.features.mel import MelSpec
from edgeasd.manifest import OutputName
from edgeasd.records import FloatArray
from edgeasd_train.detectors.options import DetectorOptions, Shapes

if TYPE_CHECKING:
    from torch import nn

Batch = Mapping[str, NDArray[np.generic]]
"""As `contract.Batch`, in numpy: log_mel float32 (B, n_rows, n_frames); index, section, domain int64 (B,)."""


class MeasuredDetector(Protocol):
    """A system whose knowledge is measured in one pass. Life: measure (again after a prune), model_onnx."""

    @property
    def outputs(self) -> tuple[OutputName, ...]:
        """Return the graph's outputs, in order."""
        ...

    @property
    def limits(self) -> tuple[str, ...]:
        """Return sentences for the model card: what this detector does not hear."""
        ...

    def measure(self, batches: Iterable[Batch]) -> None:
        """Learn normal sound from all windows; InputError when there are too few of them."""
        ...

    def deviation(self, batch: Batch) -> FloatArray:
        """Return (B,) how badly each window fits what was measured: what pruning sorts by."""
        ...

    def model_onnx(self) -> bytes:
        """Return the graph that ships: graph inputs in, `outputs` out, finite, batch dimension free."""
        ...

    def serve(self) -> nn.Module:
        """Return the same as a torch module; imports torch, and is asked only where a torch program is to ship."""
        ...


@dataclass(frozen=True, slots=True)
class MeasuredKind:
    """How to make a measured detector from a recipe."""

    options: type[DetectorOptions]
    front_end: Callable[[MelSpec, Any], MelSpec]
    """The mel front end it wants, given that of the recipe and its options."""
    build: Callable[[Shapes, Any], MeasuredDetector]
