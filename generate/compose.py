"""Compositions on disk: read by name, made from paintings' masks, written with what they are made of."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from annotate.classes import UNLABELLED
from annotate.errors import UserError
from annotate.masks import Encoding, mask_encoding, mask_texts, read_mask, shift, unshift, write_mask
from annotate.paintings import MAX_PIXELS
from annotate.progress import note
from annotate.workspace import Workspace
from generate.canvas import Fill, mix, resize_canvas, set_free
from generate.compose_config import LONGER, EnlargeConfig, FreeConfig, MixConfig, OriginalConfig
from generate.composition import Checked, check_composition
from generate.regions import read_regions

Ids = NDArray[np.uint8]
MADE_OF = "made-of"  # text chunk of a composition: what it was made of
BY_HAND = ", repainted by hand"  # how that ends where a person repainted it


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


def read_composition(workspace: Workspace, mask: str, encoding: str | None = None) -> tuple[str, Ids]:
    """A mask by what the user calls it.

    Args:
        mask: a PNG file, the NAME of a composition, or the KEY of a painting with a mask in masks/shifted.
        encoding: `raw` or `shifted`, of a foreign PNG that does not say it.

    Returns:
        (its name, (H, W) shifted ids)

    Raises:
        UserError: there is none of that name, or a PNG that does not say its encoding.
    """
    path = mask_file(workspace, mask)
    if path is None:
        return mask, _painting_mask(workspace, mask)
    foreign = {"raw": Encoding.RAW, "shifted": Encoding.SHIFTED}.get(encoding or "")
    if (mask_encoding(path) or foreign) is Encoding.RAW:
        return path.stem, shift(read_mask(path, Encoding.RAW, foreign), n_labels=256)
    return path.stem, read_mask(path, Encoding.SHIFTED, foreign)


def mask_file(workspace: Workspace, mask: str) -> Path | None:
    """The PNG, or the composition's, that a user calls so; None where it can only be a painting's key.

    Raises:
        UserError: a PNG that is not there.
    """
    is_png = mask.lower().endswith(".png")
    places = [Path(mask)] if is_png else []
    with contextlib.suppress(UserError):  # no name of a composition
        places.append(workspace.composition(mask))
    for path in places:
        with contextlib.suppress(OSError):  # a name that is too long
            if path.exists():
                return path
    if is_png:
        raise UserError(f"{mask}: no such file, and no composition of that name")
    return None


def parse_size(text: str) -> tuple[int, int]:
    """`768x1024` -> (768, 1024).

    Raises:
        UserError: not HxW, or too large.
    """
    found = re.fullmatch(r"([1-9][0-9]*)\s*x\s*([1-9][0-9]*)", text.strip(), re.ASCII | re.IGNORECASE)
    if found is None:
        raise UserError(f"--size {text}: give height and width in pixels, such as 256x320")
    height, width = int(found[1]), int(found[2])
    if height * width > MAX_PIXELS:
        raise UserError(f"--size {text}: more than {MAX_PIXELS / 1e6:.0f} megapixels; paint it in parts")
    return height, width


def compose_original(workspace: Workspace, mask: str, config: OriginalConfig) -> Composed:
    """A composition as it is, with a margin around it. Raises UserError as `read_composition`."""
    name, ids = _read_raw(workspace, mask, config.encoding)
    size = ids.shape[0] + 2 * config.margin, ids.shape[1] + 2 * config.margin
    made = resize_canvas(ids, _small_enough(size), "centre", cast(Fill, config.fill), UNLABELLED)
    text = f"{name}, its canvas enlarged by {config.margin} pixels on every side"
    return write_composition(workspace, config.name or f"{_plain(name)}-original", made, text, config.check)


def compose_enlarged(workspace: Workspace, mask: str, config: EnlargeConfig) -> Composed:
    """A larger (or smaller) canvas for the same objects. Raises UserError as `read_composition`."""
    name, ids = _read_raw(workspace, mask, config.encoding)
    by = config.by or LONGER
    size = round(ids.shape[0] * by), round(ids.shape[1] * by)
    size = _small_enough(parse_size(config.size) if config.size else (max(size[0], 1), max(size[1], 1)))
    made = resize_canvas(ids, size, config.anchor, cast(Fill, config.fill), UNLABELLED)
    text = f"{name} on a canvas of {size[0]} x {size[1]}, {config.anchor}, new parts: {config.fill}"
    return write_composition(workspace, config.name or f"{_plain(name)}-enlarged", made, text, config.check)


def compose_mixed(workspace: Workspace, first: str, second: str, config: MixConfig) -> Composed:
    """A part of one beside or above a part of another. Raises UserError as `read_composition`."""
    (a, left), (b, right) = (_read_raw(workspace, one, config.encoding) for one in (first, second))
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
    name, ids = _read_raw(workspace, mask, config.encoding)
    region = read_regions(regions, ids, workspace.settings().classes)
    made = set_free(ids, region, config.grow, UNLABELLED)
    text = f"{name}, free: {', '.join(regions)}"
    return write_composition(workspace, config.name or f"{_plain(name)}-free", made, text, config.check)


def write_composition(
    workspace: Workspace, name: str, raw: Ids, made_of: str, check: bool, by_hand: bool = False
) -> Composed:
    """Write `compositions/NAME.png`, and compare it with the workspace's own paintings.

    Args:
        name: an earlier composition of this name is replaced, and a note says so.
        raw: (H, W) raw ids.
        made_of: goes into the PNG, for the report.
        check: whether to compare.
        by_hand: it was repainted by hand, and what it was repainted from is replaced.

    Raises:
        UserError: a painting has this name, so that `--mask NAME` would not say which is meant; or the earlier
            composition was repainted by hand, and this one was not.
    """
    path = composition_to_write(workspace, name)
    before = None if by_hand else _made_of(path)
    if before is not None and before.endswith(BY_HAND):
        raise UserError(f"{name}: was repainted by hand, and would be lost; give this one another --name")
    if before is not None and before != made_of:
        note(f"{name}: takes the place of an earlier composition ({before})")
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


def _read_raw(workspace: Workspace, mask: str, encoding: str | None) -> tuple[str, Ids]:
    name, ids = read_composition(workspace, mask, encoding)
    return name, unshift(ids)


def composition_to_write(workspace: Workspace, name: str) -> Path:
    """Where a composition goes. Raises a UserError where a painting has its name."""
    if name in workspace.keys_with_mask("shifted"):
        raise UserError(f"{name}: is the key of a painting; give the composition another --name")
    return workspace.composition(name)


def _made_of(path: Path) -> str | None:
    """What a composition was made of; None where there is none, or none that can be read."""
    with contextlib.suppress(UserError):
        return mask_texts(path).get(MADE_OF, "something else")
    return None


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
