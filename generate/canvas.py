"""Compositions from compositions: canvases that grow while objects keep their size, cuts, mixtures, free regions.

Everything here turns class maps into class maps and works on any ids, raw or shifted.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.uint8]
Fill = Literal["mirror", "continue", "free"]
ANCHORS = {
    "centre": (0.5, 0.5),
    "top": (0.0, 0.5),
    "bottom": (1.0, 0.5),
    "left": (0.5, 0.0),
    "right": (0.5, 1.0),
    "top-left": (0.0, 0.0),
    "top-right": (0.0, 1.0),
    "bottom-left": (1.0, 0.0),
    "bottom-right": (1.0, 1.0),
}  # share of the new rows (columns) that come before the old ones
_SLIDE = 0.15  # of the height: how far the second part of a mixture may be moved to fit the first


def resize_canvas(
    ids: Ids, size: tuple[int, int], anchor: str = "centre", fill: Fill = "continue", free: int = 0
) -> Ids:
    """Another canvas for the same composition: objects keep their size, nothing is ever scaled.

    Args:
        ids: (H, W).
        size: (H, W) wanted; a smaller side is cut.
        anchor: a name in ANCHORS: where the old canvas lies in the new one.
        fill: what the new parts hold. `continue`: the border's classes go on. `mirror`: the same above and
            below, but mirrored to the sides, where a class that goes on would become a stripe. `free`: the id
            `free`.
        free: the id of what is left to imagination.
    """
    for axis in (1, 0):  # columns first, so that new rows go on from the mirrored columns too
        extra = size[axis] - ids.shape[axis]
        before = int(abs(extra) * ANCHORS[anchor][axis])
        if extra < 0:
            ids = np.take(ids, np.arange(before, before + size[axis]), axis)
        elif extra > 0:
            widths = [(0, 0), (0, 0)]
            widths[axis] = (before, extra - before)
            if fill == "free":
                ids = np.pad(ids, widths, constant_values=free)
            else:
                ids = np.pad(ids, widths, mode="symmetric" if fill == "mirror" and axis == 1 else "edge")
    return np.ascontiguousarray(ids)


def mix(first: Ids, second: Ids, share: float, border: int, direction: Literal["beside", "above"]) -> Ids:
    """A part of one composition beside (or above) a part of another's, grown together in a band between them.

    Beside: the left of the first, the right of the second. The second is slid up or down to where its classes
    fit the first's best. Within the band both lie over one another, and the cut between them runs where they
    agree, so that it shows as little as it can.

    Args:
        first, second: (H, W) each, any two sizes.
        share: how much of each is taken; 1 takes both whole.
        border: width of the band in pixels; 0 cuts straight.
        direction: `beside` puts the first left of the second, `above` over it.

    Returns:
        (H, W): the common height, and both parts' widths less what the band takes of whole ones; `above`
        the other way round.

    Source of the cut: Efros & Freeman 2001, Image Quilting, section 2.2, on classes instead of colours.
    """
    if direction == "above":
        return np.ascontiguousarray(mix(first.T, second.T, share, border, "beside").T)
    wide = [max(1, round(one.shape[1] * share)) for one in (first, second)]
    # each part reaches half the band further, where its painting has more
    reach = [min(count + border // 2, one.shape[1]) for count, one in zip(wide, (first, second), strict=True)]
    a, b = first[:, : reach[0]], second[:, second.shape[1] - reach[1] :]
    band = min(border, a.shape[1], b.shape[1])
    a, b = _slide(a, b, max(band, 1))
    if band == 0:
        return np.concatenate([a, b], 1)
    left, right = a[:, -band:], b[:, :band]
    cut = _cheapest_cut(left, right)  # (H,) columns of the band that the first keeps
    blended = np.where(np.arange(band) < cut[:, None], left, right)
    return np.concatenate([a[:, :-band], blended, b[:, band:]], 1)


def set_free(ids: Ids, region: NDArray[np.bool_], grow: int, free: int) -> Ids:
    """The composition with a region left to imagination.

    Args:
        ids: (H, W).
        region: (H, W).
        grow: pixels by which the region is widened first.
        free: the id of what is unlabelled.
    """
    from skimage.morphology import isotropic_dilation

    if grow:
        region = isotropic_dilation(region, grow)
    return np.where(region, np.uint8(free), ids)


def _slide(a: Ids, b: Ids, band: int) -> tuple[Ids, Ids]:
    """Cut both to a common height, the second moved to where the two borders agree best."""
    height = min(a.shape[0], b.shape[0])
    limit = round(_SLIDE * height)
    left, right = a[:, -band:], b[:, :band]

    def overlap(down: int) -> tuple[slice, slice]:
        """Rows of a and of b that lie at one height when b is moved `down` rows, bottoms together at 0."""
        bottom_a, bottom_b = min(a.shape[0], a.shape[0] + down), min(b.shape[0], b.shape[0] - down)
        count = min(bottom_a, bottom_b)
        return slice(bottom_a - count, bottom_a), slice(bottom_b - count, bottom_b)

    def misfit(down: int) -> tuple[float, int]:
        rows_a, rows_b = overlap(down)
        return float(np.mean(left[rows_a] != right[rows_b])), abs(down)

    rows_a, rows_b = overlap(min(range(-limit, limit + 1), key=misfit))
    return a[rows_a], b[rows_b]


def _cheapest_cut(left: Ids, right: Ids) -> NDArray[np.int64]:
    """The cut from top to bottom that runs where two overlapping class maps agree.

    Args:
        left, right: (H, B).

    Returns:
        (H,) in 0..B: how many columns of each row are the left one's; one step to the side a row at most.
    """
    differ = np.pad((left != right).astype(np.float64), ((0, 0), (1, 1)))
    price = differ[:, :-1] + differ[:, 1:]  # (H, B + 1) of a cut between two columns
    # where all is equal the middle is best, and a straight line better than a crooked one
    price += 1e-3 * np.abs(np.linspace(-1, 1, price.shape[1]))
    total = price.copy()
    for row in range(1, len(total)):
        above = np.pad(total[row - 1], 1, constant_values=np.inf)
        total[row] += np.minimum(np.minimum(above[:-2], above[2:]) + 1e-4, above[1:-1])
    cut = np.zeros(len(total), np.int64)
    cut[-1] = int(total[-1].argmin())
    for row in range(len(total) - 2, -1, -1):
        first = max(cut[row + 1] - 1, 0)
        cut[row] = first + int(total[row, first : cut[row + 1] + 2].argmin())
    return cut
