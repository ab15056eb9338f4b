"""The random crops that a model learns from: of paintings annotated by hand, and of machine-labelled ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset, Sampler
from torchvision.transforms.v2 import functional as T

from annotate.classes import UNLABELLED
from segment.config import TrainConfig
from segment.data import SMALLEST, Sample

Crop = tuple[Tensor, Tensor]  # (3, c, c) uint8 pixels, (c, c) uint8 class indices
_Pair = tuple[Tensor, Tensor, Tensor]  # two views (3, c, c), and where the second is pasted (c, c)


class MachineLabelled(Protocol):
    """Paintings with the labels that the model gave them in a round of self-training."""

    def __len__(self) -> int: ...

    def sample(self, n: int, round_: int) -> Sample:
        """Painting n with the labels of a round, from 1."""


class Item(TypedDict):
    """One crop to learn from."""

    pixels: Tensor  # (3, c, c) uint8
    labels: Tensor  # (c, c) int64 class indices
    weight: float  # of its labels
    machine: bool  # labelled by the model
    views: Tensor  # (2, 3, c, c) uint8: what a machine-labelled crop was made of, its colours unchanged; else zeros
    pasted: Tensor  # (c, c) bool: where it shows the second. Both are empty without --consistency


class Crops(Dataset[Item]):
    """Augmented crops. Item n depends on the seed and n alone, so a resumed run sees what it would have seen.

    Args:
        samples: annotated by hand.
        config: sizes and strengths.
        rest: machine-labelled paintings; from the first round on they fill the end of every batch.
    """

    def __init__(
        self, samples: Sequence[Sample], config: TrainConfig, rest: MachineLabelled | None = None
    ) -> None:
        self.samples, self.config, self.rest = list(samples), config, rest

    def __getitem__(self, n: int) -> Item:
        """Crop n."""
        config = self.config
        step, place = divmod(n, config.batch)
        chance = np.random.default_rng((config.seed, 1, n))
        round_ = config.round_of(step) if self.rest is not None else 0
        by_hand = config.batch - (config.machine_crops if round_ else 0)
        if place >= by_hand:
            assert self.rest is not None
            return self._strong(chance, self.rest, round_)
        pixels, labels = self._crop(chance, self._by_hand(step * by_hand + place))
        return self._item(_recolour(chance, pixels, config.colour), labels, 1.0)

    def _item(self, pixels: Tensor, labels: Tensor, weight: float, made_of: _Pair | None = None) -> Item:
        side = self.config.crop if self.config.consistency else 0
        views = torch.zeros(2, 3, side, side, dtype=torch.uint8)
        pasted = torch.zeros(side, side, dtype=torch.bool)
        if made_of and self.config.consistency:
            views, pasted = torch.stack(made_of[:2]), made_of[2]
        return Item(
            pixels=pixels,
            labels=labels.long(),
            weight=weight,
            machine=made_of is not None,
            views=views,
            pasted=pasted,
        )

    def _by_hand(self, n: int) -> Sample:
        """Each painting once before any comes again."""
        around, place = divmod(n, len(self.samples))
        order = np.random.default_rng((self.config.seed, 0, around)).permutation(len(self.samples))
        return self.samples[int(order[place])]

    def _strong(self, chance: np.random.Generator, rest: MachineLabelled, round_: int) -> Item:
        """A machine-labelled crop made hard: stronger colours, and a piece of another pasted in.

        Source: arXiv:1905.04899 (CutMix); arXiv:2106.05095 (ST++: strong augmentation of the student).
        """
        strength = min(1.0, 1.5 * self.config.colour)
        first, second = (rest.sample(int(chance.integers(len(rest))), round_) for _ in range(2))
        weak, labels = self._crop(chance, first)
        pixels = _recolour(chance, weak, strength)
        other, pasted = weak, torch.zeros(labels.shape, dtype=torch.bool)
        if chance.random() < self.config.mix:
            other, theirs = self._crop(chance, second)
            pasted = _box(chance, self.config.crop)  # (c, c)
            pixels = torch.where(pasted, _recolour(chance, other, strength), pixels)
            labels = torch.where(pasted, theirs, labels)
        return self._item(pixels, labels, self.config.machine_weight, (weak, other, pasted))

    def _crop(self, chance: np.random.Generator, sample: Sample) -> Crop:
        """Cut a box at a random scale and aspect, scale it to the crop, perhaps mirrored; beyond it is padding."""
        side = self.config.crop
        scale = np.exp(chance.uniform(np.log(self.config.scale_low), np.log(self.config.scale_high)))
        aspect = np.exp(chance.uniform(-0.2, 0.2))
        height, width = sample.labels.shape
        box = (
            min(height, max(1, round(side / scale * aspect))),
            min(width, max(1, round(side / scale / aspect))),
        )
        spot = _spot(chance, sample.labels) if chance.random() < self.config.rare else None
        if spot is not None:
            top = int(np.clip(spot[0] - chance.integers(box[0]), 0, height - box[0]))
            left = int(np.clip(spot[1] - chance.integers(box[1]), 0, width - box[1]))
        else:
            top = int(chance.integers(height - box[0] + 1))
            left = int(chance.integers(width - box[1] + 1))
        size = [round(box[0] * scale / aspect), round(box[1] * scale * aspect)]
        size = [min(side, max(SMALLEST, one)) for one in size]
        pixels = T.resized_crop(sample.pixels, top, left, *box, size, antialias=True)  # (3, h, w)
        nearest = T.InterpolationMode.NEAREST_EXACT
        labels = T.resized_crop(sample.labels[None], top, left, *box, size, interpolation=nearest)[0]
        if self.config.flip and chance.random() < 0.5:
            pixels, labels = pixels.flip(-1), labels.flip(-1)
        room = side - size[0], side - size[1]
        up, before = int(chance.integers(room[0] + 1)), int(chance.integers(room[1] + 1))
        pad = [before, room[1] - before, up, room[0] - up]
        return F.pad(pixels, pad, value=116), F.pad(labels, pad, value=UNLABELLED)


def _spot(chance: np.random.Generator, labels: Tensor) -> tuple[int, int] | None:
    """A pixel (y, x) of a class drawn evenly from those in the mask (h, w); None where nothing is labelled."""
    flat = labels.numpy().ravel()
    present = np.flatnonzero(np.bincount(flat, minlength=256)[:UNLABELLED])
    if not len(present):
        return None
    spots = np.flatnonzero(flat == present[chance.integers(len(present))])
    y, x = divmod(int(spots[chance.integers(len(spots))]), labels.shape[1])
    return y, x


def _box(chance: np.random.Generator, side: int) -> Tensor:
    """(side, side) bool: a box of a quarter to a half of the area."""
    area, aspect = chance.uniform(0.25, 0.5), np.exp(chance.uniform(-0.7, 0.7))
    height, width = (min(side, max(1, round(side * np.sqrt(area * f)))) for f in (aspect, 1 / aspect))
    top, left = int(chance.integers(side - height + 1)), int(chance.integers(side - width + 1))
    place = torch.zeros(side, side, dtype=torch.bool)
    place[top : top + height, left : left + width] = True
    return place


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


class Progress(Protocol):
    """How far a training is; a LightningModule is one."""

    @property
    def global_step(self) -> int: ...

    @property
    def global_rank(self) -> int: ...


class Stretches(Sampler[int]):
    """Crop numbers of one stretch of training after another; Lightning calls a stretch an epoch.

    Every batch is full, so no BatchNorm ever meets a last batch of one. Several processes share each batch out.

    Args:
        config: steps, batch, processes, and how long a stretch is.
        done: how many steps are done. Lightning's own count of epochs will not do: it takes the epoch in which a
            state was saved for unfinished or for finished, as the state was saved early or late in its end.
    """

    def __init__(self, config: TrainConfig, done: Progress) -> None:
        self.config, self.done = config, done

    def __iter__(self) -> Iterator[int]:
        return iter(self._numbers())

    def __len__(self) -> int:
        return len(self._numbers())

    def _numbers(self) -> range:
        first, batch, processes = self.done.global_step, self.config.batch, self.config.processes
        ends = [first + self.config.save_every, *self.config.round_ends]
        last = min(end for end in ends if end > first) if first < self.config.steps else first
        return range(first * batch + self.done.global_rank, last * batch, processes)
