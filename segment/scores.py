"""How well masks agree with the truth: the confusion matrix and the figures read off it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annotate.classes import UNLABELLED


@dataclass(frozen=True)
class ClassScore:
    """One class. NaN never appears: what cannot be told is None."""

    name: str
    iou: float | None  # None: neither in the truth nor predicted
    precision: float | None  # None: never predicted
    recall: float | None  # None: not in the truth
    pixels: int  # in the truth


@dataclass(frozen=True)
class Scores:
    """The whole set. mIoU is the mean over the classes that the truth shows."""

    miou: float
    pixel_accuracy: float  # of the pixels that have a predicted class
    coverage: float  # share of the truth's pixels that have a predicted class
    classes: tuple[ClassScore, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def table(self) -> str:
        """One line a class."""
        lines = [f"{'class':<16}{'IoU':>8}{'precision':>11}{'recall':>8}{'pixels':>11}"]
        for one in self.classes:
            cells = [_percent(value) for value in (one.iou, one.precision, one.recall)]
            lines.append(f"{one.name:<16}{cells[0]:>8}{cells[1]:>11}{cells[2]:>8}{one.pixels:>11}")
        lines.append(f"mIoU {_percent(self.miou)}, pixel accuracy {_percent(self.pixel_accuracy)}")
        return "\n".join(lines)


def confusion(truth: NDArray[np.uint8], predicted: NDArray[np.uint8], n_classes: int) -> NDArray[np.int64]:
    """Count pixels by true and predicted class.

    Args:
        truth: (H, W) class indices; 255 is not counted.
        predicted: (H, W) class indices; 255 counts as the last column.

    Returns:
        (K, K + 1): rows are the truth.
    """
    if truth.shape != predicted.shape:
        raise ValueError(f"truth {truth.shape} and predicted {predicted.shape} differ in shape")
    known = truth != UNLABELLED
    columns = np.where(predicted == UNLABELLED, n_classes, predicted)[known].astype(np.int64)
    rows = truth[known].astype(np.int64)
    counts = np.bincount(rows * (n_classes + 1) + columns, minlength=n_classes * (n_classes + 1))
    return counts.reshape(n_classes, n_classes + 1)


def score(matrix: NDArray[np.int64] | NDArray[np.float64], names: list[str]) -> Scores:
    """Figures of a confusion matrix (K, K + 1): counted, or expected."""
    hits = np.diag(matrix[:, :-1])
    true, said = matrix.sum(1), matrix[:, :-1].sum(0)
    union = true + said - hits
    classes = tuple(
        ClassScore(
            name,
            _share(hits[k], union[k]),
            _share(hits[k], said[k]),
            _share(hits[k], true[k]),
            int(true[k]),
        )
        for k, name in enumerate(names)
    )
    shown = [one.iou for one in classes if one.pixels and one.iou is not None]
    return Scores(
        float(np.mean(shown)) if shown else 0.0,
        _share(hits.sum(), said.sum()) or 0.0,
        _share(said.sum(), true.sum()) or 0.0,
        classes,
    )


def _share(part: Any, whole: Any) -> float | None:
    return float(part / whole) if whole else None


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
