"""The transformer at sampling time: keys and values are kept, projections are fused."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from generate.attention import attend, attend_after
from generate.gpt import GPT, Block
from generate.projection import Precision, activations, kept, projection
from generate.window import Again

# Of keys and values; with the seed document's transformer in float32 a window has 100 MB.
KEPT_BYTES = 3 << 30


class Decoder:
    """A GPT's weights laid out for decoding, in the precision asked for.

    Args:
        model: the trained transformer; it is not changed.
        precision: float32; bfloat16 throughout; or int8 weights (CPU only) with float32 between the layers.
    """

    def __init__(self, model: GPT, precision: Precision = "float32") -> None:
        self.dtype = dtype = activations(precision)
        self.config = model.config
        self.kept = kept(precision)
        self.device = model.head.weight.device
        self.tokens = model.tok_emb.weight.detach().to(dtype)
        self.positions = model.pos_emb.detach()[0].to(dtype)  # (block, C)
        self.blocks = [_FusedBlock(cast(Block, block), precision) for block in model.blocks]
        self.norm = _norm_weights(model.ln_f, dtype)
        self.head = projection(model.head.weight, None, precision)

    def session(self, batch: int) -> Session:
        """Begin `batch` sequences."""
        return Session(self, batch)


class Session:
    """Sequences of one length that grow together; what they have seen is kept as keys and values."""

    def __init__(self, decoder: Decoder, batch: int) -> None:
        self.decoder = decoder
        self.seen = 0
        self.batch = batch
        self.prefix = self._room(0, 0)  # of what several sequences have in common
        self.cache = self._room(batch, decoder.config.block_size)

    @property
    def bytes(self) -> int:
        """Memory that the keys and values take when the sequences are full."""
        return sum(one.numel() * one.element_size() for one in (self.prefix, self.cache))

    def share(self, tokens: Tensor) -> Tensor:
        """Begin with tokens that sequences have in common: they are computed, kept and read once for all of them.

        Args:
            tokens: (A, t), B a multiple of A: each row is the beginning of B / A sequences in a row.

        Returns:
            (B, V) float32 logits for the token that comes next.

        Raises:
            ValueError: the sequences have begun.
        """
        if self.seen:
            raise ValueError("only the beginning of sequences can be shared")
        rows, count = tokens.shape
        self.prefix = self._room(rows, count)
        self.cache = self._room(self.batch, self.decoder.config.block_size - count)
        return self._run(tokens, self.prefix, None).repeat_interleave(self.batch // rows, 0)

    def feed(self, tokens: Tensor) -> Tensor:
        """Append tokens (B, t) and give the logits (B, V), float32, for the token that comes next."""
        return self._run(tokens, self.cache, self.prefix if self.prefix.numel() else None)

    def _run(self, tokens: Tensor, cache: Tensor, prefix: Tensor | None) -> Tensor:
        d = self.decoder
        end = self.seen + tokens.shape[1]
        x = F.embedding(tokens, d.tokens) + d.positions[self.seen : end]  # (B, t, C)
        start = self.seen - (prefix.shape[4] if prefix is not None else 0)
        for number, block in enumerate(d.blocks):
            before = prefix[number] if prefix is not None else None
            x = block.forward(x, cache[number], start, before, only_last=number == len(d.blocks) - 1)
        self.seen = end
        x = F.layer_norm(x[:, -1], (d.config.width,), *d.norm)
        return d.head(x).float()

    def _room(self, batch: int, tokens: int) -> Tensor:
        """(layers, 2, batch, heads, tokens, d), not filled."""
        d, c = self.decoder, self.decoder.config
        shape = (c.layers, 2, batch, c.heads, tokens, c.width // c.heads)
        return torch.empty(shape, dtype=d.kept, device=d.device)


class KeptSessions:
    """Sessions of windows that will be asked again, in bounded memory.

    Windows of the first rows come back row after row, one after another. Where they do not all fit, to drop the one
    that was kept last leaves the others to be found; to drop the oldest would lose every one before its turn.
    """

    def __init__(self, limit: int = KEPT_BYTES) -> None:
        self.limit = limit
        self._kept: dict[Again, dict[tuple[int, int], Session]] = {"soon": {}, "later": {}}

    def take(self, window: tuple[int, int]) -> Session | None:
        """The window's session, which is kept no more."""
        return self._kept["soon"].pop(window, None) or self._kept["later"].pop(window, None)

    def put(self, window: tuple[int, int], session: Session, again: Again) -> None:
        """Keep it if it is asked again and there is room; what is asked soon goes before what is asked later."""
        if again == "never":
            return
        soon, later = self._kept["soon"], self._kept["later"]
        self._kept[again][window] = session
        while sum(one.bytes for one in (*soon.values(), *later.values())) > self.limit:
            (later or soon).popitem()


class _FusedBlock:
    """One transformer block: query, key and value in one matrix, cached attention, then the feed-forward."""

    def __init__(self, block: Block, precision: Precision) -> None:
        attention, dtype = block.attn, activations(precision)
        parts = (attention.query, attention.key, attention.value)
        up, down = (cast(torch.nn.Linear, block.mlp[n]) for n in (0, 2))
        self.heads = attention.heads
        weight, bias = (torch.cat([getattr(one, name) for one in parts]) for name in ("weight", "bias"))
        self.qkv = projection(weight, bias, precision)
        self.proj = projection(attention.proj.weight, attention.proj.bias, precision)
        self.up = projection(up.weight, up.bias, precision)
        self.down = projection(down.weight, down.bias, precision)
        self.norm1, self.norm2 = _norm_weights(block.ln1, dtype), _norm_weights(block.ln2, dtype)

    def forward(self, x: Tensor, cache: Tensor, start: int, before: Tensor | None, only_last: bool) -> Tensor:
        """(B, t, C) -> the same; behind the last block only the last row is of use, so only it is computed.

        Args:
            cache: (2, B, heads, n, d) keys and values, of which `start` are there; those of x are added.
            before: (2, A, heads, m, d), what stands before them and is shared, or None.
        """
        batch, count, width = x.shape
        end = start + count
        h = F.layer_norm(x, (width,), *self.norm1)
        qkv = self.qkv(h).view(batch, count, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (3, B, heads, t, d)
        cache.narrow(3, start, count).copy_(qkv[1:])
        q = qkv[0].to(cache.dtype)
        if only_last:
            q, x, count = q[:, :, -1:], x[:, -1:], 1
        keys, values = cache.narrow(3, 0, end).unbind(0)  # (B, heads, end, d)
        y = attend(q, keys, values) if before is None else attend_after(before, q, keys, values)
        x = x + self.proj(y.transpose(1, 2).reshape(batch, count, width).to(x.dtype))
        h = F.layer_norm(x, (width,), *self.norm2)
        return x + self.down(F.gelu(self.up(h)))


def _norm_weights(layer: torch.nn.LayerNorm, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return layer.weight.detach().to(dtype), layer.bias.detach().to(dtype)
