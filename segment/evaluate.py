"""How well the labels do: k-fold cross-validation on the hand set, or a comparison with true masks."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from annotate.classes import ClassTable
from annotate.errors import UserError
from annotate.files import read_json, write_json
from annotate.masks import Encoding, read_mask, unshift
from annotate.paintings import load_painting, read_index
from annotate.progress import note, progress
from annotate.workspace import Workspace
from segment.config import EvaluateConfig, TrainConfig
from segment.data import Sample, load_samples, read_labels
from segment.device import choose_device
from segment.model import Segmenter, saved_config
from segment.predict import predict_map
from segment.scores import Scores, confusion, score
from segment.train import fingerprint, fit


@dataclass(frozen=True)
class EvaluateResult:
    """The scores, and what they were measured on."""

    method: str  # "folds" or "truth"
    paintings: int
    seconds: float
    scores: Scores


def evaluate(workspace: Workspace, config: EvaluateConfig, device: str = "auto") -> EvaluateResult:
    """Score the pseudo masks against `config.truth`; without it, cross-validate on the hand set.

    Raises:
        UserError: too few masks, or as `cross_validate` and `against_truth`.
    """
    started = time.monotonic()
    if config.truth is not None:
        count, matrix = against_truth(workspace, config.truth, config.encoding)
    else:
        count, matrix = cross_validate(workspace, config.folds, choose_device(device))
    scores = score(matrix, workspace.settings().classes.names)
    seconds = round(time.monotonic() - started, 1)
    return EvaluateResult("folds" if config.truth is None else "truth", count, seconds, scores)


def against_truth(
    workspace: Workspace, truth: Path, encoding: str | None = None
) -> tuple[int, NDArray[np.int64]]:
    """Compare each pseudo mask with TRUTH/KEY.png.

    Args:
        encoding: `raw` or `shifted`: what true masks without a text chunk hold.

    Returns:
        How many were compared, and their confusion matrix (K, K + 1).

    Raises:
        UserError: no folder, no pair, another size, or an id outside the classes; the line names the file.
    """
    if not truth.is_dir():
        raise UserError(f"--truth {truth}: no such folder; give the folder with the true masks")
    classes = workspace.settings().classes
    hand = set(workspace.keys_with_mask("hand"))
    keys = [key for key in workspace.keys_with_mask("pseudo") if key not in hand]
    keys = [key for key in keys if (truth / f"{key}.png").exists()]
    if not keys:
        raise UserError(
            f"--truth {truth}: no KEY.png in it belongs to a pseudo mask; run `tool segment pseudo-label`, "
            "and name the true masks like the paintings"
        )
    matrix = np.zeros((len(classes), len(classes) + 1), np.int64)
    with progress("Comparing", len(keys)) as advance:
        for key in keys:
            true = _read_truth(truth / f"{key}.png", encoding, classes)
            predicted = read_labels(workspace, "pseudo", key, true.shape, classes)
            matrix += confusion(true, predicted, len(classes))
            advance()
    return len(keys), matrix


def cross_validate(workspace: Workspace, folds: int, device: torch.device) -> tuple[int, NDArray[np.int64]]:
    """Predict each part of the hand set by a model of the other parts, trained as models/deeplab was.

    A fold that is done is not repeated, and a killed one goes on.

    Returns:
        How many paintings were predicted, and their confusion matrix (K, K + 1).

    Raises:
        UserError: fewer masks than folds, or as `segment.train.train`.
    """
    saved = saved_config(workspace)
    if saved is None:
        note("no model yet: the folds are trained with the default settings")
    config = TrainConfig(**saved["train"]) if saved else TrainConfig()
    classes = workspace.settings().classes
    samples = load_samples(workspace, classes, config.smallest_side)
    if len(samples) < folds:
        raise UserError(
            f"{workspace.masks('hand')}: {len(samples)} usable masks are too few for {folds} folds; "
            f"use --folds {len(samples)}"
            if len(samples) > 1
            else f"{workspace.masks('hand')}: one usable mask cannot be cross-validated; annotate more"
        )
    root = workspace.model("deeplab") / "folds"
    mark = f"{fingerprint(samples, classes, config)}-{folds}"
    order = np.random.default_rng((config.seed, 4)).permutation(len(samples)).tolist()
    matrix = np.zeros((len(classes), len(classes) + 1), np.int64)
    for number in range(folds):
        held_out = {samples[n].key for n in order[number::folds]}
        done = root / f"{number}.json"
        found = _finished(done, f"{mark}-{number}")
        if found is None:
            learn = [one for one in samples if one.key not in held_out]
            found = _fold(
                workspace, learn, held_out, classes, config, device, f"{mark}-{number}", number, folds
            )
            write_json(done, {"mark": f"{mark}-{number}", "matrix": found})
            shutil.rmtree(root / str(number), ignore_errors=True)
        matrix += np.array(found, np.int64)
    return len(samples), matrix


def _fold(
    workspace: Workspace,
    learn: Sequence[Sample],
    held_out: set[str],
    classes: ClassTable,
    config: TrainConfig,
    device: torch.device,
    mark: str,
    number: int,
    folds: int,
) -> list[list[int]]:
    """Train on `learn` and count how the held-out paintings are labelled, at their own size."""
    folder = workspace.model("deeplab") / "folds" / str(number)
    fitted = fit(learn, [], classes, config, device, folder, mark, f"Fold {number + 1} of {folds}")
    segmenter = Segmenter(fitted.net.to(device), classes, config.smallest_side, mark, device)
    matrix = np.zeros((len(classes), len(classes) + 1), np.int64)
    for key, painting in read_index(workspace).items():
        if key in held_out:
            image = load_painting(painting.file(workspace))
            truth = read_labels(workspace, "hand", key, image.shape[:2], classes)
            matrix += confusion(truth, predict_map(segmenter, image)[0], len(classes))
    counts: list[list[int]] = matrix.tolist()
    return counts


def _finished(path: Path, mark: str) -> Any:
    """The confusion matrix of a fold that was finished with the same masks and settings; else None."""
    if not path.exists():
        return None
    found = read_json(path)
    return found["matrix"] if found.get("mark") == mark else None


def _read_truth(path: Path, encoding: str | None, classes: ClassTable) -> NDArray[np.uint8]:
    """A true mask as class indices; either encoding will do."""
    from annotate.masks import mask_encoding

    foreign = {"raw": Encoding.RAW, "shifted": Encoding.SHIFTED}.get(encoding or "")
    said = mask_encoding(path) or foreign or Encoding.RAW
    ids = read_mask(path, said, foreign)
    try:
        return classes.to_index(unshift(ids) if said is Encoding.SHIFTED else ids)
    except UserError as error:
        raise UserError(f"{path}: {error.message}") from error


def report(result: EvaluateResult) -> dict[str, Any]:
    """What reports/segment-evaluate.json holds."""
    value: dict[str, Any] = json.loads(json.dumps(result.scores.to_dict()))
    return {"method": result.method, "paintings": result.paintings, "seconds": result.seconds} | value
