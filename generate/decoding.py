"""The transformer at sampling time: keys and values are kept, projections are fused, sequences share every weight read."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from generate.attention import attend, attend_after, hide, split_heads
from generate.few_queries import MOST, FewQueries, few_queries
from generate.gpt import GPT, Block
from generate.projection import Precision, activations, kept, pass_costs, projection
from generate.replay import Rooms
from segment.device import has_amx

# Of keys and values; with the seed document's transformer in float32 a window has 100 MB.
KEPT_BYTES = 3 << 30
COMPILED_FROM = 100_000_000  # weights; with the demo's 3 million, to compile takes longer than it saves
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
        self.device = device = model.head.weight.device
        self.tokens = model.tok_emb.weight.detach().to(dtype)
        self.positions = model.pos_emb.detach()[0].to(dtype)  # (block, C)
        self.blocks = [_FusedBlock(cast(Block, block), precision) for block in model.blocks]
        self.norm = _norm_weights(model.ln_f, dtype)
        self.head = projection(model.head.weight, None, precision)
        self.rooms = Rooms(self) if device.type == "cuda" else None
        self.few: FewQueries | None = None
        large = sum(one.numel() for one in model.parameters()) >= COMPILED_FROM
        if precision == "int8" and large and not has_amx():
            self.few = few_queries(self.config.width // self.config.heads, self.config.block_size)
        self.costs = pass_costs(precision, device, self.few is not None)

    def session(self, batch: int, holes: Sequence[int] = ()) -> Session:
        """Begin `batch` sequences, of which no token sees those at `holes`, whatever they are."""
        return Session(self, batch, holes)

    def run(self, passes: Sequence[Pass]) -> list[Tensor]:
        """Run what some sessions ask for, on a CPU together: every weight is read once, whatever the sessions' lengths.

        Returns:
            for each pass (B, t, V) float32 logits behind its tokens, (B, 1, V) where only the last are wanted.
        """
        if self.rooms is not None:
            return [one.session.replay(one) for one in passes]
        steps = [_Step(one) for one in passes]
        x = _joined([step.embedded for step in steps])  # (rows, C)
        sizes, wanted = [len(step.embedded) for step in steps], _wanted(steps)
        for number, block in enumerate(self.blocks):
            last = number == len(self.blocks) - 1

            def attention(qkv: Tensor, number: int = number, last: bool = last) -> Tensor:
                parts = zip(steps, torch.split(qkv, sizes), strict=True)
                return _joined([step.attend(number, part, last) for step, part in parts])

            x = block.forward(x, attention, wanted if last else None)
        logits = self.head(F.layer_norm(x, (self.config.width,), *self.norm)).float()
        return [
            step.done(part)
            for step, part in zip(steps, torch.split(logits, [step.told for step in steps]), strict=True)
        ]


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
        self.filled = 0  # of the cache, along the tokens: what lies behind may be anything
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

    def sharing(self, tokens: Tensor) -> Pass:
        """To begin with tokens that sequences have in common: they are computed, kept and read once for all of them.

        Args:
            tokens: (A, t), B a multiple of A: each row is the beginning of B / A sequences in a row.

        Raises:
            ValueError: the sequences have begun.
        """
        if self.seen:
            raise ValueError("only the beginning of sequences can be shared")
        return Pass(self, tokens, [0], last=True, shared=True)

    def feeding(self, tokens: Tensor) -> Pass:
        """To append tokens (B, t); wanted are the logits for the token that comes next."""
        return Pass(self, tokens, [self.seen], last=True)

    def looking_ahead(self, tokens: Tensor, starts: Sequence[int]) -> Pass:
        """To put tokens (B, t) behind the first `starts` of each sequence; wanted are the logits behind each of them.

        They may be guesses: they stand until another call puts others there. `seen`, behind which `feed` goes on, is
        the caller's to set.
        """
        alike = all(one == starts[0] for one in starts)
        return Pass(self, tokens, starts[:1] if alike else starts, last=False)

    def share(self, tokens: Tensor) -> Tensor:
        """`sharing` alone: (B, V)."""
        return self.decoder.run([self.sharing(tokens)])[0][:, 0]

    def feed(self, tokens: Tensor) -> Tensor:
        """`feeding` alone: (B, V)."""
        return self.decoder.run([self.feeding(tokens)])[0][:, 0]

    def look_ahead(self, tokens: Tensor, starts: Sequence[int]) -> Tensor:
        """`looking_ahead` alone: (B, t, V)."""
        return self.decoder.run([self.looking_ahead(tokens, starts)])[0]

    def replay(self, one: Pass) -> Tensor:
        """A pass in this session's room."""
        assert self.room is not None
        rows, count = one.tokens.shape
        starts = [*one.starts] * (rows // len(one.starts))
        logits, self.seen = self.room.run(one.tokens, starts, self.holes, one.last), max(starts) + count
        if one.shared:  # a GPU reads what is kept quickly enough: every sequence has a copy
            begun = self.cache[:, :, :rows, :, :count].repeat_interleave(self.batch // rows, 2)
            self.cache[..., :count, :] = begun
            logits = logits.repeat_interleave(self.batch // rows, 0)
        return logits

    def put_prefix(self, rows: int, count: int) -> None:
        """Make room for a beginning of `count` tokens that is shared."""
        self.prefix = self._memory(rows, count)
        self.cache = self._memory(self.batch, self.decoder.config.block_size - count)

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
        self, x: Tensor, attention: Callable[[Tensor], Tensor], wanted: Tensor | None = None
    ) -> Tensor:
        """(rows, C) -> (rows, C), or (wanted, C).

        Args:
            attention: queries, keys and values (rows, 3 C) to (rows, C), or (wanted, C).
            wanted: the rows to go on with, where not all.
        """
        width = (x.shape[1],)
        y = attention(self.qkv(F.layer_norm(x, width, *self.norm1)))
        x = (x if wanted is None else x[wanted]) + self.proj(y.to(x.dtype))
        return x + self.down(F.gelu(self.up(F.layer_norm(x, width, *self.norm2))))


@dataclass(frozen=True)
class Pass:
    """What a session asks for, see `Session.sharing`, `feeding` and `looking_ahead`."""

    session: Session
    tokens: Tensor  # (B, t); (A, t) of a shared beginning
    starts: Sequence[int]  # how many tokens stand before them in each sequence, or one number for all
    last: bool  # only the logits behind the last of them are wanted
    shared: bool = False


class _Step:
    """A pass under way on a CPU: where its tokens stand among those that are kept, the same for every block."""

    def __init__(self, one: Pass) -> None:
        self.session, d = one.session, one.session.decoder
        self.batch, self.count = one.tokens.shape
        self.shared, self.heads = one.shared, d.config.heads
        if one.shared:
            self.session.put_prefix(self.batch, self.count)
        self.seen = max(one.starts) + self.count
        self.each = 1 if one.last else self.count  # logits wanted of a sequence
        self.told = self.batch * self.each
        self.embedded = self._embedded(one)
        session = self.session
        self.cache = session.prefix if one.shared else session.cache
        self.prefix = session.prefix if session.prefix.numel() and not one.shared else None
        before = 0 if self.prefix is None else self.prefix.shape[4]
        self.starts = [start - before for start in one.starts]
        self.end = max(self.starts) + self.count
        holes = None if session.holes is None else session.holes[before:]
        self.holes = holes if holes is not None and bool(holes[: self.end].any()) else None
        self.few = d.few if self.count <= MOST and not one.shared else None
        # nothing stands before them: the kernels know this case
        whole = self.prefix is None and self.end == self.count and self.holes is None
        self.hidden = self.hidden_at_last = None
        if self.few is None:
            self.hidden = None if whole else self._hidden_from_last(self.count)
            alike = self.each == self.count
            self.hidden_at_last = self.hidden if alike else self._hidden_from_last(self.each)
        if not one.shared:
            self._clear()

    def attend(self, layer: int, qkv: Tensor, last: bool) -> Tensor:
        """(B t, 3 C) -> (B t, C), where it is the last layer (told, C): keeps keys and values, too."""
        cache, prefix = self.cache[layer], None if self.prefix is None else self.prefix[layer]
        if self.few is not None:
            y = self.few(qkv, cache, prefix, self.starts, self.holes)
            return y.view(self.batch, self.count, -1)[:, -self.each :].flatten(0, 1) if last else y
        parts = split_heads(qkv, self.batch, self.heads)  # (3, B, heads, t, d)
        self._keep(cache, parts[1:])
        q, hidden = parts[0].to(cache.dtype), self.hidden
        keys, values = cache.narrow(3, 0, self.end).unbind(0)  # (B, heads, end, d)
        if last and self.each < self.count:
            q, hidden = q[:, :, -self.each :], self.hidden_at_last
        if prefix is None:
            y = attend(q, keys, values, hidden)
        else:
            y = attend_after(prefix, q, keys, values, hidden)
        return y.transpose(1, 2).reshape(-1, qkv.shape[1] // 3)

    def done(self, logits: Tensor) -> Tensor:
        """(told, V) -> (B, t or 1, V)."""
        self.session.seen = self.seen
        logits = logits.view(self.batch, self.each, -1)
        return logits.repeat_interleave(self.session.batch // self.batch, 0) if self.shared else logits

    def _embedded(self, one: Pass) -> Tensor:
        """(B t, C)"""
        d, starts = self.session.decoder, one.starts
        if len(starts) == 1:
            positions = d.positions[starts[0] : starts[0] + self.count]  # (t, C)
        else:
            positions = d.positions[torch.tensor(starts)[:, None] + torch.arange(self.count)]  # (B, t, C)
        return (F.embedding(one.tokens, d.tokens) + positions).flatten(0, 1)

    def _clear(self) -> None:
        """What lies behind a sequence is hidden from it, but has to be numbers even so; some more saves doing it soon."""
        session, end = self.session, self.end
        if len(self.starts) > 1 and end > session.filled:
            end += CLEARED
            self.cache[..., session.filled : end, :] = 0
        session.filled = max(session.filled, end)

    def _keep(self, cache: Tensor, found: Tensor) -> None:
        """Put keys and values (2, B, heads, t, d) where they belong."""
        if len(self.starts) == 1:
            cache.narrow(3, self.starts[0], self.count).copy_(found)
        else:  # torch's scatter would copy all that is kept, and its indexing takes twice as long
            for row, start in enumerate(self.starts):
                cache[:, row, :, start : start + self.count].copy_(found[:, row])

    def _hidden_from_last(self, wanted: int) -> Tensor | None:
        """What is hidden from the last tokens."""
        if len(self.starts) == 1 and wanted == 1 and self.holes is None:
            return None  # it sees everything
        ends = torch.tensor(self.starts)[:, None] + self.count
        return hide(ends + torch.arange(-wanted, 0), self.end, self.cache, self.holes)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _wanted(steps: Sequence[_Step]) -> Tensor | None:
    """The rows behind which logits are wanted, or None for all."""
    if all(step.each == step.count for step in steps):
        return None
    found, first = [], 0
    for step in steps:
        rows = torch.arange(first, first + len(step.embedded)).view(step.batch, step.count)
        found.append(rows[:, -step.each :].flatten())
        first += len(step.embedded)
    return torch.cat(found)


def _norm_weights(layer: torch.nn.LayerNorm, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return layer.weight.detach().to(dtype), layer.bias.detach().to(dtype)
