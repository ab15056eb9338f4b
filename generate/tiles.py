"""Large canvases in tiles: VQGANs encode and decode them with memory that does not grow with the canvas.

A canvas of at most `TILE` tokens a side goes through whole, as the reference does it. A larger one is cut into tiles
that overlap: tokens are taken from the middle of each tile, far from its cut edges, and a painting's pixels
fade from one tile into the next, so that the group norms' slightly different statistics make no seam.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from generate.vqgan import VQGAN

TILE = 64  # tokens a side: 1024 pixels with 16 pixels a token
OVERLAP = 8  # tokens that neighbours share


def spans(length: int, tile: int = TILE, overlap: int = OVERLAP) -> list[tuple[int, int]]:
    """[first, last) of overlapping tiles that cover `length`; all but a single one have `tile`."""
    if length <= tile:
        return [(0, length)]
    count = -(-(length - overlap) // (tile - overlap))
    starts = [round(n * (length - tile) / (count - 1)) for n in range(count)]
    return [(start, start + tile) for start in starts]


def in_float32() -> AbstractContextManager[None]:
    """Convolutions on a GPU as exact as on a CPU: TF32, which is torch's default there, can tip a token."""
    flags: AbstractContextManager[None] = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    return flags


@torch.inference_mode()
def encode_tiled(codes: VQGAN, pixels: Tensor, tile: int = TILE, overlap: int = OVERLAP) -> Tensor:
    """Tokens (1, h, w) of a mask's shifted ids (1, H, W), or of a painting (1, 3, H, W) in [-1, 1].

    H and W are multiples of `codes.config.downsampling`.
    """
    factor = codes.config.downsampling
    encode = codes.encode_mask if pixels.ndim == 3 else codes.encode
    height, width = (side // factor for side in pixels.shape[-2:])
    tokens = torch.empty((1, height, width), dtype=torch.int64, device=pixels.device)
    for top, bottom in spans(height, tile, overlap):
        for left, right in spans(width, tile, overlap):
            cut = pixels[..., top * factor : bottom * factor, left * factor : right * factor]
            with in_float32():
                found = encode(cut).indices  # (1, tile, tile)
            # From the middle of what is shared on, this tile knows better than the ones above and to the left.
            row, column = (overlap // 2 if start > 0 else 0 for start in (top, left))
            tokens[:, top + row : bottom, left + column : right] = found[:, row:, column:]
    return tokens


@torch.inference_mode()
def decode_tiled(
    codes: VQGAN, tokens: Tensor, size: tuple[int, ...], tile: int = TILE, overlap: int = OVERLAP
) -> NDArray[np.uint8]:
    """Painting (H, W, 3) of painting tokens (h, w) on any device, cut to `size` (H, W)."""
    factor = codes.config.downsampling
    height, width = tokens.shape
    tokens = tokens.to(codes.quantize.embedding.weight.device)
    canvas = np.zeros((height * factor, width * factor, 3), np.uint8)
    for rows in spans(height, tile, overlap):
        painted = _decode_row(codes, tokens[rows[0] : rows[1]], tile, overlap)  # (tile f, W, 3) float
        top, bottom = rows[0] * factor, rows[1] * factor
        if rows[0] > 0:
            fade = _ramp(overlap * factor)[:, None, None]
            above = canvas[top : top + len(fade)].astype(np.float32)
            painted[: len(fade)] = above * (1 - fade) + painted[: len(fade)] * fade
        canvas[top:bottom] = painted.round().clip(0, 255)
    return canvas[: size[0], : size[1]]


def _decode_row(codes: VQGAN, tokens: Tensor, tile: int, overlap: int) -> NDArray[np.float32]:
    """One row of tiles, faded from left to right: (H, W, 3) in 0..255."""
    factor = codes.config.downsampling
    height, width = tokens.shape
    row = np.zeros((height * factor, width * factor, 3), np.float32)
    for first, last in spans(width, tile, overlap):
        with in_float32():
            image = codes.decode_indices(tokens[None, :, first:last])[0].float()  # (3, H, tile f) in [-1, 1]
        pixels = image.add(1).mul(127.5).clamp(0, 255).permute(1, 2, 0).cpu().numpy()
        left, right = first * factor, last * factor
        if first > 0:
            fade = _ramp(overlap * factor)[None, :, None]
            pixels[:, : overlap * factor] = (
                row[:, left : left + overlap * factor] * (1 - fade) + pixels[:, : overlap * factor] * fade
            )
        row[:, left:right] = pixels
    return row


def _ramp(length: int) -> NDArray[np.float32]:
    return ((np.arange(length) + 0.5) / length).astype(np.float32)
