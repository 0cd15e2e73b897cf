"""What several detectors are built from: shares of rows, spreads of bands, and pooling that can be undone."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


def row_shares(power: torch.Tensor, *, floor: float) -> torch.Tensor:
    """Return (B, n_rows), summing to 1: what share each row has in power (B, n_rows, n_frames).

    No row counts as less than `floor`, so that a window without any deviation blames all rows alike.
    """
    by_row = power.sum(dim=2).clamp(min=floor)  # no sum: the exporter takes adding so little for adding nothing
    return by_row / by_row.sum(dim=1, keepdim=True)


def moments(arrays: Iterable[torch.Tensor], *, about: float | None) -> tuple[torch.Tensor, torch.Tensor]:
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


def pool_places(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return 2 x 2 max pooling of values (B, C, H, W), and places (4, B, C, H // 2, W // 2): 1 where each maximum was.

    Of equal values the first in reading order is the maximum, as in torch's own pooling. Indices would export as
    ScatterND, which is slow and which no bundle may hold; a one-hot mask undoes the pooling as exactly.
    """
    pooled = nn.functional.max_pool2d(values, 2)
    height, width = 2 * pooled.shape[2], 2 * pooled.shape[3]
    corners = [values[:, :, row:height:2, column:width:2] for row in (0, 1) for column in (0, 1)]
    places = [corners[0] >= pooled]
    taken = places[0]
    for corner in corners[1:]:
        places.append((corner >= pooled) & ~taken)
        taken = taken | places[-1]
    return pooled, torch.stack(places).to(values.dtype)


def unpool(values: torch.Tensor, places: torch.Tensor, *, size: tuple[int, int]) -> torch.Tensor:
    """Put values (B, C, h, w) back to where the maxima were, zeros elsewhere: (B, C, *size); see `pool_places`.

    The same as torch's max_unpool2d with the indices of a 2 x 2 pooling (DETECTORS.md 1.1, variant unpool).
    """
    placed = values.unsqueeze(0) * places  # (4, B, C, h, w)
    upper = torch.stack((placed[0], placed[1]), dim=4).flatten(3)  # (B, C, h, 2 w)
    lower = torch.stack((placed[2], placed[3]), dim=4).flatten(3)
    whole = torch.stack((upper, lower), dim=3).flatten(2, 3)  # (B, C, 2 h, 2 w)
    return nn.functional.pad(whole, (0, size[1] - 2 * values.shape[3], 0, size[0] - 2 * values.shape[2]))
