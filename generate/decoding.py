"""The transformer at sampling time: keys and values are kept, projections are fused."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from generate.attention import attend, attend_after, hide
from generate.gpt import GPT, Block
from generate.projection import Precision, activations, kept, projection
from generate.replay import FixedStep, Rooms

# Of keys and values; with the seed document's transformer in float32 a window has 100 MB.
KEPT_BYTES = 3 << 30
# Tokens that a pass guesses ahead. A pass of 16 rows through the seed document's transformer takes 1.25 (bfloat16) to 1.8
# (float32) times one of a single row; beyond ROWS rows altogether it takes longer than the guesses save.
GUESSES, ROWS = 15, {"cpu": 64, "cuda": 256}
CLEARED = 32  # tokens of the cache that are set to zero ahead of those that a pass reaches


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
        self.rooms = Rooms(self) if self.device.type == "cuda" else None

    def session(self, batch: int, holes: Sequence[int] = ()) -> Session:
        """Begin `batch` sequences, of which no token sees those at `holes`, whatever they are."""
        return Session(self, batch, holes)

    def guesses(self, sequences: int) -> int:
        """How many tokens a pass shall guess ahead in each of some sequences."""
        return max(1, min(GUESSES, ROWS.get(self.device.type, 64) // sequences - 1))


class Session:
    """Sequences of one length that grow together; what they have seen is kept as keys and values."""

    def __init__(self, decoder: Decoder, batch: int, holes: Sequence[int] = ()) -> None:
        self.decoder = decoder
        self.holes: Tensor | None = None  # (block,) bool
        if holes:
            self.holes = torch.zeros(decoder.config.block_size, dtype=torch.bool, device=decoder.device)
            self.holes[list(holes)] = True
        self.seen = 0
        self.batch = batch
        self._filled = 0  # of the cache, along the tokens: what lies behind may be anything
        self.prefix = self._memory(0, 0)  # of what several sequences have in common
        self.room = decoder.rooms.take(batch) if decoder.rooms else None
        if self.room is None or decoder.rooms is None:
            self.cache = self._memory(batch, decoder.config.block_size)
        else:  # lent, and handed on to another session behind this one
            self.cache = self.room.cache[:, :, :batch]
            weakref.finalize(self, decoder.rooms.give, self.room).atexit = False

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
        if self.room is not None:  # a GPU reads what is kept quickly enough: every sequence has a copy
            logits, self.seen = self.room.run(tokens, [0] * rows, self.holes, last=True)[:, 0], count
            begun = self.cache[:, :, :rows, :, :count].repeat_interleave(self.batch // rows, 2)
            self.cache[..., :count, :] = begun
        else:
            self.prefix = self._memory(rows, count)
            self.cache = self._memory(self.batch, self.decoder.config.block_size - count)
            logits = self._run(tokens, self.prefix, None, [0], 1)[:, 0]
        return logits.repeat_interleave(self.batch // rows, 0)

    def feed(self, tokens: Tensor) -> Tensor:
        """Append tokens (B, t) and give the logits (B, V), float32, for the token that comes next."""
        if self.room is not None:
            starts = [self.seen] * self.batch
            self.seen += tokens.shape[1]
            return self.room.run(tokens, starts, self.holes, last=True)[:, 0]
        return self._run(tokens, self.cache, self._before(), [self.seen], 1)[:, 0]

    def look_ahead(self, tokens: Tensor, starts: Sequence[int]) -> Tensor:
        """Put tokens (B, t) behind the first `starts` of each sequence: logits (B, t, V), float32, behind each of them.

        They may be guesses: they stand until another call puts others there. `seen`, behind which `feed` goes on, is
        the caller's to set.
        """
        if self.room is not None:
            self.seen = max(starts) + tokens.shape[1]
            starts = [*starts] * (self.batch // len(starts))
            return self.room.run(tokens, starts, self.holes)
        alike = all(one == starts[0] for one in starts)
        return self._run(tokens, self.cache, self._before(), starts[:1] if alike else starts, tokens.shape[1])

    def _before(self) -> Tensor | None:
        return self.prefix if self.prefix.numel() else None

    def _run(
        self, tokens: Tensor, cache: Tensor, prefix: Tensor | None, starts: Sequence[int], wanted: int
    ) -> Tensor:
        """Logits (B, wanted, V) behind the last of some tokens (B, t). `starts` has one number if they are the same."""
        d, count = self.decoder, tokens.shape[1]
        if len(starts) == 1:
            positions = d.positions[starts[0] : starts[0] + count]  # (t, C)
        else:
            places = torch.tensor(starts, device=d.device)[:, None] + torch.arange(count, device=d.device)
            positions = d.positions[places]  # (B, t, C)
        x = F.embedding(tokens, d.tokens) + positions  # (B, t, C)
        shared = prefix.shape[4] if prefix is not None else 0
        holes = None if self.holes is None else self.holes[shared:]
        step = _Step([start - shared for start in starts], count, cache[0], prefix is None, holes)
        if cache is self.cache:
            end = step.end
            if len(starts) > 1 and end > self._filled:
                # hidden from a sequence that is behind the others, but not a number even so; some more saves doing it soon
                end += CLEARED
                cache[..., self._filled : end, :] = 0
            self._filled = max(self._filled, end)
        for number, block in enumerate(d.blocks):
            last = number == len(d.blocks) - 1
            before = prefix[number] if prefix is not None else None
            x = block.forward(x, cache[number], step, before, wanted if last else count)
        self.seen = max(starts) + count
        x = F.layer_norm(x, (d.config.width,), *d.norm)
        return d.head(x).float()

    def _memory(self, batch: int, tokens: int) -> Tensor:
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
        self._kept: dict[tuple[int, int], Session] = {}

    def take(self, window: tuple[int, int]) -> Session | None:
        """The window's session, which is kept no more."""
        return self._kept.pop(window, None)

    def put(self, window: tuple[int, int], session: Session) -> None:
        """Keep it if there is room."""
        self._kept[window] = session
        while sum(one.bytes for one in self._kept.values()) > self.limit:
            self._kept.popitem()


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

    def forward(
        self, x: Tensor, cache: Tensor, step: _Step | FixedStep, before: Tensor | None, wanted: int
    ) -> Tensor:
        """(B, t, C) -> (B, wanted, C): behind the last block only the rows whose logits are wanted are computed.

        Args:
            cache: (2, B, heads, n, d) keys and values; those of x are put where the step says.
            before: (2, A, heads, m, d), what stands before them and is shared, or None.
        """
        batch, count, width = x.shape
        h = F.layer_norm(x, (width,), *self.norm1)
        qkv = self.qkv(h).view(batch, count, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (3, B, heads, t, d)
        step.keep(cache, qkv[1:])
        q, hidden = qkv[0].to(cache.dtype), step.hidden
        keys, values = cache.narrow(3, 0, step.end).unbind(0)  # (B, heads, end, d)
        if wanted < count:
            assert isinstance(step, _Step), "a fixed step wants all of its tokens"
            q, x, count = q[:, :, -wanted:], x[:, -wanted:], wanted
            hidden = step.hidden_from_last(wanted, cache)
        y = (
            attend(q, keys, values, hidden)
            if before is None
            else attend_after(before, q, keys, values, hidden)
        )
        x = x + self.proj(y.transpose(1, 2).reshape(batch, count, width).to(x.dtype))
        h = F.layer_norm(x, (width,), *self.norm2)
        return x + self.down(F.gelu(self.up(h)))


class _Step:
    """Where the tokens of one pass stand among those that are kept: the same for every block.

    Args:
        starts: how many kept tokens stand before them in each sequence, or one number for all.
        count: tokens of each sequence.
        cache: (2, B, heads, n, d), of any block.
        causal: nothing stands before what is kept.
        holes: as in `hide`.
    """

    def __init__(
        self, starts: Sequence[int], count: int, cache: Tensor, causal: bool, holes: Tensor | None
    ) -> None:
        self.starts, self.count, self.end = starts, count, max(starts) + count
        self.holes = holes if holes is not None and bool(holes[: self.end].any()) else None
        whole = causal and self.end == count and self.holes is None  # the kernels know this case
        self.hidden = None if whole else self.hidden_from_last(count, cache)

    def keep(self, cache: Tensor, found: Tensor) -> None:
        """Put keys and values (2, B, heads, t, d) where they belong."""
        if len(self.starts) == 1:
            cache.narrow(3, self.starts[0], self.count).copy_(found)
        else:  # torch's scatter would copy all that is kept, and its indexing takes twice as long
            for row, start in enumerate(self.starts):
                cache[:, row, :, start : start + self.count].copy_(found[:, row])

    def hidden_from_last(self, wanted: int, cache: Tensor) -> Tensor | None:
        """What is hidden from the last tokens."""
        if len(self.starts) == 1 and wanted == 1 and self.holes is None:
            return None  # it sees everything
        ends = torch.tensor(self.starts, device=cache.device)[:, None] + self.count
        places = ends + torch.arange(-wanted, 0, device=cache.device)
        return hide(places, self.end, cache, self.holes)


def _norm_weights(layer: torch.nn.LayerNorm, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return layer.weight.detach().to(dtype), layer.bias.detach().to(dtype)
