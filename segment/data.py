"""Paintings with their hand masks, at the size that a model sees them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as T

from annotate.classes import UNLABELLED, ClassTable
from annotate.errors import UserError
from annotate.masks import Encoding, mask_digest, read_mask
from annotate.paintings import MAX_PIXELS, Painting, load_painting, read_index
from annotate.progress import note, progress
from annotate.workspace import Workspace

SMALLEST = 2  # pixels of a scaled side: torchvision cannot scale to 1 x 1
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of ImageNet, in [0, 255]


@dataclass(frozen=True)
class Sample:
    """One painting and its hand mask, at the size that the network sees."""

    key: str
    pixels: Tensor  # (3, h, w) uint8
    labels: Tensor  # (h, w) uint8 class indices, 255 = unlabelled
    digest: str  # of the painting's bytes and of what the mask shows


def load_samples(workspace: Workspace, classes: ClassTable, smallest_side: int) -> list[Sample]:
    """Every hand-annotated painting, in the order of its key, in memory.

    Raises:
        UserError: no mask, a mask without painting or of another size than it, an id outside the classes,
            an unreadable painting, or fewer than two classes in all masks together.
    """
    keys = workspace.keys_with_mask("hand")
    if not keys:
        raise UserError(
            f"{workspace.masks('hand')}: no hand masks; annotate some paintings and run `tool annotate pull`"
        )
    index = read_index(workspace)
    samples = []
    with progress("Loading the hand masks", len(keys)) as advance:
        for key in keys:
            if key not in index:
                raise UserError(
                    f"{workspace.mask('hand', key)}: no painting has this key; push its painting or delete it"
                )
            sample = _load(workspace, index[key], classes, smallest_side)
            if sample is not None:
                samples.append(sample)
            advance()
    _check(workspace, samples, classes)
    return samples


def _load(workspace: Workspace, painting: Painting, classes: ClassTable, smallest_side: int) -> Sample | None:
    path = workspace.mask("hand", painting.key)
    pixels = load_painting(painting.file(workspace))  # (H, W, 3)
    labels = read_labels(workspace, "hand", painting.key, pixels.shape[:2], classes)  # (H, W)
    if (labels == UNLABELLED).all():
        note(f"left out: {path}: nothing in it is labelled")
        return None
    size = scaled_size(pixels.shape[:2], smallest_side)
    small = to_tensor(pixels)
    truth = torch.from_numpy(labels)
    if size != labels.shape:
        small = T.resize(small, list(size), antialias=True)
        truth = T.resize(truth[None], list(size), interpolation=T.InterpolationMode.NEAREST_EXACT)[0]
    digest = hashlib.sha256(f"{painting.sha256} {mask_digest(path)}".encode()).hexdigest()
    return Sample(painting.key, small, truth, digest)


def read_labels(
    workspace: Workspace, kind: str, key: str, size: tuple[int, ...], classes: ClassTable
) -> NDArray[np.uint8]:
    """A mask of the workspace as (H, W) class indices.

    Args:
        size: (H, W) of its painting.

    Raises:
        UserError: another size than its painting, or an id outside the classes.
    """
    path = workspace.mask(kind, key)
    ids = read_mask(path, Encoding.RAW)
    if ids.shape != size:
        raise UserError(
            f"{path}: the mask is {ids.shape[0]} x {ids.shape[1]}, its painting {size[0]} x {size[1]}; "
            "delete the mask, and pull or draw it again"
        )
    try:
        return classes.to_index(ids)
    except UserError as error:
        raise UserError(f"{path}: {error.message}") from error


def _check(workspace: Workspace, samples: Sequence[Sample], classes: ClassTable) -> None:
    if not samples:
        raise UserError(f"{workspace.masks('hand')}: no mask has a labelled pixel; annotate some paintings")
    counts = class_counts(samples, len(classes))
    present = [name for name, count in zip(classes.names, counts, strict=True) if count]
    if len(present) < 2:
        raise UserError(
            f"{workspace.masks('hand')}: every labelled pixel is {present[0]!r}; "
            "annotate at least one more class, there is nothing to tell apart"
        )
    absent = [name for name in classes.names if name not in present]
    if absent:
        note(
            f"no hand mask shows {', '.join(absent)}: the model cannot learn {'it' if len(absent) == 1 else 'them'}"
        )
    if len(samples) == 1:
        note("only one hand mask: the labels of the other paintings will be rough; annotate more")
    for k, name in enumerate(classes.names):
        seen = [one.key for one in samples if bool((one.labels == k).any())]
        if len(seen) == 1 < len(samples):
            note(f"{name} is annotated in one painting only ({seen[0]}); more would help")


def class_counts(samples: Sequence[Sample], n_classes: int) -> NDArray[np.int64]:
    """Labelled pixels of each class, (K,)."""
    counts = np.zeros(256, np.int64)
    for one in samples:
        counts += np.bincount(one.labels.numpy().ravel(), minlength=256)
    return counts[:n_classes]


def class_weights(counts: NDArray[np.int64], power: float) -> Tensor:
    """Weights (K,) of the cross-entropy: 1 / frequency ** power, with a mean of 1 over the labelled pixels.

    A class without a pixel gets 0.
    """
    share = counts / counts.sum()
    weights = np.where(counts > 0, np.maximum(share, 1e-6) ** -power, 0.0)
    return torch.from_numpy(weights / (weights * share).sum()).float()


def scaled_size(size: tuple[int, ...], smallest_side: int) -> tuple[int, int]:
    """(H, W) after scaling the smaller of the two to `smallest_side`; 0 keeps the size.

    A strip that would become larger than any painting may be is scaled to less.
    """
    height, width = size
    if smallest_side == 0:
        return height, width
    factor = min(smallest_side / min(height, width), (MAX_PIXELS / (height * width)) ** 0.5)
    return rescaled(size, factor)


def rescaled(size: tuple[int, ...], factor: float) -> tuple[int, int]:
    """(H, W) times the factor, in whole pixels."""
    height, width = size
    return max(SMALLEST, round(height * factor)), max(SMALLEST, round(width * factor))


def to_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """(H, W, 3) to (3, H, W), a copy."""
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def normalise(pixels: Tensor) -> Tensor:
    """(B, 3, H, W) uint8 to what the backbones were trained on; channels last."""
    mean = torch.tensor(MEAN, device=pixels.device).view(1, 3, 1, 1)
    std = torch.tensor(STD, device=pixels.device).view(1, 3, 1, 1)
    return ((pixels.float() - mean) / std).contiguous(memory_format=torch.channels_last)
