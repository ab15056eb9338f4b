"""How well the transformer foretells paintings that it has not learnt from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from generate.data import even_starts
from generate.gpt import GPT
from generate.losses import next_token_loss
from segment.device import has_fast_bfloat16

TOGETHER = 8  # windows of one forward pass


@torch.no_grad()
def nats_a_token(gpt: GPT, masks: Tensor, paintings: Tensor) -> float:
    """Mean cross-entropy of the painting tokens, given the mask's and those before; `gpt` in evaluation mode.

    Args:
        masks, paintings: (N, n) tokens of N windows.
    """
    place = gpt.pos_emb.device
    total = 0.0
    for mask, painting in zip(torch.split(masks, TOGETHER), torch.split(paintings, TOGETHER), strict=True):
        mask, painting = mask.to(place), painting.to(place)
        with torch.autocast(place.type, torch.bfloat16, enabled=has_fast_bfloat16(place)):
            logits = gpt(torch.cat([mask, painting[:, :-1]], dim=1))
        total += float(next_token_loss(logits, painting)) * len(mask)
    return total / len(masks)


def even_windows(grids: Sequence[Tensor], side: int) -> Tensor:
    """Windows that cover grids (C, h, w) of tokens evenly: (N, C, side * side)."""
    cut = [
        grid[:, top : top + side, left : left + side].flatten(1)
        for grid in grids
        for top in even_starts(grid.shape[1], side)
        for left in even_starts(grid.shape[2], side)
    ]
    return torch.stack(cut)
