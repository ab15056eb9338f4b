"""Augmentation that gradients pass through, so that a discriminator cannot learn a few paintings by heart.

What it is shown, painted or reconstructed, is changed at random the same way; the generator learns through the change,
and never paints it.

Source: Zhao et al. 2020, "Differentiable Augmentation for Data-Efficient GAN Training", section 3 and figure 4.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SHIFT = 0.125  # of a side, at most
HOLE = 0.5  # of a side


def augment(images: Tensor) -> Tensor:
    """Colour, shift and a hole, drawn anew for each of (B, 3, H, W) images in [-1, 1]."""
    return cut_out(translate(recolour(images)))


def recolour(images: Tensor) -> Tensor:
    """Change brightness by up to 0.5, saturation by up to twice, contrast by up to a half."""
    images = images + (_uniform(images) - 0.5)
    grey = images.mean(1, keepdim=True)
    images = (images - grey) * (2 * _uniform(images)) + grey
    mean = images.mean((1, 2, 3), keepdim=True)
    return (images - mean) * (_uniform(images) + 0.5) + mean


def translate(images: Tensor) -> Tensor:
    """Shift by up to SHIFT of each side; what comes in is 0."""
    batch, _, height, width = images.shape
    down, right = round(height * SHIFT), round(width * SHIFT)
    padded = F.pad(images, (right, right, down, down))
    rows, columns = (
        torch.randint(2 * far + 1, (batch, 1), device=images.device)
        + torch.arange(length, device=images.device)
        for far, length in ((down, height), (right, width))
    )  # (B, H) and (B, W) of what is padded
    moved = padded.gather(2, rows[:, None, :, None].expand(-1, images.shape[1], -1, padded.shape[3]))
    return moved.gather(3, columns[:, None, None].expand(-1, images.shape[1], height, -1))


def cut_out(images: Tensor) -> Tensor:
    """Set a rectangle of HOLE of each side to 0; it may hang over the border."""
    batch, _, height, width = images.shape
    hole = []
    for length in (height, width):
        middle = torch.randint(length + 1, (batch, 1), device=images.device)
        away = (torch.arange(length, device=images.device)[None] - middle).abs()  # (B, length)
        hole.append(away < length * HOLE / 2)
    kept = ~(hole[0][:, None, :, None] & hole[1][:, None, None, :])  # (B, 1, H, W)
    return images * kept


def _uniform(images: Tensor) -> Tensor:
    """(B, 1, 1, 1) in [0, 1)."""
    return torch.rand(len(images), 1, 1, 1, device=images.device)
