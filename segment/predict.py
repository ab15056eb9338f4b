"""What a trained network sees in a painting: class indices and confidence, at the painting's own size."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as T

from segment.config import LabelConfig
from segment.data import normalise, rescaled, scaled_size, to_tensor
from segment.device import has_fast_bfloat16
from segment.inference import Inference
from segment.model import Segmenter

AT_ONCE = 2**26  # probabilities, 256 MiB of them
OVERLAP = 128  # pixels that neighbouring tiles share; the network sees about that far


def predict_map(
    segmenter: Segmenter, image: NDArray[np.uint8], config: LabelConfig | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Label one painting.

    Args:
        image: (H, W, 3) uint8.
        config: flip, scales and tile; its threshold is not applied here.

    Returns:
        (H, W) class indices, and (H, W) confidence in 0..1: the mean probability of that class.
    """
    config = config or LabelConfig()
    height, width = image.shape[:2]
    pixels = to_tensor(image).to(segmenter.device)  # (3, H, W)
    base = scaled_size((height, width), segmenter.smallest_side)
    total = torch.zeros(len(segmenter.classes), *base, device=segmenter.device)  # (K, h, w)
    for factor in config.factors:
        size = base if factor == 1 else rescaled(base, factor)
        scaled = pixels if size == (height, width) else T.resize(pixels, list(size), antialias=True)
        found = _tiled(segmenter, scaled, config)
        total += found if size == base else _resize(found, base)
    total /= len(config.factors)
    best, index = _enlarge(total, (height, width))
    return index.cpu().numpy(), best.cpu().numpy()


def _tiled(segmenter: Segmenter, pixels: Tensor, config: LabelConfig) -> Tensor:
    """Probabilities (K, h, w) of pixels (3, h, w), in overlapping tiles where a side is longer than the tile."""
    height, width = pixels.shape[1:]
    side = config.tile
    if max(height, width) <= side:
        return _probabilities(segmenter, pixels, config.flip)
    total = torch.zeros(len(segmenter.classes), height, width, device=pixels.device)
    weight = torch.zeros(height, width, device=pixels.device)
    for top in _starts(height, side):
        for left in _starts(width, side):
            part = pixels[:, top : top + side, left : left + side]
            window = _ramp(part.shape[1], pixels.device)[:, None] * _ramp(part.shape[2], pixels.device)[None]
            place = slice(top, top + part.shape[1]), slice(left, left + part.shape[2])
            total[:, *place] += _probabilities(segmenter, part, config.flip) * window
            weight[place] += window
    return total / weight


def _starts(length: int, side: int) -> list[int]:
    """Where tiles begin, so that they cover the length evenly and share at least OVERLAP / 2 pixels."""
    if length <= side:
        return [0]
    count = -(-(length - OVERLAP // 2) // (side - OVERLAP // 2))
    return [round(n * (length - side) / (count - 1)) for n in range(count)]


def _ramp(length: int, device: torch.device) -> Tensor:
    """Weight (length,) of a tile's pixels: it falls towards the edges, where the network sees least."""
    near = torch.arange(length, device=device).float() + 1
    return torch.minimum(near, near.flip(0)).clamp(max=OVERLAP / 2)


@torch.inference_mode()
def _probabilities(segmenter: Segmenter, pixels: Tensor, flip: bool) -> Tensor:
    """(3, h, w) uint8 to probabilities (K, h, w)."""
    batch = torch.stack([pixels, pixels.flip(-1)] if flip else [pixels])
    fast = has_fast_bfloat16(segmenter.device) and not isinstance(segmenter.net, Inference)
    with torch.autocast(segmenter.device.type, torch.bfloat16, enabled=fast):
        logits = segmenter.net(normalise(batch))["out"]  # (1 or 2, K, h, w)
    found: Tensor = logits.float().softmax(1)
    return (found[0] + found[1].flip(-1)) / 2 if flip else found[0]


def _resize(found: Tensor, size: tuple[int, int]) -> Tensor:
    """(K, h, w) to (K, *size), bilinear."""
    return F.interpolate(found[None], size, mode="bilinear", align_corners=False)[0]


def _enlarge(found: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The greatest probability and its class, (H, W) each; class by class where all at once may not fit."""
    if found.shape[1:] == size or len(found) * size[0] * size[1] <= AT_ONCE:
        best, index = (found if found.shape[1:] == size else _resize(found, size)).max(0)
        return best, index.to(torch.uint8)
    best = torch.full(size, -1.0, device=found.device)
    index = torch.zeros(size, dtype=torch.uint8, device=found.device)
    for k in range(len(found)):
        one = _resize(found[k : k + 1], size)[0]
        index[one > best] = k
        best = torch.maximum(best, one)
    return best, index


def to_levels(confidence: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Confidence 0..1 as a confidence map holds it: 0..255, any shape."""
    levels: NDArray[np.uint8] = (confidence * 255).round().clip(0, 255).astype(np.uint8)
    return levels
