"""The confusion matrix and the figures read off it, against a table drawn by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from annotate.classes import UNLABELLED
from segment.scores import confusion, score

U = UNLABELLED
TRUTH = np.array([[0, 0, 0, 1], [0, 1, 1, 1], [U, U, 1, 1]], np.uint8)
SAID = np.array([[0, 0, 1, 1], [0, 1, 1, 0], [2, 1, U, 1]], np.uint8)


def test_hand_drawn_table() -> None:
    matrix = confusion(TRUTH, SAID, 3)
    assert matrix.tolist() == [[3, 1, 0, 0], [1, 4, 0, 1], [0, 0, 0, 0]]
    found = score(matrix, ["a", "b", "c"])
    assert found.classes[0].iou == pytest.approx(3 / 5)
    assert found.classes[1].iou == pytest.approx(4 / 7)
    assert found.classes[1].precision == pytest.approx(4 / 5)
    assert found.classes[1].recall == pytest.approx(4 / 6)
    assert (found.classes[2].iou, found.classes[2].recall, found.classes[2].pixels) == (None, None, 0)
    assert found.miou == pytest.approx((3 / 5 + 4 / 7) / 2)
    assert found.pixel_accuracy == pytest.approx(7 / 9)
    assert found.coverage == pytest.approx(9 / 10)
    assert "c                      -          -       -          0" in found.table()


masks = arrays(np.uint8, (5, 7), elements=st.sampled_from([0, 1, 2, U]))


@given(masks, masks)
def test_every_labelled_pixel_is_counted_once(truth: np.ndarray, said: np.ndarray) -> None:  # type: ignore[type-arg]
    matrix = confusion(truth, said, 3)
    assert matrix.sum() == (truth != U).sum()
    found = score(matrix, ["a", "b", "c"])
    assert 0 <= found.miou <= 1
    assert 0 <= found.coverage <= 1
    if (truth != U).any():
        assert score(confusion(truth, truth, 3), ["a", "b", "c"]).miou == 1


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        confusion(TRUTH, SAID.T, 3)
