"""What ranks tell each other while they train; each of these is a matter of course for a rank that is alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgeasd_train.ranks import Ranks

Item = TypeVar("Item", bound=np.generic)


def agree(ranks: Ranks, value: int) -> int:
    """Return, to all ranks, the value that the first one passed."""
    if ranks.is_alone:
        return value
    told = torch.tensor([value])
    torch.distributed.broadcast(told, 0)
    return int(told)


def totals(ranks: Ranks, values: Sequence[float]) -> list[float]:
    """Return, to all ranks, the sums of the values over them, in double precision."""
    if ranks.is_alone:
        return list(values)
    sums = torch.tensor(values, dtype=torch.float64)
    torch.distributed.all_reduce(sums)
    return [float(value) for value in sums]


def share(ranks: Ranks, network: nn.Module) -> None:
    """Give every rank the parameters and buffers of the first one."""
    if not ranks.is_alone:
        for value in network.state_dict().values():
            torch.distributed.broadcast(value, 0)


def collect(ranks: Ranks, mine: NDArray[Item], lengths: Sequence[int]) -> list[NDArray[Item]]:
    """Return, to the first rank, the arrays of all, that of rank r `lengths[r]` long; to the others an empty list."""
    if ranks.is_alone:
        return [mine]
    padded = np.zeros(max(lengths), mine.dtype)  # a collective takes equal lengths
    padded[: len(mine)] = mine
    sent = torch.from_numpy(padded)
    received = [torch.empty_like(sent) for _ in lengths] if ranks.is_first else None
    torch.distributed.gather(sent, received, 0)
    return [array.numpy()[:length] for array, length in zip(received or (), lengths, strict=False)]


def tell(ranks: Ranks, array: NDArray[Item]) -> NDArray[Item]:
    """Return, to all ranks, the array (n,) that the first one passed; of the others' only the type counts."""
    if ranks.is_alone:
        return array
    length = agree(ranks, len(array))
    told = torch.from_numpy(np.array(array) if ranks.is_first else np.zeros(length, array.dtype))
    torch.distributed.broadcast(told, 0)
    received: NDArray[Item] = told.numpy()
    return received
