"""Brush codec against `label_studio_sdk.converter.brush`: milliseconds a mask, medians, taking turns.

Each row is one mask with anti-aliased edges, the same for both. Theirs decodes with `decode_rle` and encodes
with `mask2rle`; what either side encodes, the other decodes to the same mask, which is checked first. The
colourful mask is noise: every pixel has another alpha than the one before it.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
from label_studio_sdk.converter import brush as theirs
from numpy.typing import NDArray

from annotate.brush import decode, encode
from bench.timing import side_by_side

STROKE = Path(__file__).parent.parent / "tests" / "golden" / "browser-annotation.json"


def blobs(height: int, width: int, count: int, seed: int = 0) -> NDArray[np.uint8]:
    """Discs with anti-aliased edges: one in the middle, the others anywhere."""
    rng = np.random.default_rng(seed)
    side = min(height, width)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    alpha = np.clip(0.3 * side - np.hypot(y - height / 2, x - width / 2) + 0.5, 0, 1)
    for _ in range(count - 1):
        top, left, radius = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(0.02, 0.15) * side
        np.maximum(alpha, np.clip(radius - np.hypot(y - top, x - left) + 0.5, 0, 1), out=alpha)
    soft: NDArray[np.uint8] = np.round(alpha * 255).astype(np.uint8)
    return soft


def run() -> list[dict[str, object]]:
    masks = {}
    for height, width in ((512, 512), (1024, 1024), (1600, 2000)):
        masks[f"{width} x {height}, one disc"] = blobs(height, width, 1)
        masks[f"{width} x {height}, 13 discs"] = blobs(height, width, 13)
    drawn = json.loads(STROKE.read_text())
    masks["1000 x 800, a browser's stroke"] = decode(drawn["result"][0]["value"]["rle"], tuple(drawn["size"]))
    masks["1000 x 800, colourful"] = np.random.default_rng(0).integers(0, 256, (800, 1000), np.uint8)
    return [_row(name, alpha) for name, alpha in masks.items()]


def _row(name: str, alpha: NDArray[np.uint8]) -> dict[str, object]:
    size = alpha.shape[0], alpha.shape[1]
    rle, other = encode(alpha), theirs.mask2rle(alpha)
    assert (decode(other, size) == alpha).all()
    assert (theirs.decode_rle(rle).reshape(-1, 4) == alpha.reshape(-1, 1)).all()
    rounds = 7 if len(rle) < 100_000 else 1
    decoding = side_by_side(
        {"sdk": partial(theirs.decode_rle, other), "ours": partial(decode, other, size)}, rounds
    )
    encoding = side_by_side({"sdk": partial(theirs.mask2rle, alpha), "ours": partial(encode, alpha)}, rounds)
    row: dict[str, object] = {"mask (W x H)": name, "bytes": len(rle)}
    for what, taken in (("decode", decoding), ("encode", encoding)):
        row |= {
            f"{what}, SDK": taken["sdk"],
            f"{what}, ours": taken["ours"],
            f"{what}, times": taken["sdk"] / taken["ours"],
        }
    return row
