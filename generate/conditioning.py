"""What a mask leaves open: parts set to unlabelled at random in training, so that they can be at sampling.

A generator that has seen open regions paints them as it likes, and its answer to a mask that says nothing at all is
what classifier-free guidance leads away from.

Source: Ho and Salimans 2021, "Classifier-Free Diffusion Guidance", section 3.2, there for a label.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from generate.vqgan import VQGAN

OPEN = 0  # shifted id of unlabelled
SMALLEST = 0.25  # of a side: the least that a rectangle opens


def open_part(ids: NDArray[np.uint8], chance: np.random.Generator) -> NDArray[np.uint8]:
    """Set one class, or a rectangle, to unlabelled; which of both is as likely as the other.

    Args:
        ids: (H, W) shifted ids; they are not changed.
        chance: where, and which class.
    """
    opened = ids.copy()
    if chance.integers(2):
        classes = np.unique(ids)
        opened[ids == classes[int(chance.integers(len(classes)))]] = OPEN
        return opened
    (top, height), (left, width) = (_stretch(side, chance) for side in ids.shape)
    opened[top : top + height, left : left + width] = OPEN
    return opened


class OpenedMasks(Dataset[tuple[Tensor, ...]]):
    """Crops of masks, some of them opened in part, a few altogether; item `n` depends on `seed` and `n` alone.

    A codebook that learns from these has tokens for what is unlabelled, even where every mask is labelled throughout.

    Args:
        crops: items whose first tensor is a mask (h, w).
        share: of the crops that are opened; a quarter of them altogether.
    """

    def __init__(self, crops: Dataset[tuple[Tensor, ...]], share: float, seed: int) -> None:
        self.crops, self.share, self.seed = crops, share, seed

    def __getitem__(self, n: int) -> tuple[Tensor, ...]:
        mask, *others = self.crops[n]
        chance = np.random.default_rng((self.seed, 6, n))
        drawn = float(chance.random())
        if drawn < self.share / 4:
            mask = torch.full_like(mask, OPEN)
        elif drawn < self.share:
            mask = torch.from_numpy(open_part(mask.numpy(), chance))
        return mask, *others


@torch.no_grad()
def unconditional_tokens(mask_codes: VQGAN, size: tuple[int, int]) -> Tensor:
    """Mask tokens (1, h, w) of a canvas about which nothing is said.

    Args:
        mask_codes: on the device where the tokens shall be.
        size: (h, w) in tokens.
    """
    factor = mask_codes.config.downsampling
    place = mask_codes.encoder.conv_in.weight.device
    ids = torch.full((1, size[0] * factor, size[1] * factor), OPEN, dtype=torch.int64, device=place)
    return mask_codes.encode_mask(ids).indices


def _stretch(length: int, chance: np.random.Generator) -> tuple[int, int]:
    """Start and length of a random stretch of a side."""
    long = max(1, round(length * float(chance.uniform(SMALLEST, 1.0))))
    return int(chance.integers(length - long + 1)), long
