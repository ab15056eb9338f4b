"""The transformer that predicts painting tokens from mask tokens. State-dict names are taming-transformers'.

Source: taming-transformers, taming/modules/transformer/mingpt.py (after minGPT).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generate.attention import attend_in_parts
from generate.config import GPTConfig


class CausalSelfAttention(nn.Module):
    """Multi-head attention to the past; separate projections, as the checkpoints hold them.

    Unlike the reference it drops no attention weights in training, only what leaves the block: dropout inside
    rules out the fused kernel, and made a step on a CPU four times slower (2.4 s against 0.55 s, preset `small`).
    """

    def __init__(self, c: GPTConfig) -> None:
        super().__init__()
        self.heads = c.heads
        self.key = nn.Linear(c.width, c.width)
        self.query = nn.Linear(c.width, c.width)
        self.value = nn.Linear(c.width, c.width)
        self.proj = nn.Linear(c.width, c.width)
        self.resid_drop = nn.Dropout(c.dropout)

    def split(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, heads, T, C / heads)."""
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def forward(self, x: Tensor, rows: slice = slice(None)) -> Tensor:
        """(B, T, C) -> (B, rows, C), for the rows of T that are wanted."""
        x = _for_products(x)
        layers = (self.query, self.key, self.value)
        # on a GPU, one product fills more of it than three
        parts = in_one_product(x, layers) if x.device.type == "cuda" else [layer(x) for layer in layers]
        q, k, v = (self.split(one) for one in parts)
        if x.device.type == "cpu" and torch.is_grad_enabled():
            y = attend_in_parts(q, k, v)
        else:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        y = y.transpose(1, 2)[:, rows].flatten(2)
        return cast(Tensor, self.resid_drop(self.proj(y)))


class Block(nn.Module):
    """Attention, then a feed-forward of four times the width, each behind a layer norm."""

    def __init__(self, c: GPTConfig) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(c.width)
        self.ln2 = nn.LayerNorm(c.width)
        self.attn = CausalSelfAttention(c)
        self.mlp = nn.Sequential(
            nn.Linear(c.width, 4 * c.width), nn.GELU(), nn.Linear(4 * c.width, c.width), nn.Dropout(c.dropout)
        )

    def forward(self, x: Tensor, rows: slice = slice(None)) -> Tensor:
        """(B, T, C) -> (B, rows, C), for the rows of T that are wanted."""
        x = x[:, rows] + self.attn(self.ln1(x), rows)
        return x + cast(Tensor, self.mlp(_for_products(self.ln2(x))))


class GPT(nn.Module):
    """Learned absolute positions, one token embedding for mask and painting tokens, logits over the codebook."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.tok_emb = nn.Embedding(config.vocab_size, config.width)
        self.pos_emb = nn.Parameter(torch.zeros(1, config.block_size, config.width))
        self.drop = nn.Dropout(config.dropout)
        self.blocks = nn.Sequential(*(Block(config) for _ in range(config.layers)))
        self.ln_f = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        self.apply(_init)

    def forward(self, tokens: Tensor, rows: slice = slice(None)) -> Tensor:
        """(B, T) int64, T at most block_size -> logits (B, T, vocab_size); row t predicts token t + 1.

        Args:
            rows: those of T that are wanted; the others' logits are not computed.

        Raises:
            ValueError: more tokens than the block holds.
        """
        length = tokens.shape[1]
        if length > self.config.block_size:
            raise ValueError(f"{length} tokens, but block_size is {self.config.block_size}")
        x = self.drop(self.tok_emb(tokens) + self.pos_emb[:, :length])  # (B, T, C)
        for block in self.blocks[:-1]:
            x = block(x)
        return cast(Tensor, self.head(self.ln_f(self.blocks[-1](x, rows))))


def in_one_product(x: Tensor, layers: Sequence[nn.Linear]) -> Sequence[Tensor]:
    """What each of `layers`, all of one width, makes of x."""
    weight, bias = (torch.cat([getattr(layer, name) for layer in layers]) for name in ("weight", "bias"))
    return F.linear(x, weight, bias).chunk(len(layers), -1)


def _for_products(x: Tensor) -> Tensor:
    """In autocast's precision, once, where each product would else do it for itself."""
    if torch.is_autocast_enabled(x.device.type):
        return x.to(torch.get_autocast_dtype(x.device.type))
    return x


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
