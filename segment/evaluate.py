"""How good the labels are: cross-validated on the hand masks, and scored against true masks where there are any.

Nobody knows the truth about the pseudo-labels. So each part of the hand set is labelled by a model of the other
parts, and what that teaches about right and wrong is carried over to the pseudo masks: see `segment.calibrate`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annotate.classes import ClassTable
from annotate.errors import UserError
from annotate.masks import Encoding, mask_encoding, read_mask, unshift
from annotate.paintings import read_index
from annotate.progress import Stopwatch, note, progress
from annotate.workspace import Workspace
from segment.calibrate import LEVELS, Calibration, Quality, count_labels, count_pixels, estimate
from segment.config import EvaluateConfig
from segment.data import read_labels
from segment.device import choose_device
from segment.folds import cross_validate
from segment.label import current_labels, read_confidence
from segment.model import saved_config
from segment.scores import Scores, confusion, score
from segment.thresholds import save_thresholds


@dataclass(frozen=True)
class EvaluateResult:
    """The scores, what they were measured on, and what they say about the other labels."""

    method: str  # "folds" or "truth"
    paintings: int  # that were scored
    scores: Scores
    confusion: list[list[int]]  # (K, K + 1): rows are the truth, the last column is unlabelled
    reliability: list[tuple[float, float, float]]  # (mean confidence, share right, share of the pixels)
    thresholds: dict[str, float]  # learnt, by class
    estimate: Quality | None  # of the pseudo-labels; None without them, or without cross-validation
    ranking: tuple[str, ...]  # keys of the pseudo masks, the least sure first
    seconds: float

    def report(self) -> dict[str, Any]:
        """What reports/segment-evaluate.json holds; the scores stand at its top."""
        value = asdict(self)
        scores: dict[str, Any] = value.pop("scores")
        return scores | value

    def text(self) -> str:
        how = "cross-validated on" if self.method == "folds" else "against the truth of"
        lines = [self.scores.table(), f"{how} {self.paintings} paintings"]
        if self.estimate is not None:
            one = self.estimate
            lines.append(
                f"expected of the {one.paintings} pseudo-labelled paintings: mIoU {_span(one.miou)}, "
                f"pixel accuracy {_span(one.pixel_accuracy)}"
            )
        elif self.method == "folds":
            lines.append(
                "then: tool segment pseudo-label, and this again for an estimate of what it labelled"
            )
        return "\n".join(lines)


def evaluate(workspace: Workspace, config: EvaluateConfig, device: str = "auto") -> EvaluateResult:
    """Cross-validate on the hand set; with `config.truth`, score the pseudo masks against true ones instead.

    Raises:
        UserError: too few masks, or as `cross_validate` and `against_truth`.
    """
    watch = Stopwatch()
    classes = workspace.settings().classes
    thresholds: NDArray[np.int64] = np.zeros(len(classes), np.int64)
    learnt: Calibration | None = None
    quality: Quality | None = None
    if config.truth is None:
        learnt, mark = cross_validate(workspace, config.folds, choose_device(device))
        thresholds = learnt.thresholds(config.precision)
        save_thresholds(workspace, mark, thresholds, classes)
        calibration, matrix, count = learnt, learnt.confusion(), learnt.paintings
    else:
        calibration, matrix = against_truth(workspace, config.truth, config.encoding)
        count = calibration.paintings
    labels, sureness, used = _labels(workspace, classes, learnt)
    if learnt is not None and sureness:
        quality = estimate(learnt, labels, len(sureness), used, classes.names, config.folds)
    return EvaluateResult(
        "folds" if learnt is not None else "truth",
        count,
        score(matrix, classes.names),
        matrix.tolist(),
        calibration.reliability(),
        {name: float(level) / (LEVELS - 1) for name, level in zip(classes.names, thresholds, strict=True)}
        if learnt is not None
        else {},
        quality,
        tuple(sorted(sureness, key=lambda key: (sureness[key], key))),
        watch.seconds(),
    )


def against_truth(
    workspace: Workspace, truth: Path, encoding: str | None = None
) -> tuple[Calibration, NDArray[np.int64]]:
    """Compare each pseudo mask with TRUTH/KEY.png.

    Args:
        encoding: `raw` or `shifted`: what true masks without a text chunk hold.

    Returns:
        The labelled pixels by confidence, and the confusion matrix (K, K + 1).

    Raises:
        UserError: no folder, no pair, another size, an id outside the classes, or nothing labelled; the line names
            the file.
    """
    if not truth.is_dir():
        raise UserError(f"--truth {truth}: no such folder; give the folder with the true masks")
    classes = workspace.settings().classes
    hand = set(workspace.keys_with_mask("hand"))
    index = read_index(workspace)
    keys = [key for key in workspace.keys_with_mask("pseudo") if key in index and key not in hand]
    keys = [key for key in keys if (truth / f"{key}.png").exists()]
    if not keys:
        raise UserError(
            f"--truth {truth}: no KEY.png in it belongs to a pseudo mask; run `tool segment pseudo-label`, "
            "and name the true masks like the paintings"
        )
    matrix = np.zeros((len(classes), len(classes) + 1), np.int64)
    rows = []
    with progress("Comparing", len(keys)) as advance:
        for number, key in enumerate(keys):
            size = index[key].size
            true = _read_truth(truth / f"{key}.png", encoding, size, classes)
            said = read_labels(workspace, "pseudo", key, size, classes)
            matrix += confusion(true, said, len(classes))
            known = np.where(said < len(classes), true, 255).astype(np.uint8)
            levels = read_confidence(workspace, key, true.shape)
            rows.append(count_pixels(number, said, levels, known, len(classes)))
            advance()
    if not matrix.any():
        raise UserError(
            f"--truth {truth}: no pixel of its masks is labelled (all are 255, or 0 where shifted)"
        )
    return Calibration(np.concatenate(rows), len(classes), len(keys)), matrix


def _labels(
    workspace: Workspace, classes: ClassTable, learnt: Calibration | None
) -> tuple[NDArray[np.int64], dict[str, float], NDArray[np.int64]]:
    """The pseudo masks of the current model: counted, and how sure each is (the share expected to be right).

    Returns:
        (K + 1, LEVELS) pixels, sureness by key, and the (K,) thresholds that they were made with.
    """
    total = np.zeros((len(classes) + 1, LEVELS), np.int64)
    sureness: dict[str, float] = {}
    if saved_config(workspace) is None:
        return total, sureness, np.zeros(len(classes), np.int64)
    keys, thresholds = current_labels(workspace)
    # without anything learnt: confidence itself
    right = np.tile(np.arange(LEVELS) / (LEVELS - 1), (len(classes) + 1, 1))  # (K + 1, LEVELS)
    if learnt is not None:
        right = np.einsum("klk->kl", learnt.shares(thresholds)[:-1])
        right = np.concatenate([right, np.zeros((1, LEVELS))])
    for key, labels in _counted(workspace, keys, classes):
        total += labels
        sureness[key] = float((labels * right).sum() / labels.sum())
    return total, sureness, thresholds


def _counted(
    workspace: Workspace, keys: list[str], classes: ClassTable
) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """`count_labels` of each pseudo mask that can be read."""
    with progress("Reading the pseudo masks", len(keys)) as advance:
        for key in keys:
            try:
                ids = read_mask(workspace.mask("pseudo", key), Encoding.RAW)
                said = classes.to_index(ids)
                yield key, count_labels(said, read_confidence(workspace, key, said.shape), len(classes))
            except UserError as error:
                note(f"left out: {error.message}")
            advance()


def _read_truth(
    path: Path, encoding: str | None, size: tuple[int, int], classes: ClassTable
) -> NDArray[np.uint8]:
    """A true mask as class indices (H, W), of its painting's size; either encoding will do."""
    foreign = {"raw": Encoding.RAW, "shifted": Encoding.SHIFTED}.get(encoding or "")
    said = mask_encoding(path) or foreign or Encoding.RAW
    ids = read_mask(path, said, foreign)
    if ids.shape != size:
        raise UserError(
            f"{path}: the true mask is {ids.shape[0]} x {ids.shape[1]}, its painting {size[0]} x {size[1]}; "
            "give one of that size"
        )
    try:
        return classes.to_index(unshift(ids) if said is Encoding.SHIFTED else ids)
    except UserError as error:
        raise UserError(f"{path}: {error.message}") from error


def _span(one: Any) -> str:
    return f"{100 * one.value:.1f} ({100 * one.low:.1f} to {100 * one.high:.1f})"
