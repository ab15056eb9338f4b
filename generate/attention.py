"""Causal attention: in training, and over kept keys and values, part of which many sequences may share."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from segment.device import has_fast_bfloat16

# Queries that attend in one product in training; measured.
TOGETHER = {torch.float32: 128, torch.bfloat16: 256}


def attend_in_parts(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention, some queries at a time, each time to the past of the last of them only.

    With a backward of its own: torch's fused attention on a CPU takes up to twice as long, and autograd's of the same
    products a fifth longer.

    Args:
        q, k, v: (B, heads, T, D).
    """
    b, heads, length, width = q.shape
    y = _InParts.apply(*(one.reshape(b * heads, length, width) for one in (q, k, v)))
    return cast(Tensor, y).view(b, heads, length, width)


class _InParts(torch.autograd.Function):
    """(n, T, D) queries, keys and values -> (n, T, D). The weights are kept, only what is not zero of them."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        n, length, width = q.shape
        together = TOGETHER.get(q.dtype, 128)
        future = torch.full((together, together), -torch.inf, dtype=q.dtype, device=q.device).triu(1)
        y, parts = torch.empty_like(q), []
        for first in range(0, length, together):
            end = min(length, first + together)
            weights, near = q.new_empty(n, end - first, end), k[:, :end].transpose(1, 2)
            _product(weights, q[:, first:end], near, 0, width**-0.5)
            weights[:, :, first:] += future[: end - first, : end - first]
            parts.append(weights.softmax(-1))
            y[:, first:end] = parts[-1] @ v[:, :end]
        ctx.save_for_backward(q, k, v, *parts)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (dy,), (q, k, v, *parts) = gradients, ctx.saved_tensors
        dq, dk, dv = (torch.empty_like(one) for one in (q, k, v))
        scale, end, beta = (
            q.shape[2] ** -0.5,
            q.shape[1],
            0,
        )  # the last part reaches everything, the others add to it
        for weights in reversed(parts):
            here, past = slice(end - weights.shape[1], end), slice(end)
            _product(dv[:, past], weights.transpose(1, 2), dy[:, here], beta)
            found = dy[:, here] @ v[:, past].transpose(1, 2)
            found = torch._softmax_backward_data(found, weights, -1, found.dtype)
            _product(dq[:, here], found, k[:, past], 0, scale)
            _product(dk[:, past], found.transpose(1, 2), q[:, here], beta, scale)
            end, beta = here.start, 1
        return dq, dk, dv


def _product(into: Tensor, a: Tensor, b: Tensor, beta: int, alpha: float = 1.0) -> None:
    """into = beta * into + alpha * a @ b, for each of a batch."""
    torch.baddbmm(into, a, b, beta=beta, alpha=alpha, out=into)


def split_heads(qkv: Tensor, batch: int, heads: int) -> Tensor:
    """Queries, keys and values side by side, (B t, 3 C) -> (3, B, heads, t, d)."""
    return qkv.view(batch, -1, 3, heads, qkv.shape[1] // (3 * heads)).permute(2, 0, 3, 1, 4)


def attend(q: Tensor, keys: Tensor, values: Tensor, hidden: Tensor | None) -> Tensor:
    """Attention of the last t of n tokens, each to itself and all before it.

    Args:
        q: (B, heads, t, d).
        keys, values: (B, heads, n, d).
        hidden: of `hide`; None where t is n: only what is ahead of a token is hidden from it.

    Returns:
        (B, heads, t, d)
    """
    if hidden is None and q.shape[2] == keys.shape[2] > 1:
        return F.scaled_dot_product_attention(q, keys, values, is_causal=True)
    if hidden is not None and q.is_cuda and q.dtype == torch.float32:
        # torch's fused attention has no quick kernel for it: 16 tokens take ten times as long
        scores = (q * q.shape[-1] ** -0.5) @ keys.transpose(-1, -2)
        return torch.matmul((scores + hidden).softmax(-1), values)
    return F.scaled_dot_product_attention(_quick(q), keys, values, attn_mask=hidden)[:, :, : q.shape[2]]


def attend_after(prefix: Tensor, q: Tensor, keys: Tensor, values: Tensor, hidden: Tensor | None) -> Tensor:
    """The same where a prefix stands before the keys and values that sequences do not have in common.

    The queries of all sequences with one prefix meet it in one matrix product, so it is read once; both parts are
    joined by their logarithms of the sum of exponentials.

    Args:
        prefix: (2, A, heads, m, d) keys and values, each for B / A sequences in a row.
        q: (B, heads, t, d).
        keys, values: (B, heads, n, d).
        hidden: of `hide`, for the n.

    Returns:
        (B, heads, t, d)

    Source: Juravsky et al. 2024 (Hydragen), section 3.
    """
    rows, count = prefix.shape[1], q.shape[2]
    together = q.view(rows, -1, *q.shape[1:]).transpose(1, 2).flatten(2, 3)  # (A, heads, B / A t, d)
    y, total = _with_sum(together, prefix[0], prefix[1], None)
    y = y.view(*y.shape[:2], -1, count, y.shape[-1]).transpose(1, 2).flatten(0, 1)  # (B, heads, t, d)
    total = total.view(*total.shape[:2], -1, count).transpose(1, 2).flatten(0, 1)
    own, own_sum = _with_sum(q, keys, values, hidden)
    share = torch.sigmoid(total - own_sum)[..., None]
    return torch.lerp(own.float(), y.float(), share).to(q.dtype)


def hide(places: Tensor, end: int, like: Tensor, holes: Tensor | None) -> Tensor:
    """(1 or B, 1, t, end) in the precision of `like`: 0 where a token sees another, else -inf.

    Args:
        places: (1 or B, t) where the t tokens of each sequence stand; one row where they are the same.
        end: how many tokens there are to be seen.
        holes: (end or more,) bool, of tokens that no other may see; None without any.
    """
    places, others = places[:, None, :, None], torch.arange(end, device=places.device)
    unseen = others > places  # (B, 1, t, end)
    if holes is not None:
        unseen |= holes[:end] & (others != places)
    return torch.zeros(unseen.shape, dtype=like.dtype, device=like.device).masked_fill_(unseen, -torch.inf)


def _with_sum(q: Tensor, keys: Tensor, values: Tensor, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attention (B, heads, t, d), and the logarithm of the sum of exponentials (B, heads, t) in float32; on a CPU."""
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    y, total = flash(_quick(q), keys, values, attn_mask=hidden)
    return y[:, :, : q.shape[2]], total[:, :, : q.shape[2]]


def _quick(q: Tensor) -> Tensor:
    """A single query twice, where two take less time than one.

    So it is in bfloat16 on a CPU that has no hardware for it, where torch multiplies single rows by another way: attention
    of eight sequences to 384 tokens took 117 ms, and takes 69.
    """
    alone = q.shape[2] == 1 and q.dtype == torch.bfloat16 and q.device.type == "cpu"
    return q.expand(-1, -1, 2, -1) if alone and not has_fast_bfloat16(q.device) else q
