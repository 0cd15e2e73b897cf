"""What came of fitting or measuring a detector."""

from __future__ import annotations

from dataclasses import dataclass

from edgeasd.records import FloatArray


@dataclass(frozen=True, slots=True)
class FitResult:
    """What came of a fit; the detector itself holds what was learned. A measured detector has no epochs and steps."""

    n_epochs: int
    n_steps: int
    train_loss: float
    """Mean over the last epoch; of a measured detector the mean deviation."""
    held_out_loss: float
    """Of the weights that were kept."""
    n_pruned: int
    """Training windows left out."""
    n_folds: int = 0
    """Parts of the sound that were left out in turn, where nothing was held out for good."""
    unseen_scores: FloatArray | None = None
    """Then: of each window (n,) to calibrate on, its score without its part."""
