"""Sample grids: what a model in training can do by now, as one picture in reports/."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image

from annotate.classes import UNLABELLED
from annotate.files import whole_file
from annotate.workspace import Workspace
from generate.data import Picture, to_image, to_pixels
from generate.decoding import Decoder
from generate.gpt import GPT
from generate.painting import Chance, paint_tokens
from generate.presets import TransformerSettings
from generate.tokens import Tokens, held_out_windows
from generate.vqgan import VQGAN

SHOWN = 4  # pictures of a grid


@torch.no_grad()
def draw_paintings(path: Path, paintings: Sequence[Picture], codes: VQGAN) -> None:
    """Paintings above, what the codes make of them below."""
    place, factor = codes.quantize.embedding.weight.device, codes.config.downsampling
    above, below = [], []
    for one in paintings:
        height, width = (side // factor * factor for side in one.size)
        pixels = torch.from_numpy(one.read()[:height, :width].copy()).permute(2, 0, 1)
        rebuilt = codes(to_image(pixels[None].to(place)))[0]
        above.append(one.read())
        below.append(to_pixels(rebuilt[0]).permute(1, 2, 0).cpu().numpy())
    write_grid(path, above, below)


def draw_masks(workspace: Workspace, masks: Sequence[Picture], codes: VQGAN) -> None:
    """Masks above, what the codes make of them below, in the classes' colours."""
    colours = workspace.settings().classes.colours()
    colours[UNLABELLED] = 0
    write_grid(
        workspace.reports / "generate-train-mask.png",
        [colours[one.read() - np.uint8(1)] for one in masks],
        [colours[_redrawn(codes, one) - np.uint8(1)] for one in masks],
    )


@torch.no_grad()
def draw_windows(
    workspace: Workspace,
    shown: Sequence[Tokens],
    gpt: GPT,
    painting_codes: VQGAN,
    config: TransformerSettings,
) -> None:
    """Windows of paintings above, as the codes have them; below what the transformer paints from their masks."""
    masks, paintings = held_out_windows(shown[:SHOWN], config.window, config.seed)
    grids = [one[:SHOWN].view(-1, config.window, config.window) for one in (masks, paintings)]
    place = gpt.pos_emb.device
    codes = painting_codes.config.codebook_size
    made = paint_tokens(Decoder(gpt), grids[0].to(place), Chance(seed=config.seed), codes=codes).tokens
    pictures = [to_pixels(painting_codes.decode_indices(one.to(place))) for one in (grids[1], made)]
    above, below = (list(one.permute(0, 2, 3, 1).cpu().numpy()) for one in pictures)
    write_grid(workspace.reports / "generate-train-transformer.png", above, below)


def write_grid(path: Path, above: Sequence[Any], below: Sequence[Any]) -> None:
    """Write a PNG of pictures in two rows, e.g. originals above and reconstructions below.

    Args:
        above, below: (H, W, 3) uint8 each; of any sizes.
    """
    stack(path, list(zip(above, below, strict=True)))


def stack(path: Path, columns: Sequence[Sequence[Any]]) -> None:
    """Write a PNG of columns of pictures; every column has as many.

    Args:
        columns: of (H, W, 3) uint8 each; of any sizes.
    """
    heights = [max(one.shape[0] for one in row) for row in zip(*columns, strict=True)]
    widths = [max(one.shape[1] for one in column) for column in columns]
    grid = np.full((sum(heights), sum(widths), 3), 255, np.uint8)
    for number, column in enumerate(columns):
        left = sum(widths[:number])
        for row, one in enumerate(column):
            top = sum(heights[:row])
            grid[top : top + one.shape[0], left : left + one.shape[1]] = one
    with whole_file(path) as temporary:
        Image.fromarray(grid).save(temporary, format="PNG")


@torch.inference_mode()
def _redrawn(net: VQGAN, mask: Picture) -> np.ndarray[Any, np.dtype[np.uint8]]:
    factor = net.config.downsampling
    height, width = (side // factor * factor for side in mask.size)
    ids = torch.from_numpy(mask.read()[:height, :width].astype(np.int64))
    place = net.quantize.embedding.weight.device
    logits = net.decode(net.encode_mask(ids[None].to(place)).z)  # (1, n_labels, H, W)
    return cast("np.ndarray[Any, np.dtype[np.uint8]]", logits[0].argmax(0).to(torch.uint8).cpu().numpy())
