"""How far a fit has come: all that a checkpoint holds beside weights and optimizer, as plain values and tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

import torch

from edgeasd_train.prune import Pruned


@dataclass(slots=True)
class Course:
    """The state of a fit between two optimizer steps. What follows from it is computed, not kept beside it."""

    epoch: int = 0
    """The epoch under way, counted from 0; after the last, their number."""
    step: int = 0
    """Steps of it that are done."""
    n_steps: int = 0
    """Steps done in all epochs."""
    loss_sum: float = 0.0
    """Of the steps of this epoch that are done."""
    train_loss: float = float("nan")
    """Mean over the last epoch that ended."""
    held_out: list[float] = field(default_factory=list)
    """Held-out loss after each epoch."""
    pruned: Pruned = field(default_factory=Pruned)
    prunes: list[int] = field(default_factory=list)
    """Epochs before which it was pruned."""
    is_finished: bool = False

    def best(self, n: int) -> list[int]:
        """Return the `n` epochs of lowest held-out loss, the best first; of equals the earlier."""
        return sorted(range(len(self.held_out)), key=lambda epoch: (self.held_out[epoch], epoch))[:n]

    def has_stalled(self, patience_epochs: int | None) -> bool:
        """Return whether the held-out loss has not improved for so many epochs."""
        return patience_epochs is not None and len(self.held_out) - 1 - self.best(1)[0] >= patience_epochs

    def state(self) -> dict[str, Any]:
        """Return it as a checkpoint takes it."""
        plain = ("epoch", "step", "n_steps", "loss_sum", "train_loss", "held_out", "prunes", "is_finished")
        columns = ("index", "deviation", "z", "epoch")
        pruned = {name: torch.from_numpy(getattr(self.pruned, name)) for name in columns}
        return {**{name: getattr(self, name) for name in plain}, "pruned": pruned}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """Return what `state` was made from."""
        pruned = Pruned(**{name: column.numpy() for name, column in state["pruned"].items()})
        return cls(**{**state, "pruned": pruned})
