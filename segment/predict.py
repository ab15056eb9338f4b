"""A mask and a confidence for every painting that no person annotated."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as T

from annotate.classes import UNLABELLED
from annotate.errors import UserError
from annotate.files import whole_file
from annotate.masks import CHUNK, Encoding, mask_texts, write_mask
from annotate.paintings import Painting, load_painting, read_index
from annotate.progress import progress
from annotate.workspace import Workspace
from segment.config import LabelConfig
from segment.data import normalise, scaled_size, to_tensor
from segment.device import choose_device, has_fast_bfloat16
from segment.model import Segmenter, load

OVERLAP = 128  # pixels that neighbouring tiles share; the network sees about that far
MADE_BY = "labelled-by"  # text chunk: what the mask was made by, and from


@dataclass(frozen=True)
class LabelResult:
    """What one labelling did."""

    labelled: int  # now
    there: int  # made by the same model and settings before
    hand: int  # annotated by a person, left alone
    mean_confidence: float  # over the paintings labelled by this model, 0 to 1
    unlabelled: float  # share of their pixels below the threshold
    seconds: float
    problems: tuple[str, ...]  # one line for each painting that was left out


def pseudo_label(workspace: Workspace, config: LabelConfig, device: str = "auto") -> LabelResult:
    """Write masks/pseudo/KEY.png and masks/confidence/KEY.png for every painting without a hand mask.

    A killed run goes on; masks of another model, other settings or another painting are made again.

    Raises:
        UserError: no paintings, no model, a model of other classes, or no such device.
    """
    started = time.monotonic()
    index = read_index(workspace)
    segmenter = load(workspace, choose_device(device))
    hand = set(workspace.keys_with_mask("hand"))
    rest = [one for key, one in index.items() if key not in hand]
    labelled, problems, means, gaps = 0, [], [], []
    with progress("Labelling", len(rest)) as advance:
        for painting in rest:
            made_by = _made_by(segmenter, painting, config)
            found = _done(workspace, painting, made_by)
            if found is None:
                try:
                    found = _label(workspace, painting, segmenter, config, made_by)
                    labelled += 1
                except UserError as error:
                    problems.append(error.message)
            if found is not None:
                means.append(found[0])
                gaps.append(found[1])
            advance(1, note=painting.key)
    return LabelResult(
        labelled,
        len(means) - labelled,
        len(index) - len(rest),
        float(np.mean(means)) if means else 0.0,
        float(np.mean(gaps)) if gaps else 0.0,
        round(time.monotonic() - started, 1),
        tuple(problems),
    )


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
        size = max(1, round(base[0] * factor)), max(1, round(base[1] * factor))
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
    fast = has_fast_bfloat16(segmenter.device)
    with torch.autocast(segmenter.device.type, torch.bfloat16, enabled=fast):
        logits = segmenter.net(normalise(batch))["out"]  # (1 or 2, K, h, w)
    found: Tensor = logits.float().softmax(1)
    return (found[0] + found[1].flip(-1)) / 2 if flip else found[0]


def _resize(found: Tensor, size: tuple[int, int]) -> Tensor:
    """(K, h, w) to (K, *size), bilinear."""
    return F.interpolate(found[None], size, mode="bilinear", align_corners=False)[0]


def _enlarge(found: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The greatest probability and its class, (H, W) each, class by class: all of them at once may not fit."""
    if found.shape[1:] == size:
        best, index = found.max(0)
        return best, index.to(torch.uint8)
    best = torch.full(size, -1.0, device=found.device)
    index = torch.zeros(size, dtype=torch.uint8, device=found.device)
    for k in range(len(found)):
        one = _resize(found[k : k + 1], size)[0]
        index[one > best] = k
        best = torch.maximum(best, one)
    return best, index


def _label(
    workspace: Workspace, painting: Painting, segmenter: Segmenter, config: LabelConfig, made_by: str
) -> tuple[float, float]:
    """Label one painting and write both files; returns (mean confidence, share below the threshold)."""
    image = load_painting(painting.file(workspace))
    if image.shape[:2] != painting.size:
        raise UserError(f"{painting.path}: has another size than when it was pushed; push the folder again")
    indices, confidence = predict_map(segmenter, image, config)
    raw = segmenter.classes.to_raw(indices)
    below = confidence < config.threshold
    raw[below] = UNLABELLED
    mean, gap = float(confidence.mean()), float(below.mean())
    about = {MADE_BY: made_by, "mean-confidence": f"{mean:.6f}", "below-threshold": f"{gap:.6f}"}
    levels = (confidence * 255).round().clip(0, 255).astype(np.uint8)
    _write_confidence(workspace.mask("confidence", painting.key), levels)
    write_mask(workspace.mask("pseudo", painting.key), raw, Encoding.RAW, about)  # last: it says "done"
    return mean, gap


def _write_confidence(path: Path, levels: NDArray[np.uint8]) -> None:
    """(H, W) uint8, confidence * 255, as a PNG that says that it is no mask."""
    info = PngImagePlugin.PngInfo()
    info.add_text(CHUNK, "confidence")
    with whole_file(path) as temporary:
        Image.fromarray(levels, mode="L").save(temporary, format="PNG", pnginfo=info)


def _made_by(segmenter: Segmenter, painting: Painting, config: LabelConfig) -> str:
    """What a pseudo mask depends on: the model, the settings, and the painting."""
    text = json.dumps([segmenter.digest, asdict(config), painting.sha256])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _done(workspace: Workspace, painting: Painting, made_by: str) -> tuple[float, float] | None:
    """(mean confidence, share below the threshold) of a mask that this very model and setting made."""
    path = workspace.mask("pseudo", painting.key)
    if not path.exists() or not workspace.mask("confidence", painting.key).exists():
        return None
    texts = mask_texts(path)
    if texts.get(MADE_BY) != made_by:
        return None
    return float(texts["mean-confidence"]), float(texts["below-threshold"])
