"""What cross-validation teaches about labels that nobody checked.

Every pixel falls in a stratum: the class that the model says, and how sure it is. The held-out paintings show
what the pixels of a stratum truly are: so many in a hundred road, so many water. The pseudo masks and their
confidence maps say how many pixels of each stratum the other paintings have. Together they give the confusion
matrix that the pseudo masks can be expected to have, though nobody knows the truth of them; and drawing the
hand-annotated paintings again and again, with replacement, how far off that may be. That each fold is one training,
and the pseudo-labels those of one more, is paid for by the quantile: Student's t of as many trainings as folds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from annotate.classes import UNLABELLED
from segment.scores import Scores, score

LEVELS = 256  # of a confidence map: confidence * 255, rounded
GROUPS = 10  # parts of one class's pixels, by level, as large as each other
NEAR = 4  # levels on each side that are taken together
PRIOR = 0.02  # of a painting's pixels: as much as what is known of the surroundings weighs
MOST_LOST = 0.5  # a threshold takes at most this share of a class's pixels away
DRAWS = 300  # of the bootstrap
COVERED = 0.9  # the share of cases in which the truth should lie in an interval

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Estimate:
    """One figure of the pseudo-labels, 0 to 1, with the interval in which the truth should lie."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Quality:
    """What the pseudo-labels are expected to reach."""

    paintings: int  # that have pseudo-labels
    miou: Estimate
    pixel_accuracy: Estimate
    classes: tuple[tuple[str, Estimate], ...]  # IoU, of each class that can be told


