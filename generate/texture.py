"""Texture loss: strokes like the painter's, where they cannot be just the painter's.

A codebook of some hundred rows cannot say where each stroke of 8 x 8 pixels lies. Under L1 the best answer to that is
their mean, a blur. Here the patches of a small area are compared as a distribution: strokes of the right size,
contrast and direction cost nothing wherever in the area they lie. Nothing is downloaded, and no network is learnt.

Source: Heitz et al. 2021, "A Sliced Wasserstein Loss for Neural Texture Synthesis", equation 5; there of VGG's features
over the whole image, here of a Laplacian pyramid's patches within windows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from generate.wasserstein import PATCH, laplacian_bands

WINDOW = 32  # pixels of the painting; within it a stroke may lie anywhere
BANDS = 2
DIRECTIONS = 16


def texture_loss(reconstruction: Tensor, painting: Tensor) -> Tensor:
    """Sliced Wasserstein distance of the patches in each window, a mean over windows and directions, summed over bands.

    The directions are drawn anew at each call, from torch's random numbers.

    Args:
        reconstruction, painting: (B, 3, H, W) in [-1, 1], 16 pixels at least.

    Returns:
        a scalar; 0 where both have the same patches in each window.
    """
    with torch.autocast(painting.device.type, enabled=False):
        ours, theirs = (laplacian_bands(one.float(), BANDS + 1)[:-1] for one in (reconstruction, painting))
        total = painting.new_zeros((), dtype=torch.float32)
        for level, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            directions = torch.randn(DIRECTIONS, 3, PATCH, PATCH, device=a.device)
            directions /= directions.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            side = WINDOW >> level
            first, second = (_by_window(_along(directions, band), side).sort(-1).values for band in (a, b))
            total = total + (first - second).abs().mean()
    return total


def _along(directions: Tensor, band: Tensor) -> Tensor:
    """Every patch of a band (B, 3, H, W) along each direction: (B, D, H, W)."""
    return F.conv2d(F.pad(band, (PATCH // 2,) * 4, mode="reflect"), directions)


def _by_window(values: Tensor, side: int) -> Tensor:
    """(B, D, H, W) -> (B, D, windows, pixels), windows of `side` pixels or a little more."""
    rows, columns = (max(1, length // side) for length in values.shape[-2:])
    high, wide = values.shape[-2] // rows, values.shape[-1] // columns
    cut = values[..., : rows * high, : columns * wide]
    windows = cut.reshape(*values.shape[:2], rows, high, columns, wide).transpose(3, 4)
    return windows.reshape(*values.shape[:2], rows * columns, high * wide)
