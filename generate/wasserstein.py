"""Sliced Wasserstein distance between two sets of pictures: how alike their strokes are, scale by scale.

Nothing is downloaded and nothing is learnt: small patches of each band of a Laplacian pyramid are compared as
distributions, along many random directions.

Source: Karras et al. 2018 (progressive growing of GANs), section 5. There each set is normalised by itself; here both
by the first one's mean and spread, so that a set that is too dark or too flat lies farther away.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

PATCH = 7  # pixels
SMALLEST = 16  # side of the last band, at least
DIRECTIONS = 256


def sliced_wasserstein(
    paintings: Sequence[NDArray[np.uint8]],
    others: Sequence[NDArray[np.uint8]],
    patches: int = 4096,
    seed: int = 0,
) -> list[float]:
    """Distance a band, finest first; 0 for a set and itself.

    Other sets lie a little apart by the draw of their patches alone, however alike they are: with 4096 patches
    about 0.03.

    Args:
        paintings: (H, W, 3) each, of any sizes.
        others: the same; as many bands are compared as the smallest picture of both has.
        patches: drawn from each set and band.
        seed: of the places and directions.
    """
    levels = min(_levels(one.shape[:2]) for one in [*paintings, *others])
    # the same places in both, so that the same pictures give the same patches
    ours, theirs = (
        _descriptors(some, levels, patches, torch.Generator().manual_seed(seed))
        for some in (paintings, others)
    )
    chance = torch.Generator().manual_seed(seed + 1)
    distances = []
    for a, b in zip(ours, theirs, strict=True):  # (patches, 3, PATCH, PATCH)
        mean, spread = a.mean((0, 2, 3), keepdim=True), a.std((0, 2, 3), keepdim=True) + 1e-8
        directions = torch.randn(3 * PATCH * PATCH, DIRECTIONS, generator=chance)
        directions /= directions.norm(dim=0)
        first, second = (((one - mean) / spread).flatten(1) @ directions for one in (a, b))
        distances.append(float((first.sort(0).values - second.sort(0).values).abs().mean()))
    return distances


def laplacian_bands(image: Tensor, levels: int) -> list[Tensor]:
    """Bands of (B, 3, H, W), finest first; the last one is what is left.

    The bands, each enlarged and added to the one before, give the image again.
    """
    bands = []
    for _ in range(levels - 1):
        coarse = F.avg_pool2d(image, 2, ceil_mode=True, count_include_pad=False)
        bands.append(image - F.interpolate(coarse, image.shape[-2:]))
        image = coarse
    return [*bands, image]


def _levels(size: tuple[int, ...]) -> int:
    side, levels = min(size), 1
    while side // 2 >= SMALLEST:
        side, levels = side // 2, levels + 1
    return levels


def _descriptors(
    pictures: Sequence[NDArray[np.uint8]], levels: int, patches: int, chance: torch.Generator
) -> list[Tensor]:
    """Random patches (patches, 3, PATCH, PATCH) of each band, as many from each picture."""
    shares = [patches // len(pictures) + (n < patches % len(pictures)) for n in range(len(pictures))]
    found: list[list[Tensor]] = [[] for _ in range(levels)]
    for pixels, count in zip(pictures, shares, strict=True):
        image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float().div(127.5).sub(1)
        for level, band in enumerate(laplacian_bands(image, levels)):
            windows = band[0].unfold(1, PATCH, 1).unfold(2, PATCH, 1)  # (3, h, w, PATCH, PATCH)
            rows = torch.randint(windows.shape[1], (count,), generator=chance)
            columns = torch.randint(windows.shape[2], (count,), generator=chance)
            found[level].append(windows[:, rows, columns].transpose(0, 1))
    return [torch.cat(some) for some in found]
