"""What held-out pixels teach: counts by hand, thresholds, and an estimate that is right where its premise holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from annotate.classes import ClassTable
from annotate.workspace import Workspace
from segment.calibrate import (
    LEVELS,
    Calibration,
    count_labels,
    count_pixels,
    estimate,
    expected,
)
from segment.scores import confusion, score
from segment.thresholds import learnt_thresholds, save_thresholds

NONE = np.zeros(2, np.int64)


def map_of(*lines: list[int]) -> NDArray[np.uint8]:
    return np.array(lines, np.uint8)


SAID = map_of([0, 0, 1], [1, 1, 0])
LEVEL = map_of([200, 200, 50], [50, 90, 10])
TRUE = map_of([0, 1, 1], [1, 0, 255])


def by_hand() -> Calibration:
    return Calibration(count_pixels(0, SAID, LEVEL, TRUE, 2), 2, 1)


def test_pixels_are_counted_as_a_hand_would() -> None:
    rows = sorted(by_hand().rows.tolist())
    assert rows == [[0, 0, 200, 0, 1], [0, 0, 200, 1, 1], [0, 1, 50, 1, 2], [0, 1, 90, 0, 1]]
    assert (by_hand().confusion() == confusion(TRUE, SAID, 2)).all()


def test_reliability() -> None:
    low, high = by_hand().reliability(bins=2)
    assert low == pytest.approx(((50 * 2 + 90) / 3 / 255, 2 / 3, 0.6))
    assert high == pytest.approx((200 / 255, 0.5, 0.4))


def test_labels_are_counted_with_the_unlabelled_last() -> None:
    said = map_of([0, 1, 255])
    found = count_labels(said, map_of([3, 4, 5]), 2)
    assert found.shape == (3, LEVELS)
    assert [found[0, 3], found[1, 4], found[2, 5], found.sum()] == [1, 1, 1, 3]


@pytest.mark.parametrize(
    ("rows", "precision", "level"),
    [
        ([(10, 1, 4), (20, 0, 6)], 0.9, 11),  # the upper ones are all right
        ([(10, 1, 4), (20, 0, 6)], 0.5, 0),  # all together are good enough
        ([(10, 1, 9), (20, 0, 1)], 0.9, 10),  # to reach it would take nine tenths away
        ([(10, 1, 4), (20, 1, 6)], 0.9, 20),  # nothing reaches it: what takes at most half
    ],
)
def test_thresholds(rows: list[tuple[int, int, int]], precision: float, level: int) -> None:
    """Each row: level, true class, pixels; class 0 was said, and class 1 never."""
    counted = np.array([[0, 0, at, true, pixels] for at, true, pixels in rows])
    assert Calibration(counted, 2, 1).thresholds(precision).tolist() == [level, 0]


def simulated(
    rng: np.random.Generator, count: int, sure: float, luck: float = 0.0
) -> list[NDArray[np.uint8]]:
    """Stacks (3, 40, 50) of said, level and true: a pixel of level l is right in l of 255 cases, plus `luck`."""
    found = []
    for _ in range(count):
        level = (255 * rng.beta(5 * sure, 5 * (1 - sure), (40, 50))).astype(np.uint8)
        said = (rng.random((40, 50)) < 0.3).astype(np.uint8)
        right = rng.random((40, 50)) < level / 255 + luck
        found.append(np.stack([said, level, np.where(right, said, 1 - said)]).astype(np.uint8))
    return found


@pytest.mark.parametrize("limit", [0, 150])
def test_the_estimate_holds_where_a_level_means_the_same(limit: int) -> None:
    """The other paintings are surer than the annotated ones; plain cross-validation would be far off."""
    rng = np.random.default_rng(0)
    hand, rest = simulated(rng, 20, 0.6), simulated(rng, 60, 0.85)
    learnt = Calibration(
        np.concatenate([count_pixels(n, one[0], one[1], one[2], 2) for n, one in enumerate(hand)]), 2, 20
    )
    labels = np.zeros((3, LEVELS), np.int64)
    matrix = np.zeros((2, 3), np.int64)
    for said, level, true in rest:
        kept = np.where(level < limit, 255, said).astype(np.uint8)
        labels += count_labels(kept, level, 2)
        matrix += confusion(true, kept, 2)
    truth, plain = score(matrix, ["a", "b"]), score(learnt.confusion(), ["a", "b"])
    told = estimate(learnt, labels, 60, np.full(2, limit), ["a", "b"], 5)
    assert told.miou.value == pytest.approx(truth.miou, abs=0.025)
    assert told.miou.low < told.miou.value < told.miou.high
    assert told.pixel_accuracy.value == pytest.approx(truth.pixel_accuracy, abs=0.02)
    assert [name for name, _ in told.classes] == ["a", "b"]
    assert limit or abs(plain.miou - truth.miou) > 0.15


def test_the_interval_holds_the_truth_where_trainings_differ() -> None:
    """Of four folds and the model of the pseudo-labels each is luckier or unluckier by a point; so is
    each painting, by 5."""
    rng = np.random.default_rng(0)
    held, draws = 0, 40
    for _ in range(draws):
        rows = []
        for fold in range(4):
            training = rng.normal(0, 0.01)
            for n in range(fold * 5, fold * 5 + 5):
                ((said, level, true),) = simulated(rng, 1, 0.6, training + rng.normal(0, 0.05))
                rows.append(count_pixels(n, said, level, true, 2))
        training, labels, matrix = rng.normal(0, 0.01), np.zeros((3, LEVELS), np.int64), np.zeros((2, 3), int)
        for _ in range(60):
            ((said, level, true),) = simulated(rng, 1, 0.6, training + rng.normal(0, 0.05))
            labels += count_labels(said, level, 2)
            matrix += confusion(true, said, 2)
        told = estimate(Calibration(np.concatenate(rows), 2, 20), labels, 60, NONE, ["a", "b"], 4)
        held += told.miou.low <= score(matrix, ["a", "b"]).miou <= told.miou.high
    assert 0.85 * draws <= held < draws  # nominal 0.9


def test_the_shares_of_a_stratum_are_one_together_and_expect_all_pixels() -> None:
    shares = by_hand().shares(np.array([0, 60]))
    assert shares.shape == (3, LEVELS, 2)
    np.testing.assert_allclose(shares.sum(2), 1)
    assert shares[2, 50].argmax() == 1  # the unlabelled were said to be class 1, and were
    labels = np.arange(3 * LEVELS).reshape(3, LEVELS)
    assert expected(labels, shares).sum() == pytest.approx(labels.sum())


def test_thresholds_speak_for_one_model_and_its_classes(tmp_path: Path) -> None:
    workspace, classes = Workspace(tmp_path), ClassTable()
    assert learnt_thresholds(workspace, "m", classes) is None
    save_thresholds(workspace, "m", np.arange(6), classes)
    found = learnt_thresholds(workspace, "m", classes)
    assert found is not None
    assert found.tolist() == list(range(6))
    assert learnt_thresholds(workspace, "other", classes) is None
    assert learnt_thresholds(workspace, "m", ClassTable(classes.classes[:3])) is None
