"""Block mode and the lower precisions against exact mode in float32: is the painting as likely, does a seam show?

The models are those of a workspace that `tool demo` has trained on its painter's scenes (preset `small`); the
environment variable BENCH_WORKSPACE names it. The masks of four scenes, cut to 28 x 36 tokens, are painted twice in
either mode with the same noise. `log-likelihood` is the mean over all tokens in nats, each token judged in the window
that the reference would use for it: exact mode sums its own, block mode's canvas is judged afterwards by the same
rule. The standard error takes the tokens as independent.

`seam` compares gradient energy (mean square of the step from pixel to pixel) between neighbouring tokens of two blocks
with that between neighbours in one block, the mean of rows and columns; exact mode has no blocks there and is the
control. `change` is against exact mode. The rows of precisions judge one and the same canvases, exact mode's, at
the same places drawn at random.
"""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from annotate.masks import Encoding, read_mask
from annotate.progress import note
from annotate.workspace import Workspace
from generate.decoding import Decoder
from generate.painting import Chance, Painted, paint_tokens
from generate.projection import Precision
from generate.sample import Models, encode_canvas, load_models
from generate.tiles import decode_tiled
from generate.window import block_waves, local

SCENES, TWICE = 4, 2
CANVAS = (28, 36)  # tokens
TOGETHER = 32  # windows judged in one batch
PLACES = 64  # of each canvas, to compare precisions at
CPU = torch.device("cpu")


def run() -> list[dict[str, object]]:
    """One row for each mode and precision."""
    workspace = Workspace(Path(os.environ.get("BENCH_WORKSPACE", "demo-workspace")))
    models = load_models(workspace, CPU)
    decoder, side = Decoder(models.transformer), models.transformer.config.window
    mask_tokens = scene_masks(workspace, models).repeat_interleave(TWICE, 0)
    everywhere = [(i, j) for i in range(CANVAS[0]) for j in range(CANVAS[1])]
    note("exact mode")
    exact = paint_tokens(decoder, mask_tokens, Chance(), 1)
    note("block mode")
    block = paint_tokens(decoder, mask_tokens, Chance(), side // 2)
    note("block mode's likelihood")
    judged = judge(decoder, mask_tokens, block.tokens, everywhere)
    control = exact.log_likelihood.mean().item()
    error = judged.std().item() / judged.numel() ** 0.5
    rows = [
        _row("exact, float32", control, control, error, _seam(models, exact)),
        _row("blocks, float32", judged.mean().item(), control, error, _seam(models, block)),
    ]
    chosen = [everywhere[n] for n in torch.randperm(len(everywhere))[:PLACES].tolist()]
    reference = judge(decoder, mask_tokens, exact.tokens, chosen)
    precisions: tuple[Precision, ...] = ("float32", "bfloat16", "int8")
    for precision in precisions:
        likely = judge(Decoder(models.transformer, precision), mask_tokens, exact.tokens, chosen)
        off = (likely - reference).std().item() / likely.numel() ** 0.5
        what = f"{precision} judges exact mode's"
        rows.append(_row(what, likely.mean().item(), reference.mean().item(), off, ""))
    return rows


def judge(decoder: Decoder, mask_tokens: Tensor, tokens: Tensor, places: list[tuple[int, int]]) -> Tensor:
    """Log-likelihood (len(places) B,) of tokens (B, h, w), each in the reference's window for it.

    Windows where the token has the same place share a batch.
    """
    side = decoder.config.window
    height, width = tokens.shape[1:]
    groups: dict[int, list[Tensor]] = defaultdict(
        list
    )  # place in the window -> windows, and what stands there
    for i, j in places:
        row, column = local(i, height, side), local(j, width, side)
        rows, columns = slice(i - row, i - row + side), slice(j - column, j - column + side)
        window = torch.cat([grid[:, rows, columns].flatten(1) for grid in (mask_tokens, tokens)], 1)
        groups[row * side + column].append(window)  # (B, 2 side side)
    found = []
    with torch.inference_mode():
        for place, windows in groups.items():
            together, end = torch.cat(windows), side * side + place
            for first in range(0, len(together), TOGETHER):
                batch = together[first : first + TOGETHER]
                logits = decoder.session(len(batch)).feed(batch[:, :end])
                found.append(logits.log_softmax(1).gather(1, batch[:, end : end + 1])[:, 0])
    return torch.cat(found)


def scene_masks(workspace: Workspace, models: Models) -> Tensor:
    """(SCENES, h, w) mask tokens of the first scenes, cut to CANVAS."""
    factor = models.mask_codes.config.downsampling
    height, width = (side * factor for side in CANVAS)
    found = []
    for key in workspace.keys_with_mask("shifted")[:SCENES]:
        ids = read_mask(workspace.mask("shifted", key), Encoding.SHIFTED)[:height, :width]
        tokens = encode_canvas(models, ids, CPU)
        if tuple(tokens.shape[1:]) != CANVAS:
            raise SystemExit(f"{key}: mask {ids.shape} is smaller than {height} x {width} pixels")
        found.append(tokens)
    return torch.cat(found)


def _seam(models: Models, painted: Painted) -> str:
    """Gradient energy between tokens of two blocks, over that between two of one; the mean of rows and columns."""
    codes, side = models.painting_codes, models.transformer.config.window
    factor, owner = codes.config.downsampling, _owner(side)
    size = (CANVAS[0] * factor, CANVAS[1] * factor)
    ratios = []
    for axis in (0, 1):
        meet, inside = [], []
        border = np.diff(owner, axis=axis) != 0
        for tokens in painted.tokens:
            energy = np.square(np.diff(decode_tiled(codes, tokens, size).astype(float), axis=axis)).mean(2)
            across = np.moveaxis(energy, axis, 0)[factor - 1 :: factor]  # (tokens - 1, pixels)
            across = across.reshape(len(across), -1, factor).mean(2)
            borders = np.moveaxis(border, axis, 0)
            meet.append(across[borders].mean())
            inside.append(across[~borders].mean())
        ratios.append(fmean(meet) / fmean(inside))
    return f"{fmean(ratios):.3f}"


def _owner(side: int) -> NDArray[np.int64]:
    """The number of the block that paints each token of a canvas."""
    owner = np.zeros(CANVAS, np.int64)
    tasks = [task for wave in block_waves(*CANVAS, side) for task in wave]
    for number, task in enumerate(tasks):
        for place in task.places:
            owner[task.top + place // side, task.left + place % side] = number
    return owner


def _row(what: str, likely: float, control: float, error: float, seam: str) -> dict[str, object]:
    return {
        "what": what,
        "log-likelihood": f"{likely:.4f}",
        "change, %": f"{100 * (likely - control) / abs(control):+.2f}",
        "standard error, %": f"{100 * error / abs(control):.2f}",
        "seam": seam,
    }
