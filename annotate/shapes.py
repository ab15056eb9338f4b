"""Shapes to pixels and back: polygons and ellipses filled by the pixel-centre rule, masks as outlines.

Points are (N, 2) of x, y in pixels; pixel (row r, column c) covers [c, c + 1) x [r, r + 1), its centre lies at
(c + 0.5, r + 0.5), and it belongs to a shape that its centre lies in. Shapes that share an edge thus share no
pixel and leave none between them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]

_AT_ONCE = 1 << 20  # crossings of edges with pixel rows handled together; bounds the memory
CROSSINGS = 4  # times the image's pixels: what an outline around every other pixel of it has twice over
FREE_CROSSINGS = 1 << 16  # in any image, however small


@dataclass(frozen=True)
class Patch:
    """A mask that covers a part of an image."""

    rows: slice
    columns: slice
    mask: NDArray[np.bool_]  # (rows, columns)


def fill_polygon(points: Points, size: tuple[int, int]) -> Patch:
    """The pixels inside a closed polygon.

    Where the outline crosses itself, what it winds around is inside (the nonzero rule: the canvas of a
    browser fills so, and thus Label Studio shows it so). An outline that goes to a hole's edge, around it the
    other way, and back along the same line leaves the hole out.

    Args:
        points: (N, 2) x, y in pixels, finite; the last is joined to the first.
        size: (H, W) of the image; what lies outside it is cut off.

    Raises:
        ValueError: edges that cross far more pixel rows altogether than an outline of this image can need.
    """
    height, width = size
    top, bottom = _centres(points[:, 1].min(), points[:, 1].max(), height)
    left, right = _centres(points[:, 0].min(), points[:, 0].max(), width)
    a, b = points, np.roll(points, -1, axis=0)
    down = a[:, 1] <= b[:, 1]
    upper, lower = np.where(down[:, None], a, b), np.where(down[:, None], b, a)
    first = np.clip(np.ceil(upper[:, 1] - 0.5), top, bottom).astype(np.int64)
    counts = np.clip(np.ceil(lower[:, 1] - 0.5), top, bottom).astype(np.int64) - first
    if counts.sum() > CROSSINGS * height * width + FREE_CROSSINGS:
        raise ValueError(f"an outline of {len(points)} points whose edges cross {counts.sum()} pixel rows")
    direction = np.where(down, 1, -1).astype(np.int32)
    box_height, box_width = max(bottom - top, 0), max(right - left, 0)
    winding = np.zeros(box_height * (box_width + 1), np.int32)
    for edges in _batches(counts):
        edge = np.repeat(edges, counts[edges])
        row = (
            first[edge]
            + np.arange(len(edge))
            - np.repeat(np.cumsum(counts[edges]) - counts[edges], counts[edges])
        )
        along = (row + 0.5 - upper[edge, 1]) / (lower[edge, 1] - upper[edge, 1])
        x = upper[edge, 0] + along * (lower[edge, 0] - upper[edge, 0])
        column = np.clip(np.ceil(x - 0.5), left, right).astype(np.int64)
        np.add.at(winding, (row - top) * (box_width + 1) + column - left, direction[edge])
    table = winding.reshape(box_height, box_width + 1)
    np.cumsum(table, axis=1, out=table)
    return Patch(slice(top, top + box_height), slice(left, left + box_width), table[:, :box_width] != 0)


def fill_ellipse(
    centre: tuple[float, float],
    radii: tuple[float, float],
    degrees: float,
    scale: tuple[float, float],
    size: tuple[int, int],
) -> Patch:
    """The pixels inside an ellipse.

    Args:
        centre: x, y in pixels of the image that it was drawn on.
        radii: along its own x and y axis, in the same pixels, above 0.
        degrees: how far it is turned, clockwise.
        scale: factors in x and y from that image to this one.
        size: (H, W) of this image.
    """
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    half_width = math.hypot(radii[0] * cos, radii[1] * sin)
    half_height = math.hypot(radii[0] * sin, radii[1] * cos)
    left, right = _centres((centre[0] - half_width) * scale[0], (centre[0] + half_width) * scale[0], size[1])
    top, bottom = _centres(
        (centre[1] - half_height) * scale[1], (centre[1] + half_height) * scale[1], size[0]
    )
    x = (np.arange(left, right) + 0.5) / scale[0] - centre[0]  # (columns,)
    y = (np.arange(top, bottom)[:, None] + 0.5) / scale[1] - centre[1]  # (rows, 1)
    mask: NDArray[np.bool_] = (x * cos + y * sin) ** 2 / radii[0] ** 2 + (y * cos - x * sin) ** 2 / radii[
        1
    ] ** 2 <= 1
    return Patch(slice(top, top + mask.shape[0]), slice(left, left + mask.shape[1]), mask)


def outlines(mask: NDArray[np.bool_], tolerance: float = 1.0, smallest: float = 0.0) -> list[Points]:
    """Outlines that `fill_polygon` turns back into the mask, to within `tolerance` pixels.

    One outline for each connected part (by edges, not by corners). A hole is joined to the outer edge by a
    line that is walked twice, so that it stays a hole in one closed outline.

    Args:
        mask: (H, W) bool.
        tolerance: how far an outline may leave the true edge; 0 gives the mask back exactly.
        smallest: parts and holes of fewer square pixels are left out.

    Returns:
        (N, 2) x, y in pixels each; largest first.
    """
    from skimage.measure import find_contours, label

    padded = np.pad(mask, 1)
    parts = label(padded, connectivity=1)
    outer: dict[int, Points] = {}
    holes: dict[int, list[Points]] = {}
    for contour in find_contours(padded.astype(np.float32), 0.5):
        crossings = contour[:-1, ::-1] - 0.5  # x, y; the padding is 1, a centre lies at 0.5
        corners, turns = _corners(crossings)
        area = _area(corners[turns])
        if abs(area) < smallest:
            continue
        part = _part_inside(parts, contour[0])
        framed = np.flatnonzero(
            turns & ((corners == 0) | (corners == (mask.shape[1], mask.shape[0]))).any(axis=1)
        )
        ring = np.insert(crossings, framed + 1, corners[framed], axis=0)
        simple = _simplify(ring, framed + 1 + np.arange(len(framed)), tolerance)
        # find_contours walks with the high values to one side: outer edges one way, holes the other
        if area > 0:
            outer[part] = simple
        else:
            holes.setdefault(part, []).append(simple)
    joined = [_join(ring, holes.get(part, [])) for part, ring in outer.items()]
    return sorted(joined, key=lambda ring: -abs(_area(ring)))


def _centres(low: float, high: float, length: int) -> tuple[int, int]:
    """First and past-the-last pixel whose centre lies in [low, high), within the image."""
    first, stop = (min(max(math.ceil(edge - 0.5), 0), length) for edge in (low, high))
    return first, stop


def _batches(counts: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Indices of the edges with a crossing, in groups of about _AT_ONCE crossings."""
    edges = np.flatnonzero(counts)
    groups = np.cumsum(counts[edges]) // _AT_ONCE
    return np.split(edges, np.flatnonzero(np.diff(groups)) + 1)


