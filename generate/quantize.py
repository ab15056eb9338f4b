"""The codebook: each vector becomes the nearest of its rows."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Quantized(NamedTuple):
    """What the codebook made of a batch."""

    z: Tensor  # (B, E, h, w) codebook rows; gradients pass straight through to the encoder
    indices: Tensor  # (B, h, w) int64
    loss: Tensor  # scalar


class Codebook(nn.Module):
    """Vector quantisation by squared distance.

    Args:
        size: number of rows.
        width: of a row.
        beta: weight of the commitment term.
        reference_order: put beta on the codebook term instead of the commitment term, as taming-transformers
            does by default; the paper (section 3.1, equation 4) and we put it on the commitment term.

    Source: taming-transformers, taming/modules/vqvae/quantize.py (VectorQuantizer2, `legacy`).
    """

    def __init__(self, size: int, width: int, beta: float = 0.25, reference_order: bool = False) -> None:
        super().__init__()
        self.beta = beta
        self.reference_order = reference_order
        self.embedding = nn.Embedding(size, width)
        nn.init.uniform_(self.embedding.weight, -1.0 / size, 1.0 / size)

    def nearest(self, z: Tensor) -> Tensor:
        """Index of the nearest row for each vector: (B, E, h, w) -> (B, h, w) int64."""
        rows = self.embedding.weight.float()  # (N, E)
        flat = z.float().permute(0, 2, 3, 1).reshape(-1, z.shape[1])  # (B h w, E)
        distance = (
            rows.square().sum(1) - 2 * flat @ rows.t()
        )  # the vector's own square does not change the order
        return distance.argmin(1).view(z.shape[0], *z.shape[2:])

    def lookup(self, indices: Tensor) -> Tensor:
        """Codebook rows of a grid of tokens: (B, h, w) -> (B, E, h, w)."""
        return self.embedding(indices).permute(0, 3, 1, 2).contiguous()  # type: ignore[no-any-return]

    def forward(self, z: Tensor) -> Quantized:
        """Quantise (B, E, h, w); distances and loss are float32 whatever the autocast."""
        with torch.autocast(z.device.type, enabled=False):
            z = z.float()
            indices = self.nearest(z)
            rows = self.lookup(indices)
            codebook, commitment = F.mse_loss(rows, z.detach()), F.mse_loss(rows.detach(), z)
            if self.reference_order:
                codebook, commitment = commitment, codebook
            return Quantized(z + (rows - z).detach(), indices, codebook + self.beta * commitment)
