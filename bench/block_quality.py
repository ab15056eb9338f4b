"""Block mode and the lower precisions against exact mode in float32: is the painting as likely, does a seam show?

The models are those of a workspace that `tool demo` has trained on its painter's scenes (preset `small`); the
environment variable BENCH_WORKSPACE names it. The masks of 16 scenes are cut to 28 x 36 tokens, and each is moved down and
right by another 0 to 7 tokens (what is missing there is mirrored). Eight of them are painted in either mode with the same
noise. `log-likelihood` is the mean over all tokens in nats, each token judged in the window that the reference would use
for it: exact mode sums its own, block mode's canvas is judged afterwards by the same rule. The standard error takes the
tokens as independent. `change` is against exact mode.

`seam` is the gradient energy (mean square of the step from pixel to pixel) between two tokens of two blocks, over that
between the two pairs of tokens on either side of them, which are of one block: 1 where there is no seam, whatever is
painted there. Block mode paints each of the 16 masks moved by each of 0 to 7 tokens for it, so that a scene's own edges,
a horizon, lie everywhere between the borders. Exact mode, which has no blocks there, is a control of few canvases. The
errors are those of drawing other canvases (bootstrap).

The rows of precisions judge one and the same canvases, exact mode's, at the same places drawn at random.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from annotate.masks import Encoding, read_mask
from annotate.progress import note
from annotate.workspace import Workspace
from generate.decoding import Decoder
from generate.painting import Chance, paint_tokens
from generate.projection import Precision
from generate.sample import Models, encode_canvas, load_models
from generate.tiles import decode_tiled
from generate.window import block_waves, local

SCENES, MOVES, JUDGED = 16, 8, 8
CANVAS = (28, 36)  # tokens
TOGETHER = 32  # windows judged in one batch
NEAR = 2  # pairs of tokens on either side of a border that it is compared with
PLACES = 64  # of each canvas, to compare precisions at
CPU = torch.device("cpu")


def run() -> list[dict[str, object]]:
    """One row for each mode and precision."""
    workspace = Workspace(Path(os.environ.get("BENCH_WORKSPACE", "demo-workspace")))
    models = load_models(workspace, CPU)
    decoder, side = Decoder(models.transformer), models.transformer.config.window
    scenes = scene_masks(workspace, models, SCENES)
    mask_tokens = _moved(scenes, 0)[:JUDGED]
    everywhere = [(i, j) for i in range(CANVAS[0]) for j in range(CANVAS[1])]
    note("exact mode")
    exact = paint_tokens(decoder, mask_tokens, Chance(), 1)
    note("block mode")
    block, *more = [paint_tokens(decoder, _moved(scenes, n), Chance(seed=n), side // 2) for n in range(MOVES)]
    note("block mode's likelihood")
    judged = judge(decoder, mask_tokens, block.tokens[:JUDGED], everywhere)
    control = exact.log_likelihood.mean().item()
    error = judged.std().item() / judged.numel() ** 0.5
    rows = [
        _row("exact, float32", control, control, error, *_seams(models, exact.tokens)),
        _row(
            "blocks, float32",
            judged.mean().item(),
            control,
            error,
            *_seams(models, torch.cat([one.tokens for one in (block, *more)])),
        ),
    ]
    chosen = [everywhere[n] for n in torch.randperm(len(everywhere))[:PLACES].tolist()]
    reference = judge(decoder, mask_tokens, exact.tokens, chosen)
    precisions: tuple[Precision, ...] = ("float32", "bfloat16", "int8")
    for precision in precisions:
        likely = judge(Decoder(models.transformer, precision), mask_tokens, exact.tokens, chosen)
        off = (likely - reference).std().item() / likely.numel() ** 0.5
        what = f"{precision} judges exact mode's"
        rows.append(_row(what, likely.mean().item(), reference.mean().item(), off))
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


def scene_masks(workspace: Workspace, models: Models, count: int) -> Tensor:
    """(count, h, w) mask tokens of the first scenes, cut to CANVAS."""
    factor = models.mask_codes.config.downsampling
    height, width = (side * factor for side in CANVAS)
    found = []
    for key in workspace.keys_with_mask("shifted")[:count]:
        ids = read_mask(workspace.mask("shifted", key), Encoding.SHIFTED)[:height, :width]
        tokens = encode_canvas(models, ids, CPU)
        if tuple(tokens.shape[1:]) != CANVAS:
            raise SystemExit(f"{key}: mask {ids.shape} is smaller than {height} x {width} pixels")
        found.append(tokens)
    return torch.cat(found)


def _moved(scenes: Tensor, first: int) -> Tensor:
    """(N, h, w) with number n moved down and right by (n + first) % MOVES tokens."""
    moved = []
    for n, scene in enumerate(scenes):
        step = (n + first) % MOVES
        for axis, length in enumerate(CANVAS):
            mirrored = scene.narrow(axis, 1, step).flip(axis)
            scene = torch.cat([mirrored, scene], axis).narrow(axis, 0, length)
        moved.append(scene)
    return torch.stack(moved)


def _seams(models: Models, canvases: Tensor) -> tuple[str, str]:
    """Between rows and between columns: gradient energy across the borders of blocks, over that close by."""
    codes, side = models.painting_codes, models.transformer.config.window
    factor, owner = codes.config.downsampling, _owner(side)
    size = (CANVAS[0] * factor, CANVAS[1] * factor)
    pictures = [decode_tiled(codes, tokens, size).astype(float) for tokens in canvases]
    rows, columns = (
        _seam([_between(np.moveaxis(one, axis, 0), factor) for one in pictures], np.moveaxis(owner, axis, 0))
        for axis in (0, 1)
    )
    return rows, columns


def _between(picture: NDArray[np.float64], factor: int) -> NDArray[np.float64]:
    """(H, W, 3) -> (h - 1, w), energy of the step from each token to the one below it."""
    steps = np.diff(picture, axis=0)[factor - 1 :: factor]  # (h - 1, W, 3)
    found: NDArray[np.float64] = np.square(steps).reshape(len(steps), -1, 3 * factor).mean(2)
    return found


def _seam(energies: Sequence[NDArray[np.float64]], owner: NDArray[np.int64]) -> str:
    """The borders between blocks that have NEAR pairs of one block on either side."""
    border = np.diff(owner, axis=0) != 0
    meet, near = np.zeros(len(energies)), np.zeros(len(energies))
    for i, j in np.argwhere(border):
        beside = [i + step for step in range(-NEAR, NEAR + 1) if step]
        if beside[0] >= 0 and beside[-1] < len(border) and not border[beside, j].any():
            meet += [one[i, j] for one in energies]
            near += [one[beside, j].mean() for one in energies]
    drawn = np.random.default_rng(0).integers(len(meet), size=(1000, len(meet)))
    error = (meet[drawn].sum(1) / near[drawn].sum(1)).std()
    return f"{meet.sum() / near.sum():.3f} ± {error:.3f}"


def _owner(side: int) -> NDArray[np.int64]:
    """The number of the block that paints each token of a canvas."""
    owner = np.zeros(CANVAS, np.int64)
    tasks = [task for wave in block_waves(*CANVAS, side) for task in wave]
    for number, task in enumerate(tasks):
        for place in task.places:
            owner[task.top + place // side, task.left + place % side] = number
    return owner


def _row(
    what: str, likely: float, control: float, error: float, rows: str = "", columns: str = ""
) -> dict[str, object]:
    return {
        "what": what,
        "log-likelihood": f"{likely:.4f}",
        "change, %": f"{100 * (likely - control) / abs(control):+.2f}",
        "standard error, %": f"{100 * error / abs(control):.2f}",
        "seam between rows": rows,
        "between columns": columns,
    }
