"""One picture of the flow, made from a workspace's own files: `reports/flow.png`, and the README's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from annotate.files import whole_file
from annotate.masks import Encoding, read_mask
from annotate.page import colour, overlay
from annotate.paintings import load_painting, read_index
from annotate.workspace import Workspace

PANEL, GAP, MARGIN = (192, 240), 44, 18  # (H, W) of a panel; pixels between two, and around all
INK, PAPER, SOFT = (40, 38, 48), (250, 248, 244), (120, 114, 128)


def flow_picture(workspace: Workspace, mask: Path, sample: Path) -> Path:
    """Draw painting -> annotated -> labelled -> composed -> painted, with the command of each step.

    Args:
        mask: a raw mask that was composed.
        sample: the painting that was made from it.
    """
    index, classes = read_index(workspace), workspace.settings().classes
    hand = workspace.keys_with_mask("hand")[0]
    pseudo = next(
        key for key in workspace.keys_with_mask("pseudo") if key not in workspace.keys_with_mask("hand")
    )
    shown = []
    for key, kind in ((hand, "hand"), (pseudo, "pseudo")):
        painting = load_painting(index[key].file(workspace))
        shown.append(
            (painting, overlay(painting, read_mask(workspace.mask(kind, key), Encoding.RAW), classes, 0.65))
        )
    with Image.open(sample) as image:
        made = np.asarray(image.convert("RGB"))
    panels = [
        ("paintings", "tool annotate push", shown[0][0]),
        ("a quarter, by a person", "tool annotate pull", shown[0][1]),
        ("the rest, by a DeepLabV3", "tool segment pseudo-label", shown[1][1]),
        ("a composition", "tool segment convert", colour(read_mask(mask, Encoding.RAW), classes)),
        ("a new painting", "tool generate sample", made),
    ]
    path = workspace.reports / "flow.png"
    with whole_file(path) as temporary:
        _draw(panels).save(temporary, format="PNG", optimize=True)
    return path


def first_sample_of(workspace: Workspace, mask: Path) -> Path | None:
    """The first painting made from this mask; None where there is none."""
    for recipe in sorted(workspace.samples.glob("*.json")):
        if json.loads(recipe.read_text(encoding="utf-8")).get("mask_name") == mask.stem:
            return recipe.with_suffix(".png")
    return None


def _draw(panels: list[tuple[str, str, NDArray[np.uint8]]]) -> Image.Image:
    height, width = PANEL
    whole = (MARGIN * 2 + len(panels) * width + (len(panels) - 1) * GAP, height + 2 * MARGIN + 52)
    canvas = Image.new("RGB", whole, PAPER)
    draw = ImageDraw.Draw(canvas)
    title, small = ImageFont.load_default(16), ImageFont.load_default(13)
    for number, (caption, command, pixels) in enumerate(panels):
        left = MARGIN + number * (width + GAP)
        canvas.paste(_fill(pixels, PANEL), (left, MARGIN))
        draw.text((left, MARGIN + height + 8), caption, fill=INK, font=title)
        draw.text((left, MARGIN + height + 31), command, fill=SOFT, font=small)
        if number:
            y, x = MARGIN + height // 2, left - GAP + 8
            draw.line((x, y, x + GAP - 18, y), fill=INK, width=3)
            draw.polygon([(x + GAP - 16, y), (x + GAP - 26, y - 7), (x + GAP - 26, y + 7)], fill=INK)
    return canvas


def _fill(pixels: NDArray[np.uint8], size: tuple[int, int]) -> Image.Image:
    """Scaled to cover (H, W), and cut to it in the middle."""
    image = Image.fromarray(pixels)
    factor = max(size[0] / image.height, size[1] / image.width)
    scaled = image.resize(
        (round(image.width * factor), round(image.height * factor)), Image.Resampling.LANCZOS
    )
    left, top = (scaled.width - size[1]) // 2, (scaled.height - size[0]) // 2
    return scaled.crop((left, top, left + size[1], top + size[0]))
