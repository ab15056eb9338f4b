"""Regions of a composition in a user's words: a class, a box, or a picture of the region."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from annotate.classes import UNLABELLED, ClassTable
from annotate.errors import UserError

_NUMBER = r"\s*([0-9]+(?:\.[0-9]+)?%?)\s*"
_BOX = re.compile(rf"{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}", re.ASCII)


def read_regions(
    texts: Sequence[str], raw: NDArray[np.uint8], classes: ClassTable, before: NDArray[np.uint8] | None = None
) -> NDArray[np.bool_]:
    """All the regions named, together.

    Args:
        texts: each a class's name or `unlabelled`; a box TOP,LEFT,BOTTOM,RIGHT in pixels or percent
            (`0,0,50%,100%` is the upper half); or a PNG of the composition's size that is not 0 there.
        raw: (H, W) raw ids of the composition.
        classes: the workspace's classes.
        before: (H, W) raw ids of what the composition shall replace: a class counts where either has it.

    Returns:
        (H, W)

    Raises:
        UserError: a text that is none of these, a picture of another size, or one without a pixel.
    """
    found = np.zeros(raw.shape, np.bool_)
    for text in texts:
        region = np.zeros(raw.shape, np.bool_)
        if text == "unlabelled" or text in classes.by_name:
            wanted = UNLABELLED if text == "unlabelled" else classes.by_name[text].id
            region = (raw == wanted) if before is None else (raw == wanted) | (before == wanted)
        elif (box := _BOX.fullmatch(text)) is not None:
            top, left, bottom, right = (
                _pixels(number, raw.shape[axis % 2]) for axis, number in enumerate(box.groups())
            )
            region[top:bottom, left:right] = True
        elif Path(text).suffix.lower() == ".png":
            region = _picture(Path(text), raw.shape)
        else:
            raise UserError(
                f"{text!r}: no region; give a class ({', '.join(classes.names)}, unlabelled), "
                "a box TOP,LEFT,BOTTOM,RIGHT in pixels or percent, or a PNG"
            )
        if not region.any():
            raise UserError(f"{text}: the composition has no such part; `0,0,50%,100%` is its upper half")
        found |= region
    return found


def _pixels(number: str, length: int) -> int:
    """A place along one side: percent of it, or pixels."""
    return round(float(number[:-1]) / 100 * length) if number.endswith("%") else round(float(number))


def _picture(path: Path, size: tuple[int, ...]) -> NDArray[np.bool_]:
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("L"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path}: not a readable PNG ({error})") from error
    if pixels.shape != size:
        raise UserError(
            f"{path}: {pixels.shape[0]} x {pixels.shape[1]} (H x W), the composition has {size[0]} x {size[1]}"
        )
    return pixels > 0