@dataclass(frozen=True)
class Calibration:
    """Held-out pixels of the hand set, counted.

    Args:
        rows: (M, 5) painting, class said, level, true class, pixels. A painting has a number from 0.
        n_classes: K.
        paintings: N.
    """

    rows: Counts
    n_classes: int
    paintings: int

    def confusion(self) -> Counts:
        """(K, K + 1) as `segment.scores.confusion` counts; no pixel is unlabelled."""
        _, said, _, true, pixels = self.rows.T
        k = self.n_classes
        found = np.bincount(true * (k + 1) + said, pixels, k * (k + 1))
        return found.reshape(k, k + 1).astype(np.int64)

    def table(self, weights: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Pixels by class said, level and true class: (K, LEVELS, K).

        Args:
            weights: (N,) how often each painting counts.
        """
        painting, said, level, true, pixels = self.rows.T
        k = self.n_classes
        counted = pixels if weights is None else pixels * weights[painting]
        found = np.bincount((said * LEVELS + level) * k + true, counted, k * LEVELS * k)
        pixels_of: NDArray[np.float64] = np.asarray(found, np.float64).reshape(k, LEVELS, k)
        return pixels_of

    def reliability(self, bins: int = 10) -> list[tuple[float, float, float]]:
        """(mean confidence, share that is right, share of the pixels) of equally wide bins of confidence."""
        table = self.table()
        pixels, right = table.sum((0, 2)), np.einsum("klk->l", table)
        which = np.arange(LEVELS) * bins // LEVELS
        found = []
        for one in range(bins):
            inside = which == one
            count = pixels[inside].sum()
            if count:
                mean = (pixels * np.arange(LEVELS))[inside].sum() / count / (LEVELS - 1)
                found.append((float(mean), float(right[inside].sum() / count), float(count / pixels.sum())))
        return found

    def thresholds(self, precision: float) -> NDArray[np.int64]:
        """The lowest level of each class from which on so many of its pixels are right: (K,).

        Where none reaches that, or only one that would take more than MOST_LOST of the class away: the level
        that keeps just enough. A class that was never said has none (0).
        """
        table = self.table()
        levels = np.zeros(self.n_classes, np.int64)
        for k in range(self.n_classes):
            kept = table[k].sum(1)[::-1].cumsum()[::-1]  # (LEVELS,) at this level or above
            right = table[k, :, k][::-1].cumsum()[::-1]
            if kept[0] > 0:
                allowed = int(np.flatnonzero(kept >= (1 - MOST_LOST) * kept[0])[-1])
                good = np.flatnonzero(right[: allowed + 1] >= precision * kept[: allowed + 1])
                levels[k] = good[0] if len(good) else allowed
        return levels

    def shares(
        self, thresholds: NDArray[np.int64], weights: NDArray[np.float64] | None = None
    ) -> NDArray[np.float64]:
        """How the true classes share each stratum: (K + 1, LEVELS, K), each line 1 together.

        Args:
            thresholds: (K,) levels below which a class's pixels were left unlabelled; these are row K.
            weights: as in `table`.
        """
        said = self.table(weights)  # (K, LEVELS, K)
        below = np.arange(LEVELS)[None] < thresholds[:, None]  # (K, LEVELS)
        table = np.concatenate([said, (said * below[..., None]).sum(0)[None]])  # (K + 1, LEVELS, K)
        a_painting = said.sum() / self.paintings
        return np.stack([self._smooth(one, k, a_painting) for k, one in enumerate(table)])

    def _smooth(self, table: NDArray[np.float64], k: int, a_painting: float) -> NDArray[np.float64]:
        """Shares (LEVELS, K) of one line of strata, from its pixels (LEVELS, K).

        Each level is seen with its neighbours; where these have few pixels, the class's tenth that it lies in
        counts more, and where that has few, the class as a whole.
        """
        whole = table.sum(0) + 1e-6 * a_painting * _unit(k, self.n_classes)
        weight = PRIOR * a_painting
        mass = table.sum(1)
        middle = (mass.cumsum() - mass / 2) / max(mass.sum(), 1e-9)
        group = np.minimum((middle * GROUPS).astype(int), GROUPS - 1)  # (LEVELS,)
        together = np.tile(weight * whole / whole.sum(), (GROUPS, 1))
        np.add.at(together, group, table)
        wide = (together / together.sum(1, keepdims=True))[group]
        sums = np.concatenate([np.zeros((1, self.n_classes)), table.cumsum(0)])
        levels = np.arange(LEVELS)
        near = (
            sums[np.minimum(levels + NEAR + 1, LEVELS)] - sums[np.maximum(levels - NEAR, 0)] + weight * wide
        )
        shares: NDArray[np.float64] = near / near.sum(1, keepdims=True)
        return shares


def count_pixels(
    painting: int,
    said: NDArray[np.uint8],
    levels: NDArray[np.uint8],
    truth: NDArray[np.uint8],
    n_classes: int,
) -> Counts:
    """Rows (M, 5) of `Calibration` for one held-out painting.

    Args:
        said: (H, W) class indices; every pixel has one.
        levels: (H, W) confidence * 255.
        truth: (H, W) class indices; 255 is not counted.
    """
    known = truth != UNLABELLED
    code = (said[known].astype(np.int64) * LEVELS + levels[known]) * n_classes + truth[known]
    codes, pixels = np.unique(code, return_counts=True)
    rest, true = np.divmod(codes, n_classes)
    one, level = np.divmod(rest, LEVELS)
    return np.stack([np.full_like(codes, painting), one, level, true, pixels], 1)


def count_labels(said: NDArray[np.uint8], levels: NDArray[np.uint8], n_classes: int) -> Counts:
    """Pixels of one pseudo mask by class said and level: (K + 1, LEVELS); the last line is the unlabelled."""
    row = np.where(said == UNLABELLED, n_classes, said).astype(np.int64)
    found = np.bincount((row * LEVELS + levels).ravel(), minlength=(n_classes + 1) * LEVELS)
    return found.reshape(n_classes + 1, LEVELS)


def expected(labels: Counts, shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """The confusion matrix (K, K + 1) that labels (K + 1, LEVELS) have if their strata are shared so."""
    matrix: NDArray[np.float64] = np.einsum("sl,slt->ts", labels.astype(float), shares)
    return matrix


def estimate(
    calibration: Calibration,
    labels: Counts,
    paintings: int,
    thresholds: NDArray[np.int64],
    names: Sequence[str],
    folds: int,
    seed: int = 0,
) -> Quality:
    """What the pseudo-labels are expected to reach against the truth that nobody knows.

    Args:
        labels: (K + 1, LEVELS) `count_labels` of all pseudo masks together.
        paintings: how many masks these are.
        thresholds: (K,) levels that they were made with; zeros for none.
        names: of the classes.
        folds: trainings that the calibration comes from, at least 2.
        seed: of the bootstrap.
    """
    middle = _figures(score(expected(labels, calibration.shares(thresholds)), list(names)))  # (2 + K,)
    rng = np.random.default_rng(seed)
    n = calibration.paintings
    drawn = []
    for _ in range(DRAWS):
        weights = np.bincount(rng.integers(n, size=n), minlength=n).astype(float)
        drawn.append(_figures(score(expected(labels, calibration.shares(thresholds, weights)), list(names))))
    # the labelled paintings are a sample too: their own luck comes on top
    known = np.isfinite(drawn).any(0)  # the others have no spread
    spread = np.full(len(middle), np.nan)
    spread[known] = np.nanstd(np.array(drawn)[:, known], 0) * np.sqrt(1 + n / max(paintings, 1))
    # and so is the training: a normal distribution's 1.645 held the truth in 15 of 20 draws (docs/bench-trust.md)
    reach = stdtrit(folds - 1, (1 + COVERED) / 2) * spread
    low, high = np.clip(middle - reach, 0, 1), np.clip(middle + reach, 0, 1)
    found = [Estimate(*map(float, three)) for three in zip(middle, low, high, strict=True)]
    told = [(name, one) for name, one in zip(names, found[2:], strict=True) if np.isfinite(one.value)]
    return Quality(paintings, found[0], found[1], tuple(told))


def _figures(scores: Scores) -> NDArray[np.float64]:
    """mIoU, pixel accuracy, and the IoU of each class, NaN where it has none: (2 + K,)."""
    each = [np.nan if one.iou is None else one.iou for one in scores.classes]
    return np.array([scores.miou, scores.pixel_accuracy, *each])


def _unit(k: int, n_classes: int) -> NDArray[np.float64]:
    """All on class k; evenly spread for the unlabelled line."""
    return np.eye(n_classes)[k] if k < n_classes else np.full(n_classes, 1 / n_classes)
