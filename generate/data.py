"""Paintings and their masks, scaled for training, and the random crops that a model sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from annotate.errors import UserError
from annotate.files import sha256
from annotate.masks import Encoding, mask_encoding, read_mask
from annotate.paintings import Painting, load_painting, read_index
from annotate.progress import progress
from annotate.workspace import Workspace

IN_MEMORY = 6 * 2**30  # bytes of scaled pixels; a larger collection is decoded again for every crop

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Picture:
    """One painting or mask, scaled: its key and how to get at its pixels."""

    key: str
    size: tuple[int, int]  # (H, W) after scaling
    digest: str  # of the file it was read from
    read: Callable[[], Pixels]  # (H, W, 3) painting, or (H, W) shifted ids


# the option that asks for less than a painting's side in pixels, as " or --crop 248"; "" where there is none
Smaller = Callable[[int], str]


def no_smaller(side: int) -> str:
    return ""


def load_pictures(
    workspace: Workspace, smallest_side: int, crop: int, smaller: Smaller = no_smaller
) -> list[Picture]:
    """Every painting of the workspace, scaled so that its smallest side is `smallest_side`.

    Args:
        smallest_side: pixels; 0 keeps the paintings as they are.
        crop: the crop that training will cut, in pixels.
        smaller: the option that asks for a smaller one.

    Raises:
        UserError: no paintings, an unreadable one, or one smaller than the crop.
    """

    def reader(painting: Painting) -> Callable[[], Pixels]:
        path = painting.file(workspace)
        return lambda: scale(load_painting(path), scaled_size(painting.size, smallest_side), smooth=True)

    paintings = list(read_index(workspace).values())
    _check_crop(paintings, smallest_side, crop, smaller)
    made = [
        Picture(one.key, scaled_size(one.size, smallest_side), one.sha256, reader(one)) for one in paintings
    ]
    return _keep(made, 3, "Loading the paintings")


def load_masks(
    workspace: Workspace, smallest_side: int, crop: int, n_labels: int, smaller: Smaller = no_smaller
) -> list[Picture]:
    """Every shifted mask of the workspace, scaled like its painting (nearest), in the order of its key.

    Raises:
        UserError: no shifted masks yet, a mask without painting or of another size than it, one that does not say
            that it is shifted, an id that has no channel, or a painting smaller than the crop.
    """
    keys = workspace.keys_with_mask("shifted")
    if not keys:
        raise UserError(f"{workspace.masks('shifted')}: no shifted masks yet; run `tool segment convert`")
    index = read_index(workspace)
    for key in keys:
        if key not in index:
            raise UserError(
                f"{workspace.mask('shifted', key)}: no painting has this key; "
                "push its painting or delete the mask"
            )

    def reader(painting: Painting) -> Callable[[], Pixels]:
        path = workspace.mask("shifted", painting.key)

        def read() -> Pixels:
            if mask_encoding(path) is None:
                raise UserError(f"{path}: does not say that it is shifted; run `tool segment convert` again")
            ids = read_mask(path, Encoding.SHIFTED)
            check_mask(ids, painting.size, n_labels, path)
            return scale(ids, scaled_size(painting.size, smallest_side), smooth=False)

        return read

    paintings = [index[key] for key in keys]
    _check_crop(paintings, smallest_side, crop, smaller)
    made = []
    for one in paintings:
        digest = sha256(workspace.mask("shifted", one.key))
        made.append(Picture(one.key, scaled_size(one.size, smallest_side), digest, reader(one)))
    return _keep(made, 1, "Loading the masks")


def check_mask(ids: Pixels, size: tuple[int, int], n_labels: int, path: Path) -> None:
    """Raise a UserError where a mask does not fit its painting or the model's channels.

    Args:
        ids: (H, W) shifted ids.
        size: (H, W) of the painting.
        n_labels: channels of the model; ids are 0..n_labels - 1.
    """
    if ids.shape != size:
        raise UserError(
            f"{path}: the mask is {ids.shape[0]} x {ids.shape[1]}, its painting {size[0]} x {size[1]}; "
            "run `tool segment convert` again"
        )
    worst = int(ids.max())
    if worst >= n_labels:
        raise UserError(
            f"{path}: shifted id {worst} has no channel with n_labels {n_labels}; train the mask codes with "
            f"`tool generate train mask --n-labels {worst + 1}`, or give the class another id in tool.toml"
        )


def held_out_keys(workspace: Workspace) -> frozenset[str]:
    """Keys in `masks/shifted/val.txt`; empty where `segment convert` held none out."""
    path = workspace.masks("shifted") / "val.txt"
    if not path.exists():
        return frozenset()
    lines = path.read_text(encoding="utf-8").splitlines()
    return frozenset(line.strip().removesuffix(".png") for line in lines if line.strip())


def scaled_size(size: tuple[int, int], smallest_side: int) -> tuple[int, int]:
    """(H, W) after scaling the smaller of the two to `smallest_side`; 0 keeps the size."""
    if smallest_side == 0:
        return size
    factor = smallest_side / min(size)
    return round(size[0] * factor), round(size[1] * factor)


def scale(pixels: Pixels, size: tuple[int, int], smooth: bool) -> Pixels:
    """Scale to (H, W): paintings smoothly (bicubic, area-weighted when shrinking), masks by nearest id."""
    if pixels.shape[:2] == size:
        return pixels
    how = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(pixels).resize((size[1], size[0]), how))


class Crops(Dataset[tuple[Tensor, ...]]):
    """Random crops, the same for every picture of a row: a painting and its mask stay aligned.

    Item `n` depends on `seed` and `n` alone, so that a resumed run sees what the unbroken run would have
    seen. Every row comes up once in each `len(rows)` items.

    Args:
        rows: pictures that lie on one another, e.g. (painting, mask); all of one size within a row.
        crop: side of the square crop in pixels.
        flip: mirror every second crop left to right.
        seed: start of the random numbers.
    """

    def __init__(self, rows: Sequence[tuple[Picture, ...]], crop: int, flip: bool, seed: int) -> None:
        self.rows, self.crop, self.flip, self.seed = rows, crop, flip, seed
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, np.int64))

    def __getitem__(self, n: int) -> tuple[Tensor, ...]:
        """Crops of item n, each (C, crop, crop) or (crop, crop) uint8."""
        around, place = divmod(n, len(self.rows))
        if self._order[0] != around:
            shuffled = np.random.default_rng((self.seed, 0, around)).permutation(len(self.rows))
            self._order = (around, shuffled)
        row = self.rows[int(self._order[1][place])]
        chance = np.random.default_rng((self.seed, 1, n))
        height, width = row[0].size
        top = int(chance.integers(height - self.crop + 1))
        left = int(chance.integers(width - self.crop + 1))
        mirror = self.flip and bool(chance.integers(2))
        return tuple(self._cut(picture.read(), top, left, mirror) for picture in row)

    def _cut(self, pixels: Pixels, top: int, left: int, mirror: bool) -> Tensor:
        part = pixels[top : top + self.crop, left : left + self.crop]
        crop = torch.from_numpy((part[:, ::-1] if mirror else part).copy())
        return crop.permute(2, 0, 1) if crop.ndim == 3 else crop  # (3, h, w) or (h, w)


class Stretches(Sampler[int]):
    """Item numbers of one stretch of training after another; Lightning calls a stretch an epoch.

    A stretch is what lies between two saved states. It begins with the first item that was not learnt from yet, so a
    training that goes on may have longer or shorter ones than before.

    Args:
        total: items of the whole training.
        stretch: items of one stretch; the last may be shorter.
        done: how many items are learnt from. Lightning's count of epochs will not do: they need not be of one length.
        rank, ranks: this process takes every `ranks`-th item, beginning with its own number.
    """

    def __init__(
        self, total: int, stretch: int, done: Callable[[], int], rank: int = 0, ranks: int = 1
    ) -> None:
        self.total, self.stretch, self.done, self.rank, self.ranks = total, stretch, done, rank, ranks

    def __iter__(self) -> Iterator[int]:
        return iter(self._numbers())

    def __len__(self) -> int:
        return len(self._numbers())

    def _numbers(self) -> range:
        start = self.done()
        return range(start + self.rank, min(start + self.stretch, self.total), self.ranks)


def even_starts(length: int, side: int) -> list[int]:
    """Where squares of `side` begin that cover a length evenly: as few as do, overlapping where they must."""
    count = -(-length // side)
    return [round(n * (length - side) / max(1, count - 1)) for n in range(count)]


def to_image(pixels: Tensor) -> Tensor:
    """uint8 in [0, 255] to float in [-1, 1], any shape."""
    return pixels.float().div(127.5).sub(1)


def to_pixels(image: Tensor) -> Tensor:
    """Float in [-1, 1] to uint8 in [0, 255], any shape; what lies outside is clipped."""
    return image.detach().float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def _check_crop(paintings: Sequence[Painting], smallest_side: int, crop: int, smaller: Smaller) -> None:
    for one in paintings:
        size = scaled_size(one.size, smallest_side)
        if min(size) < crop:
            raise UserError(
                f"{one.path}: {size[0]} x {size[1]} is smaller than the crop of {crop}; "
                f"use --smallest-side {crop} (scales it up){smaller(min(size))}"
            )


def _keep(pictures: list[Picture], channels: int, title: str) -> list[Picture]:
    """Hold the pixels in memory where they fit; otherwise check each once and read it when it is needed."""
    needed = sum(one.size[0] * one.size[1] * channels for one in pictures)
    kept = []
    with progress(title, len(pictures)) as advance:
        for one in pictures:
            pixels = one.read()
            kept.append(replace(one, read=_Held(pixels)) if needed <= IN_MEMORY else one)
            advance()
    return kept


class _Held:
    """Pixels in memory, in a form that a worker process can be handed."""

    def __init__(self, pixels: Pixels) -> None:
        self.pixels = pixels

    def __call__(self) -> Pixels:
        return self.pixels
