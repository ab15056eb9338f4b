"""What guessing ahead (`generate/drafting.py`) saves with a trained transformer: the same tokens in fewer passes.

The models are those of a workspace that `tool demo` has trained on its painter's scenes (preset `small`, 128 codes); the
environment variable BENCH_WORKSPACE names it. The masks of four scenes are painted without guesses and with them, in
turns, and the medians are taken: one window of 16 x 16 tokens, eight paintings of it together, and a canvas of
28 x 36 tokens in blocks. `a pass` is how many tokens of a painting one pass of the transformer settles. `same` are the tokens, of
all, that are the same either way. The seed document's transformer with random weights is in `sample`.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from statistics import median
from unittest.mock import patch

import torch
from torch import Tensor

from annotate.workspace import Workspace
from bench.block_quality import CANVAS, CPU, scene_masks
from generate.decoding import Decoder
from generate.drafting import Luck
from generate.painting import Chance, paint_tokens
from generate.projection import Precision
from generate.sample import load_models

SCENES = 4
Painting = tuple[float, int, Tensor]  # milliseconds a token, passes, tokens


def run() -> list[dict[str, object]]:
    """One row for each work and precision."""
    workspace = Workspace(Path(os.environ.get("BENCH_WORKSPACE", "demo-workspace")))
    models = load_models(workspace, CPU)
    canvases = scene_masks(workspace, models, SCENES)  # (S, h, w)
    side = models.transformer.config.window
    windows = canvases[:, -side:, -side:]
    rows = []
    precisions: tuple[Precision, ...] = ("float32", "bfloat16", "int8")
    for precision in precisions:
        decoder = Decoder(models.transformer, precision)
        _paint(decoder, windows[:1], 1)  # warm
        for what, masks, count, stride in (
            ("one window", windows, 1, 1),
            ("eight paintings of it", windows, 8, 1),
            (f"{CANVAS[0]} x {CANVAS[1]} tokens, blocks", canvases, 1, side // 2),
        ):
            rows.append({"work": what, "precision": precision, **_compare(decoder, masks, count, stride)})
    return rows


def _compare(decoder: Decoder, masks: Tensor, count: int, stride: int) -> dict[str, object]:
    alone, ahead = list[Painting](), list[Painting]()
    for one in masks:
        together = one.expand(count, -1, -1)
        with patch.object(Luck, "guesses", lambda luck, sequences: 0):
            alone.append(_paint(decoder, together, stride))
        ahead.append(_paint(decoder, together, stride))
    pairs = zip(alone, ahead, strict=True)
    same = torch.cat([(a[2] == b[2]).flatten() for a, b in pairs])
    slow, fast = (median(ms for ms, _, _ in found) for found in (alone, ahead))
    return {
        "one at a time, ms a token": slow,
        "guessing ahead": fast,
        "times faster": slow / fast,
        "a pass": masks.numel() / sum(passes for _, passes, _ in ahead),
        "same": f"{int(same.sum())} of {len(same)}",
    }


def _paint(decoder: Decoder, mask_tokens: Tensor, stride: int) -> Painting:
    passes: list[int] = []
    started = time.perf_counter()
    painted = paint_tokens(decoder, mask_tokens, Chance(), stride, advance=passes.append)
    spent = 1000 * (time.perf_counter() - started)
    return spent / mask_tokens.numel(), len(passes), painted.tokens
