"""Canvases grow, mix and open up; what was on them keeps its size and place."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from generate.canvas import ANCHORS, mix, resize_canvas, set_free
from generate.compose_config import ANCHOR_NAMES

IDS = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)


def table(*rows: str) -> NDArray[np.uint8]:
    return np.array([[int(one) for one in row] for row in rows], np.uint8)


def test_the_border_goes_on() -> None:
    assert resize_canvas(IDS, (2, 5)).tolist() == [[1, 1, 2, 3, 3], [4, 4, 5, 6, 6]]
    assert resize_canvas(IDS, (4, 3), "bottom").tolist() == [[1, 2, 3], [1, 2, 3], [1, 2, 3], [4, 5, 6]]
    assert resize_canvas(IDS, (3, 1)).tolist() == [[2], [5], [5]]


def test_sides_are_mirrored_and_the_ground_goes_on() -> None:
    wide = resize_canvas(IDS, (3, 9), "top", "mirror")
    assert wide.tolist() == [[3, 2, 1, 1, 2, 3, 3, 2, 1], *[[6, 5, 4, 4, 5, 6, 6, 5, 4]] * 2]
    assert resize_canvas(IDS, (2, 20), "left", "mirror").shape == (2, 20)  # mirrored more than once


def test_new_parts_can_be_free() -> None:
    assert resize_canvas(IDS, (3, 4), "bottom-right", "free", 255).tolist() == [
        [255] * 4,
        [255, 1, 2, 3],
        [255, 4, 5, 6],
    ]


@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    more=st.tuples(st.integers(0, 20), st.integers(0, 20)),
    anchor=st.sampled_from(ANCHOR_NAMES),
    fill=st.sampled_from(["mirror", "continue", "free"]),
)
def test_objects_keep_their_size(
    height: int, width: int, more: tuple[int, int], anchor: str, fill: str
) -> None:
    ids = np.random.default_rng(height * width).integers(0, 182, (height, width), np.uint8)
    made = resize_canvas(ids, (height + more[0], width + more[1]), anchor, fill, 255)  # type: ignore[arg-type]
    top, left = (int(extra * share) for extra, share in zip(more, ANCHORS[anchor], strict=True))
    assert np.array_equal(made[top : top + height, left : left + width], ids)
    assert set(np.unique(made)) <= {*np.unique(ids), 255}


def test_the_options_anchors_are_the_canvas_ones() -> None:
    assert set(ANCHOR_NAMES) == set(ANCHORS)


def test_a_mixture_takes_its_share_of_both() -> None:
    first, second = np.full((8, 20), 1, np.uint8), np.full((8, 30), 2, np.uint8)
    straight = mix(first, second, 0.5, 0, "beside")
    assert straight.shape == (8, 25)
    assert (straight[:, :10] == 1).all()
    assert (straight[:, 10:] == 2).all()
    whole = mix(first, second, 1.0, 6, "beside")
    assert whole.shape == (8, 44)  # the band is taken from both
    assert mix(first, second, 0.5, 4, "above").shape == (8, 20)


def test_the_cut_runs_where_both_agree() -> None:
    """Both have a 5 and a 7 at other places in the band; between them lies a column on which they agree."""
    first, second = table(*["1111500000"] * 6), table(*["0000700222"] * 6)
    made = mix(first, second, 1.0, 6, "beside")
    assert made.shape == (6, 14)
    assert made.tolist() == [[1, 1, 1, 1, 5, 0, 0, 0, 7, 0, 0, 2, 2, 2]] * 6


def test_the_second_is_slid_to_fit() -> None:
    """Horizons of rows 5 and 7 of 20: the mixture has one horizon."""
    first, second = np.ones((20, 12), np.uint8), np.ones((20, 12), np.uint8)
    first[5:], second[7:] = 2, 2
    made = mix(first, second, 0.5, 4, "beside")
    assert made.shape == (18, 12)
    assert all((row == row[0]).all() for row in made)


@given(
    first=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    second=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    share=st.floats(0.05, 1),
    border=st.integers(0, 30),
    direction=st.sampled_from(["beside", "above"]),
)
def test_any_two_sizes_mix(
    first: tuple[int, int], second: tuple[int, int], share: float, border: int, direction: str
) -> None:
    a, b = np.full(first, 3, np.uint8), np.full(second, 4, np.uint8)
    made = mix(a, b, share, border, direction)  # type: ignore[arg-type]
    assert made.dtype == np.uint8
    assert made.size
    assert set(np.unique(made)) <= {3, 4}


def test_a_region_is_set_free() -> None:
    region = np.zeros((5, 7), np.bool_)
    region[2, 3] = True
    ids = np.full((5, 7), 9, np.uint8)
    assert np.argwhere(set_free(ids, region, 0, 255) == 255).tolist() == [[2, 3]]
    assert (set_free(ids, region, 1, 255) == 255).sum() == 5
    assert (ids == 9).all()


@pytest.mark.parametrize("size", [(1, 1), (2, 6)])
def test_a_smaller_canvas_cuts(size: tuple[int, int]) -> None:
    assert resize_canvas(IDS, size, "top-left").shape == size
    assert resize_canvas(IDS, size, "top-left")[0, 0] == 1