def _area(ring: Points) -> float:
    """Signed area of a closed outline."""
    x, y = ring[:, 0], ring[:, 1]
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def _part_inside(parts: NDArray[np.int64], vertex: Points) -> int:
    """The part whose edge a contour's vertex (row, column) lies on: half way between one of its pixels and none."""
    low, high = np.floor(vertex).astype(int), np.ceil(vertex).astype(int)
    return int(max(parts[low[0], low[1]], parts[high[0], high[1]]))


def _corners(crossings: Points) -> tuple[Points, NDArray[np.bool_]]:
    """From the middles of the pixel edges that an outline runs along: the pixel corner after each, and whether
    the outline turns there."""
    following = np.roll(crossings, -1, axis=0)
    upright = crossings[:, 0] % 1 == 0  # the middle of an upright pixel edge
    x = np.where(upright, crossings[:, 0], following[:, 0])
    y = np.where(upright, following[:, 1], crossings[:, 1])
    return np.stack([x, y], axis=1), upright != np.roll(upright, -1)


def _simplify(ring: Points, kept: NDArray[np.int64], tolerance: float) -> Points:
    """Douglas-Peucker on a closed outline; the vertices `kept` (those at the image's border) stay."""
    from skimage.measure import approximate_polygon

    start = int(kept[0]) if len(kept) else 0
    closed = np.roll(ring, -start, axis=0)[[*range(len(ring)), 0]]
    stops = [*(kept - start), len(ring)] if len(kept) else [0, len(ring)]
    parts = [approximate_polygon(closed[a : b + 1], tolerance)[:-1] for a, b in pairwise(stops)]
    simple = np.vstack(parts)
    return simple if len(simple) >= 3 else ring  # never flatten a small part


def _join(ring: Points, holes: list[Points]) -> Points:
    for hole in holes:
        nearest = int(np.argmin(((ring - hole[0]) ** 2).sum(axis=1)))
        ring = np.vstack([ring[: nearest + 1], hole, hole[:1], ring[nearest:]])
    return ring
