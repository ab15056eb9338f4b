"""Paintings with their hand masks, and the random crops of them that a model sees."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset, Sampler
from torchvision.transforms.v2 import functional as T

from annotate.classes import UNLABELLED, ClassTable
from annotate.errors import UserError
from annotate.masks import Encoding, read_mask
from annotate.paintings import Painting, load_painting, read_index
from annotate.progress import note, progress
from annotate.workspace import Workspace
from segment.config import TrainConfig

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of ImageNet, in [0, 255]
PLACES = 4096  # pixels of each class that crops may be drawn around


@dataclass(frozen=True)
class Sample:
    """One painting and its hand mask, at the size that the network sees."""

    key: str
    pixels: Tensor  # (3, h, w) uint8
    labels: Tensor  # (h, w) uint8 class indices, 255 = unlabelled
    digest: str  # of the painting's and the mask's bytes


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
    digest = hashlib.sha256(painting.sha256.encode() + path.read_bytes()).hexdigest()
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
    """(H, W) after scaling the smaller of the two to `smallest_side`; 0 keeps the size."""
    height, width = size
    if smallest_side == 0:
        return height, width
    factor = smallest_side / min(height, width)
    return max(1, round(height * factor)), max(1, round(width * factor))


def to_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """(H, W, 3) to (3, H, W), a copy."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def normalise(pixels: Tensor) -> Tensor:
    """(B, 3, H, W) uint8 to what the backbones were trained on; channels last."""
    mean = torch.tensor(MEAN, device=pixels.device).view(1, 3, 1, 1)
    std = torch.tensor(STD, device=pixels.device).view(1, 3, 1, 1)
    return ((pixels.float() - mean) / std).contiguous(memory_format=torch.channels_last)


class Crops(Dataset[tuple[Tensor, Tensor]]):
    """Augmented crops. Item n depends on the seed and n alone, so a resumed run sees what it would have seen."""

    def __init__(self, samples: Sequence[Sample], config: TrainConfig) -> None:
        self.samples, self.config = list(samples), config
        self.places = [_places(one.labels, config.seed) for one in samples]

    def __getitem__(self, n: int) -> tuple[Tensor, Tensor]:
        """Crop n: (3, crop, crop) uint8, (crop, crop) int64 class indices."""
        around, place = divmod(n, len(self.samples))
        which = int(
            np.random.default_rng((self.config.seed, 0, around)).permutation(len(self.samples))[place]
        )
        chance = np.random.default_rng((self.config.seed, 1, n))
        pixels, labels = self._crop(chance, self.samples[which], self.places[which])
        if self.config.flip and chance.random() < 0.5:
            pixels, labels = T.horizontal_flip(pixels), T.horizontal_flip(labels)
        return _recolour(chance, pixels, self.config.colour), labels.long()

    def _crop(
        self, chance: np.random.Generator, sample: Sample, places: list[NDArray[np.int64]]
    ) -> tuple[Tensor, Tensor]:
        """Cut a box at a random scale and aspect, and scale it to the crop; beyond the painting is padding."""
        side = self.config.crop
        scale = np.exp(chance.uniform(np.log(self.config.scale_low), np.log(self.config.scale_high)))
        aspect = np.exp(chance.uniform(-0.2, 0.2))
        height, width = sample.labels.shape
        box = min(height, round(side / scale * aspect)), min(width, round(side / scale / aspect))
        if chance.random() < self.config.rare:
            spots = places[int(chance.integers(len(places)))]
            y, x = spots[int(chance.integers(len(spots)))]
            top = int(np.clip(y - chance.integers(box[0]), 0, height - box[0]))
            left = int(np.clip(x - chance.integers(box[1]), 0, width - box[1]))
        else:
            top = int(chance.integers(height - box[0] + 1))
            left = int(chance.integers(width - box[1] + 1))
        size = [min(side, round(box[0] * scale / aspect)), min(side, round(box[1] * scale * aspect))]
        pixels = T.resized_crop(sample.pixels, top, left, *box, size, antialias=True)  # (3, h, w)
        nearest = T.InterpolationMode.NEAREST_EXACT
        labels = T.resized_crop(sample.labels[None], top, left, *box, size, interpolation=nearest)[0]
        room = side - size[0], side - size[1]
        up, before = int(chance.integers(room[0] + 1)), int(chance.integers(room[1] + 1))
        pad = [before, room[1] - before, up, room[0] - up]
        return F.pad(pixels, pad, value=116), F.pad(labels, pad, value=UNLABELLED)


def _places(labels: Tensor, seed: int) -> list[NDArray[np.int64]]:
    """For each class in a mask, up to PLACES of its pixels as (N, 2) rows of y, x."""
    found = []
    chance = np.random.default_rng((seed, 2))
    for value in torch.unique(labels).tolist():
        if value != UNLABELLED:
            spots = np.argwhere(labels.numpy() == value)
            found.append(spots[chance.choice(len(spots), min(PLACES, len(spots)), replace=False)])
    return found


def _recolour(chance: np.random.Generator, pixels: Tensor, strength: float) -> Tensor:
    """Random brightness, contrast, saturation and hue of (3, h, w) uint8 pixels."""
    if strength == 0:
        return pixels
    brightness, contrast, saturation = np.exp(chance.uniform(-strength, strength, 3)).tolist()
    hue = float(chance.uniform(-strength / 8, strength / 8))
    pixels = T.adjust_brightness(pixels, brightness)
    pixels = T.adjust_contrast(pixels, contrast)
    pixels = T.adjust_saturation(pixels, saturation)
    return T.adjust_hue(pixels, hue) if chance.random() < 0.3 else pixels  # hue costs most by far


class Stretches(Sampler[int]):
    """Crop numbers of one stretch of training after another; Lightning calls a stretch an epoch.

    Every batch is full, so no BatchNorm ever meets a last batch of one.

    Args:
        config: steps, batch, and how long a stretch is.
        done: how many steps are done. Lightning's own count of epochs will not do: it takes the epoch in which a
            state was saved for unfinished or for finished, as the state was saved early or late in its end.
    """

    def __init__(self, config: TrainConfig, done: Callable[[], int]) -> None:
        self.config, self.done = config, done

    def __iter__(self) -> Iterator[int]:
        return iter(self._numbers())

    def __len__(self) -> int:
        return len(self._numbers())

    def _numbers(self) -> range:
        first = self.done()
        last = min(first + self.config.save_every, self.config.steps)
        return range(first * self.config.batch, last * self.config.batch)
