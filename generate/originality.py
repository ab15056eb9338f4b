"""Is a new painting new: how far each lies from the nearest crop of what was learnt from, and what would be a copy.

Crops are compared at 16 x 16 thumbnail pixels, against every place of every painting learnt from, half a thumbnail
pixel apart, mirrored too: a copy from between two places looks like no copy at either. The
distance is relative to the crops' own contrast: 0 is the same crop, about 1.4 are two that have nothing in common,
and an empty sky is not a copy of every other empty sky.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from annotate.progress import progress
from generate.data import even_starts

SIDE = 16  # of a thumbnail, in its pixels
NOISE = (4 / 255) ** 2  # variance below which a difference is no matter
EXACT = 1e-3  # distance up to which two crops are the same but for rounding

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Crop:
    """A square of a painting."""

    key: str
    top: int  # in pixels
    left: int
    mirrored: bool = False


@dataclass(frozen=True)
class Neighbour:
    """A crop, and the crop learnt from that is nearest to it."""

    crop: Crop
    nearest: Crop
    distance: float


@dataclass(frozen=True)
class Threshold:
    """Distance below which a crop counts as a copy, and the two figures between which it lies."""

    value: float
    copies: float  # median distance of crops that are copies, as the codes paint them
    held_out: float  # smallest distance of a crop of a held-out painting, as the codes paint it

    @property
    def tells_apart(self) -> bool:
        """False: the codes blur so much that a copy and a painting never seen are as far from what was learnt."""
        return self.copies < self.held_out


def copy_threshold(copies: Sequence[Neighbour], held_out: Sequence[Neighbour]) -> Threshold:
    """Half way, as a ratio, between copies and what cannot be one."""
    usual = float(np.median([one.distance for one in copies]))
    least = min(one.distance for one in held_out)
    # where copies are exact, half way to nothing would call none of them a copy
    value = float(np.sqrt(max(usual, EXACT) * least)) if usual < least else least
    return Threshold(value, usual, least)


def grid_crops(key: str, pixels: Pixels, side: int) -> list[Crop]:
    """Crops that cover a painting (H, W, 3) evenly, each `side` pixels wide and high."""
    rows, columns = (even_starts(length, side) for length in pixels.shape[:2])
    return [Crop(key, top, left) for top in rows for left in columns]


def nearest_crops(
    queries: Sequence[tuple[Crop, Pixels]], learnt: Iterable[tuple[str, Pixels]], side: int, total: int = 0
) -> list[Neighbour]:
    """The nearest crop learnt from, for each query.

    Args:
        queries: a crop and its pixels (side, side, 3).
        learnt: keys and pixels (H, W, 3) of the paintings learnt from, one at a time.
        side: of the crops in pixels, at least SIDE.
        total: how many paintings these are, for the progress bar.
    """
    wanted = torch.stack([_thumbnail(pixels, side) for _, pixels in queries])  # (Q, 3, SIDE, SIDE)
    asked = torch.cat([wanted, wanted.flip(3)]).flatten(1)  # (2 Q, 3 SIDE SIDE)
    best = [math.inf] * len(queries)
    found: list[Crop | None] = [None] * len(queries)
    with progress("Looking for copies", total) as advance:
        for key, pixels in learnt:
            for part, corner in _places(key, pixels, side):
                thumbnail = _thumbnail(part, side)
                width = thumbnail.shape[2] - SIDE + 1  # places in a row
                candidates = F.unfold(thumbnail[None], SIDE)[0].t()  # (P, 3 SIDE SIDE)
                distances, places = _distances(asked, candidates).min(1)
                for row, (distance, place) in enumerate(
                    zip(distances.tolist(), places.tolist(), strict=True)
                ):
                    mirrored, n = divmod(row, len(queries))
                    if distance < best[n]:
                        top, left = (round(one * side / SIDE) for one in divmod(place, width))
                        best[n] = distance
                        found[n] = Crop(key, corner.top + top, corner.left + left, bool(mirrored))
            advance()
    nearest = [one for one in found if one is not None]
    assert len(nearest) == len(queries), "there is at least one painting, and it is as large as a crop"
    return [
        Neighbour(crop, near, distance)
        for (crop, _), near, distance in zip(queries, nearest, best, strict=True)
    ]


def cut(pixels: Pixels, crop: Crop, side: int) -> Pixels:
    """The pixels (side, side, 3) of a crop, mirrored where it is."""
    part = pixels[crop.top : crop.top + side, crop.left : crop.left + side]
    return part[:, ::-1] if crop.mirrored else part


def _places(key: str, pixels: Pixels, side: int) -> Iterator[tuple[Pixels, Crop]]:
    """A painting four times, begun half a thumbnail pixel later or not, cut to whole ones; and where it begins."""
    half = side // SIDE // 2
    for top, left in product({0, half}, repeat=2):
        part = pixels[top:, left:]
        if min(part.shape[:2]) >= side:
            height, width = (length * SIDE // side * side // SIDE for length in part.shape[:2])
            yield part[:height, :width], Crop(key, top, left)


def _thumbnail(pixels: Pixels, side: int) -> Tensor:
    """(H, W, 3) -> (3, h, w) in [0, 1], so much smaller that a crop's side becomes SIDE."""
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
    size = [max(SIDE, round(length * SIDE / side)) for length in pixels.shape[:2]]
    return F.interpolate(image, size, mode="area")[0]


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """(Q, D), (P, D) -> (Q, P): root mean square difference, relative to the mean contrast of both."""
    squares = (a.square().mean(1)[:, None] + b.square().mean(1)[None] - 2 * (a @ b.t()) / a.shape[1]).clamp(
        min=0
    )
    contrast = (_contrast(a)[:, None] + _contrast(b)[None]) / 2
    return (squares / (contrast + NOISE)).sqrt()


def _contrast(crops: Tensor) -> Tensor:
    """Variance (N,) about each channel's mean."""
    channels = crops.view(len(crops), 3, -1)
    return channels.var(2, correction=0).mean(1)
