"""mahalanobis as a torch module: for a torch program alone, its training needs no torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from edgeasd.records import FloatArray


class MahalanobisServed(nn.Module):
    """The same as the ONNX graph: log_mel in; score, embedding, residual and reconstruction out."""

    mean: torch.Tensor  # (n_rows,), dB
    whitening: torch.Tensor  # (n_rows, n_rows)

    def __init__(self, mean: FloatArray, whitening: FloatArray, *, eps: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("whitening", torch.tensor(whitening))
        self.eps = eps

    def forward(self, log_mel: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return score (B,), embedding (B, n_rows), residual (B, n_rows), reconstruction (B, n_rows, n_frames)."""
        embedding = (log_mel.mean(dim=2) - self.mean) @ self.whitening
        power = embedding.square() + self.eps
        normal = (log_mel - log_mel) + self.mean.unsqueeze(1)
        return power.mean(dim=1).sqrt(), embedding, power / power.sum(dim=1, keepdim=True), normal
