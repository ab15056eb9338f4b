"""k-fold cross-validation on the hand set, and what is kept of it."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from annotate.classes import ClassTable
from annotate.errors import UserError
from annotate.files import whole_file
from annotate.paintings import load_painting, read_index
from annotate.progress import note
from annotate.workspace import Workspace
from segment.calibrate import Calibration, count_pixels
from segment.config import FIRST_WEIGHTS, LabelConfig, TrainConfig
from segment.data import load_samples, read_labels
from segment.inference import Inference
from segment.model import Segmenter, saved_config
from segment.predict import predict_map, to_levels
from segment.rounds import FOLDER
from segment.train import fingerprint, fit, unlabelled


def cross_validate(workspace: Workspace, folds: int, device: torch.device) -> tuple[Calibration, str]:
    """Label each part of the hand set by a model of the other parts, trained as models/deeplab was.

    A fold that is done is not repeated, and a killed one goes on.

    Returns:
        The held-out pixels, and the fingerprint of the model that they speak for.

    Raises:
        UserError: fewer masks than folds, a model whose settings this version does not know, or as
            `segment.train.train`.
    """
    # whatever machines the model was trained on
    config = replace(_train_config(workspace), devices=1, nodes=1)
    classes = workspace.settings().classes
    samples = load_samples(workspace, classes, config.smallest_side)
    if len(samples) < folds:
        raise UserError(
            f"{workspace.masks('hand')}: {len(samples)} usable masks are too few for {folds} folds; "
            f"use --folds {len(samples)}"
            if len(samples) > 1
            else f"{workspace.masks('hand')}: one usable mask cannot be cross-validated; annotate more"
        )
    mark = fingerprint(samples, classes, config)
    order = np.random.default_rng((config.seed, 4)).permutation(len(samples)).tolist()
    rows = []
    for number in range(folds):
        place, fold = _folder(workspace) / f"{number}.npz", f"{mark}-{folds}-{number}"
        found = _finished(place, fold)
        if found is None:
            held_out = {samples[n].key: n for n in order[number::folds]}
            learn = [one for one in samples if one.key not in held_out]
            title = f"Fold {number + 1} of {folds}"
            folder = _folder(workspace) / str(number)
            others = unlabelled(workspace, samples, folder / FOLDER, fold, config)
            fitted = fit(learn, [], classes, config, device, folder, fold, title, others)
            found = _held_out(workspace, fitted.net.to(device), held_out, classes, config, device)
            with whole_file(place) as temporary, temporary.open("wb") as stream:
                np.savez_compressed(stream, rows=found, mark=np.array(fold))
            shutil.rmtree(folder, ignore_errors=True)
        rows.append(found)
    return Calibration(np.concatenate(rows), len(classes), len(samples)), mark


def _folder(workspace: Workspace) -> Path:
    return workspace.model("deeplab") / "folds"


def _train_config(workspace: Workspace) -> TrainConfig:
    """The settings that models/deeplab was trained with; the default ones without a model."""
    saved = saved_config(workspace)
    if saved is None:
        note("no model yet: the folds are trained with the default settings")
        return TrainConfig()
    try:
        config = TrainConfig(**saved["train"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{workspace.model('deeplab')}: trained by another version, whose settings this one does not know "
            f"({error}); run `tool segment train` again"
        ) from error
    if config.init not in FIRST_WEIGHTS and not Path(config.init).expanduser().is_file():
        raise UserError(
            f"{config.init}: the weights that the model began with are not there, and each fold begins with them; "
            "put them back, or train again"
        )
    return config


def _held_out(
    workspace: Workspace,
    net: nn.Module,
    held_out: Mapping[str, int],
    classes: ClassTable,
    config: TrainConfig,
    device: torch.device,
) -> NDArray[np.int64]:
    """Count how the held-out paintings are labelled, at their own size: (M, 5) rows.

    Args:
        held_out: the number of each key.
    """
    segmenter = Segmenter(Inference(net), classes, config.smallest_side, "", device)
    index = read_index(workspace)
    rows = []
    for key, number in held_out.items():
        image = load_painting(index[key].file(workspace))
        truth = read_labels(workspace, "hand", key, image.shape[:2], classes)
        said, confidence = predict_map(segmenter, image, LabelConfig())
        rows.append(count_pixels(number, said, to_levels(confidence), truth, len(classes)))
    return np.concatenate(rows)


def _finished(path: Path, mark: str) -> Any:
    """The rows of a fold that was finished with the same masks and settings; else None."""
    try:
        with np.load(path, allow_pickle=False) as found:
            return found["rows"] if str(found["mark"]) == mark else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # none yet, or damaged: it is made again
