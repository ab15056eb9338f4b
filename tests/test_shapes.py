"""Shapes cover exactly the pixels whose centres lie in them, and outlines give masks back."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from annotate.shapes import Patch, Points, fill_ellipse, fill_polygon, outlines

MASKS = st.tuples(st.integers(1, 14), st.integers(1, 14)).flatmap(lambda shape: arrays(np.bool_, shape))
PLACES = st.floats(-4, 16, allow_nan=False, width=32)


def whole(patch: Patch, size: tuple[int, int]) -> NDArray[np.bool_]:
    image = np.zeros(size, np.bool_)
    image[patch.rows, patch.columns] = patch.mask
    return image


def table(text: str) -> NDArray[np.bool_]:
    return np.array([[sign == "#" for sign in line] for line in text.split()])


def filled(points: object, size: tuple[int, int]) -> NDArray[np.bool_]:
    return whole(fill_polygon(np.array(points, np.float64), size), size)


def test_whole_pixels_are_covered_exactly() -> None:
    expected = np.zeros((12, 30), np.bool_)
    expected[3:8, 10:20] = True
    assert (filled([(10, 3), (20, 3), (20, 8), (10, 8)], (12, 30)) == expected).all()
    assert (filled([(10, 8), (20, 8), (20, 3), (10, 3)], (12, 30)) == expected).all()  # the other way round
    # half a pixel: the centre on the left or upper edge belongs to it, on the right or lower one it does not
    assert (
        filled([(9.5, 2.5), (19.5, 2.5), (19.5, 7.5), (9.5, 7.5)], (12, 30))
        == np.roll(expected, (-1, -1), (0, 1))
    ).all()
    assert (filled([(-90, -90), (90, -90), (90, 90), (-90, 90)], (5, 7))).all()
    assert not filled([(8, 1), (12, 1), (12, 3), (8, 3)], (5, 7)).any()
    assert not filled([(1, 9), (3, 9), (3, 12), (1, 12)], (5, 7)).any()


def test_a_triangle_and_a_star_by_hand() -> None:
    assert (
        filled([(0, 0), (7, 0), (0, 5)], (5, 7)) == table("######. #####.. ###.... ##..... #......")
    ).all()
    hourglass = [(0, 0), (7, 0), (0, 5), (7, 5)]  # crosses itself once
    assert (filled(hourglass, (5, 7)) == table(".#####. ..###.. ....... ..###.. .#####.")).all()
    points = [
        (50 + 45 * math.sin(2.4 * math.pi / 3 * k), 50 - 45 * math.cos(2.4 * math.pi / 3 * k))
        for k in range(5)
    ]
    assert filled(points, (100, 100))[50, 50]  # nonzero: the middle of a pentagram is inside, as in a canvas


@given(st.lists(st.tuples(PLACES, PLACES), min_size=3, max_size=9))
def test_against_winding_numbers_point_by_point(points: list[tuple[float, float]]) -> None:
    size = 11, 13
    mask = filled(points, size)
    for row in range(size[0]):
        for column in range(size[1]):
            x, y, winding, close = column + 0.5, row + 0.5, 0, False
            for (ax, ay), (bx, by) in zip(points, points[1:] + points[:1], strict=True):
                if (ay <= y) != (by <= y):
                    cross = ax + (y - ay) * (bx - ax) / (by - ay)
                    close = close or abs(cross - x) < 1e-6 or min(abs(ay - y), abs(by - y)) < 1e-6
                    winding += (1 if by > ay else -1) * (cross <= x)
            assert close or mask[row, column] == (winding != 0)


@given(
    st.tuples(PLACES, PLACES), st.tuples(PLACES, PLACES), st.tuples(PLACES, PLACES), st.tuples(PLACES, PLACES)
)
def test_neighbours_share_no_pixel_and_leave_none(
    a: tuple[float, float], b: tuple[float, float], c: tuple[float, float], d: tuple[float, float]
) -> None:
    """Cut a box at any point: the four triangles around it make up the box, each pixel once."""
    size = 12, 12
    middle = (abs(a[0]) % 12, abs(b[1]) % 12)
    corners = [(0, 0), (12, 0), (12, 12), (0, 12)]
    total = sum(filled([corners[k], corners[(k + 1) % 4], middle], size).astype(int) for k in range(4))
    assert (np.asarray(total) == 1).all()


def test_ellipses_have_their_area_and_turn() -> None:
    size = 240, 320
    mask = whole(fill_ellipse((160.2, 120.7), (90, 40), 0, (1, 1), size), size)
    assert mask.sum() == pytest.approx(math.pi * 90 * 40, rel=2e-3)
    assert mask[120, 71]
    assert not mask[120, 69]
    turned = whole(fill_ellipse((160, 120), (90, 40), 90, (1, 1), size), size)
    assert (np.flatnonzero(turned.any(0))[[0, -1]] == (120, 199)).all()
    assert (np.flatnonzero(turned.any(1))[[0, -1]] == (30, 209)).all()
    leaning = whole(
        fill_ellipse((160, 120), (90, 20), 30, (1, 1), size), size
    )  # clockwise: down on the right
    assert leaning[120 + 40, 160 + 70]
    assert not leaning[120 - 40, 160 + 70]
    half = whole(fill_ellipse((320, 240), (180, 80), 30, (0.5, 0.5), size), size)
    assert (half == whole(fill_ellipse((160, 120), (90, 40), 30, (1, 1), size), size)).all()


@settings(deadline=None)
@given(MASKS)
def test_exact_outlines_give_any_mask_back(mask: NDArray[np.bool_]) -> None:
    """Holes, islands in holes, parts that touch by a corner, pixels on the border."""
    size = mask.shape[0], mask.shape[1]
    again = np.zeros(size, np.bool_)
    for ring in outlines(mask, tolerance=0):
        assert (ring >= 0).all()
        assert (ring <= (size[1], size[0])).all()
        part = filled(ring, size)
        assert not (again & part).any()
        again |= part
    assert (again == mask).all()


@pytest.mark.parametrize("tolerance", [0.5, 1.0, 2.0])
def test_outlines_keep_to_their_tolerance(tolerance: float) -> None:
    from skimage.morphology import isotropic_dilation, isotropic_erosion

    y, x = np.mgrid[:150, :210]
    mask = (np.hypot(y - 70, x - 100) < 60) & ~(np.hypot(y - 75, x - 90) < 20) | (
        np.hypot(y - 40, x - 190) < 9
    )
    rings = outlines(mask, tolerance)
    assert len(rings) == 2
    assert sum(map(len, rings)) < 110
    again = np.zeros(mask.shape, np.bool_)
    for ring in rings:
        again |= filled(ring, (150, 210))
    assert not (again & ~isotropic_dilation(mask, tolerance + 1)).any()
    assert not (isotropic_erosion(mask, tolerance + 1) & ~again).any()


def test_small_parts_can_be_left_out() -> None:
    mask = table("##.....#. ##.###... ...#.#... ...###...")
    assert len(outlines(mask)) == 3
    rings = outlines(mask, smallest=2)
    assert len(rings) == 2  # the hole goes with the single pixel
    assert outlines(np.zeros((4, 5), np.bool_)) == []


def test_an_outline_without_end_is_refused() -> None:
    zigzag: Points = np.zeros((100_000, 2))
    zigzag[1::2, 1] = 3000
    with pytest.raises(ValueError, match="100000 points"):
        fill_polygon(zigzag, (3000, 2000))
    comb = np.array([(x, y) for x in np.linspace(0, 990, 1000) for y in (0.0, 900.0)])
    assert fill_polygon(comb, (900, 1000)).mask.shape[0] == 900  # several batches
