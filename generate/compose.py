"""Compositions on disk: read by name, made from paintings' masks, written with what they are made of."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from annotate.classes import UNLABELLED
from annotate.errors import UserError
from annotate.masks import Encoding, mask_encoding, read_mask, shift, unshift, write_mask
from annotate.paintings import MAX_PIXELS
from annotate.workspace import Workspace
from generate.canvas import Fill, mix, resize_canvas, set_free
from generate.compose_config import EnlargeConfig, FreeConfig, MixConfig, OriginalConfig
from generate.composition import Checked, check_composition
from generate.regions import read_regions

Ids = NDArray[np.uint8]
MADE_OF = "made-of"  # text chunk of a composition: what it was made of


@dataclass(frozen=True)
class Composed:
    """A composition that was written."""

    path: str
    name: str  # as `sample --mask` takes it
    size: tuple[int, int]  # (H, W)
    made_of: str
    shares: dict[str, float]  # of the canvas, by class
    departures: tuple[str, ...]  # what departs from the workspace's own paintings, in words
    nearest: str | None  # key of the painting that it is most like


def read_composition(workspace: Workspace, mask: str, encoding: str = "") -> tuple[str, Ids]:
    """A mask by what the user calls it.

    Args:
        mask: a PNG file, the NAME of a composition, or the KEY of a painting with a mask in masks/shifted.
        encoding: `raw` or `shifted`, for a foreign PNG that does not say it.

    Returns:
        (its name, (H, W) shifted ids)

    Raises:
        UserError: there is none of that name, or a PNG that does not say its encoding.
    """
    path = Path(mask)
    if path.suffix.lower() != ".png" or not path.exists():
        path = workspace.composition(mask)
        if not path.exists():
            return mask, _painting_mask(workspace, mask)
    foreign = {"raw": Encoding.RAW, "shifted": Encoding.SHIFTED}.get(encoding)
    if (mask_encoding(path) or foreign) is Encoding.RAW:
        return path.stem, shift(read_mask(path, Encoding.RAW, foreign), n_labels=256)
    return path.stem, read_mask(path, Encoding.SHIFTED, foreign)


def parse_size(text: str) -> tuple[int, int]:
    """`768x1024` -> (768, 1024).

    Raises:
        UserError: not HxW, or too large.
    """
    found = re.fullmatch(r"([1-9][0-9]*)x([1-9][0-9]*)", text.strip(), re.ASCII | re.IGNORECASE)
    if found is None:
        raise UserError(f"--size {text}: give height and width in pixels, such as 256x320")
    height, width = int(found[1]), int(found[2])
    if height * width > MAX_PIXELS:
        raise UserError(f"--size {text}: more than {MAX_PIXELS / 1e6:.0f} megapixels; paint it in parts")
    return height, width


def compose_original(workspace: Workspace, mask: str, config: OriginalConfig) -> Composed:
    """A composition as it is, with a margin around it. Raises UserError as `read_composition`."""
    name, ids = _read_raw(workspace, mask)
    size = ids.shape[0] + 2 * config.margin, ids.shape[1] + 2 * config.margin
    made = resize_canvas(ids, _small_enough(size), "centre", cast(Fill, config.fill), UNLABELLED)
    text = f"{name}, its canvas enlarged by {config.margin} pixels on every side"
    return write_composition(workspace, config.name or f"{_plain(name)}-original", made, text, config.check)


def compose_enlarged(workspace: Workspace, mask: str, config: EnlargeConfig) -> Composed:
    """A larger (or smaller) canvas for the same objects. Raises UserError as `read_composition`."""
    name, ids = _read_raw(workspace, mask)
    size = round(ids.shape[0] * config.by), round(ids.shape[1] * config.by)
    size = _small_enough(parse_size(config.size) if config.size else (max(size[0], 1), max(size[1], 1)))
    made = resize_canvas(ids, size, config.anchor, cast(Fill, config.fill), UNLABELLED)
    text = f"{name} on a canvas of {size[0]} x {size[1]}, {config.anchor}, new parts: {config.fill}"
    return write_composition(workspace, config.name or f"{_plain(name)}-enlarged", made, text, config.check)


def compose_mixed(workspace: Workspace, first: str, second: str, config: MixConfig) -> Composed:
    """A part of one beside or above a part of another. Raises UserError as `read_composition`."""
    (a, left), (b, right) = _read_raw(workspace, first), _read_raw(workspace, second)
    if config.direction == "beside":
        made = mix(left, right, config.share, config.border, "beside")
        text = f"the left of {a}, the right of {b}"
    else:
        made = mix(left, right, config.share, config.border, "above")
        text = f"the top of {a}, the bottom of {b}"
    _small_enough(made.shape)
    name = config.name or f"{_plain(a)}-{config.direction}-{_plain(b)}"
    return write_composition(workspace, name, made, text, config.check)


def compose_free(workspace: Workspace, mask: str, regions: Sequence[str], config: FreeConfig) -> Composed:
    """Regions set to unlabelled: the generator imagines them.

    Raises:
        UserError: as `read_composition` and `read_regions`.
    """
    name, ids = _read_raw(workspace, mask)
    region = read_regions(regions, ids, workspace.settings().classes)
    made = set_free(ids, region, config.grow, UNLABELLED)
    text = f"{name}, free: {', '.join(regions)}"
    return write_composition(workspace, config.name or f"{_plain(name)}-free", made, text, config.check)


def write_composition(workspace: Workspace, name: str, raw: Ids, made_of: str, check: bool) -> Composed:
    """Write `compositions/NAME.png`, and compare it with the workspace's own paintings.

    Args:
        name: an earlier composition of this name is replaced.
        raw: (H, W) raw ids.
        made_of: goes into the PNG, for the report.
        check: whether to compare.

    Raises:
        UserError: a painting has this name, so that `--mask NAME` would not say which is meant.
    """
    path = workspace.composition(name)
    if name in workspace.keys_with_mask("shifted"):
        raise UserError(f"{name}: is the key of a painting; give the composition another --name")
    write_mask(path, raw, Encoding.RAW, {MADE_OF: made_of})
    classes = workspace.settings().classes
    names = {one.id: one.name for one in classes.classes} | {UNLABELLED: "unlabelled"}
    found, counts = np.unique(raw, return_counts=True)
    shares = {
        names.get(int(one), f"id {one}"): round(float(count / raw.size), 4)
        for one, count in zip(found, counts, strict=True)
    }
    checked = check_composition(workspace, shift(raw, n_labels=256)) if check else Checked((), None)
    size = raw.shape[0], raw.shape[1]
    return Composed(str(path), name, size, made_of, shares, checked.departures, checked.nearest)


def _read_raw(workspace: Workspace, mask: str) -> tuple[str, Ids]:
    name, ids = read_composition(workspace, mask)
    return name, unshift(ids)


def _painting_mask(workspace: Workspace, key: str) -> Ids:
    known = workspace.keys_with_mask("shifted")
    if key not in known:
        nearest = f" (such as {known[0]})" if known else "; run `tool segment convert` first"
        raise UserError(
            f"{key}: neither a PNG, nor a composition, nor a key with a mask in masks/shifted{nearest}"
        )
    return read_mask(workspace.mask("shifted", key), Encoding.SHIFTED)


def _plain(name: str) -> str:
    """A key without its folders."""
    return name.rsplit("/", 1)[-1]


def _small_enough(size: tuple[int, ...]) -> tuple[int, int]:
    height, width = size
    if height * width > MAX_PIXELS:
        raise UserError(
            f"a canvas of {height} x {width} has more than {MAX_PIXELS / 1e6:.0f} megapixels; compose a smaller one"
        )
    return height, width
