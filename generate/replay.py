"""Passes of the transformer on a GPU: each is recorded once, then replayed.

A pass is some three hundred kernels, and a GPU runs them faster than a program can ask for them one by one. Recorded as
a CUDA graph, all of them are asked for at once. A recording has its tensors at fixed places in memory: so sequences live
in rooms, which are handed on when a session ends, and a tensor tells where tokens stand.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from generate.attention import attend, hide, split_heads
from generate.recorded_step import undisturbed

if TYPE_CHECKING:
    from generate.decoding import Decoder

# Passes whose numbers of tokens round up to the same multiple share a recording; what is added is painted over later.
ROUND = 16


class Rooms:
    """Memory for sequences of one decoder, lent to one session after another; it goes when the decoder does."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder: Decoder = weakref.proxy(decoder)
        # what passes need for their own time they may all have at one place: no two run at once
        self.pool = torch.cuda.graph_pool_handle() if decoder.device.type == "cuda" else None
        self._free: dict[int, list[Room]] = defaultdict(list)  # by rows

    def take(self, batch: int) -> Room:
        """A room for a batch; the one that was given back last, for it has recordings."""
        rows = 1 << (batch - 1).bit_length()
        return self._free[rows].pop() if self._free[rows] else Room(self._decoder, rows, self.pool)

    def give(self, room: Room) -> None:
        """Its session has ended."""
        self._free[room.cache.shape[2]].append(room)


class Room:
    """Keys and values of some sequences, and the passes that were recorded over them.

    Args:
        rows: sequences that it has room for.
        pool: of memory for recordings; None where nothing can be recorded.
    """

    def __init__(self, decoder: Decoder, rows: int, pool: Any) -> None:
        c = decoder.config
        shape = (c.layers, 2, rows, c.heads, c.block_size + ROUND, c.width // c.heads)
        # what lies behind a sequence is hidden from it, but has to be numbers even so
        self.cache = torch.zeros(shape, dtype=decoder.kept, device=decoder.device)
        self._decoder, self._pool = decoder, pool
        self._passes: dict[tuple[int, int, bool], _Pass] = {}

    def run(self, tokens: Tensor, starts: Sequence[int], holes: Tensor | None, last: bool = False) -> Tensor:
        """Put tokens behind the first `starts` of each sequence.

        Args:
            tokens: (B, t), on any device.
            starts: B numbers.
            holes: (block,) bool, of tokens that no other may see.
            last: only the logits behind the last of them are wanted.

        Returns:
            (B, t, V) float32 logits behind each of the tokens, or (B, 1, V).
        """
        batch, count = tokens.shape
        shape = batch, -(-count // ROUND) * ROUND, last
        if shape not in self._passes:
            self._passes[shape] = _Pass(self._decoder, self.cache[:, :, :batch], *shape[1:], self._pool)
        return self._passes[shape].run(tokens, starts, holes)[:, :count]


class _Pass:
    """All tokens of one shape through all blocks, the same kernels wherever the tokens stand.

    Args:
        cache: (layers, 2, B, heads, n, d).
        count: tokens of each sequence.
        last: only the logits behind the last that is wanted are computed.
        pool: of memory for the recording, or None.
    """

    def __init__(self, decoder: Decoder, cache: Tensor, count: int, last: bool, pool: Any) -> None:
        self.decoder, self.cache, self.last, self.pool = decoder, cache, last, pool
        self.end = torch.zeros(1, dtype=torch.int64, device=cache.device)  # number of the last that is wanted
        self.told = torch.zeros(cache.shape[2], 1 + count, dtype=torch.int64, device=cache.device)
        self.holes = torch.zeros(cache.shape[4], dtype=torch.bool, device=cache.device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits: Tensor | None = None
        self._ran = False

    def run(self, tokens: Tensor, starts: Sequence[int], holes: Tensor | None) -> Tensor:
        """(B, count or 1, V) logits; those behind what was added to the tokens mean nothing."""
        told = torch.zeros(self.told.shape, dtype=torch.int64)
        told[:, 0] = torch.tensor(starts)
        told[:, 1 : 1 + tokens.shape[1]] = tokens
        self.told.copy_(told)
        self.end.fill_(tokens.shape[1] - 1)
        self.holes.zero_()
        if holes is not None:
            self.holes[: len(holes)] = holes
        if self._ran and self._graph is None and self.pool is not None:
            self._record()  # not the first time: libraries have set themselves up by then
        self._ran = True
        if self._graph is None or self._logits is None:
            return self._pass()
        self._graph.replay()
        return self._logits.clone()

    def _record(self) -> None:
        """As `torch.cuda.graph` does it, which also empties torch's cache of memory and Python's of garbage each time."""
        self._graph, aside, now = torch.cuda.CUDAGraph(), torch.cuda.Stream(), torch.cuda.current_stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(now)
        with undisturbed(), torch.cuda.stream(aside):
            self._graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
            self._logits = self._pass()
            self._graph.capture_end()
        now.wait_stream(aside)

    def _pass(self) -> Tensor:
        d, count = self.decoder, self.told.shape[1] - 1
        places = self.told[:, :1] + torch.arange(count, device=self.told.device)  # (B, t)
        positions = d.positions[places.clamp(max=len(d.positions) - 1)]
        x = (F.embedding(self.told[:, 1:], d.tokens) + positions).flatten(0, 1)  # (B t, C)
        step = FixedStep(places, self.cache[0], self.holes)
        for block, cache in zip(d.blocks, self.cache, strict=True):
            x = block.forward(x, partial(step.attend, cache))
        x = x.view(len(self.told), count, -1)
        if self.last:
            x = x.index_select(1, self.end)
        return d.head(F.layer_norm(x, (d.config.width,), *d.norm)).float()


class FixedStep:
    """Where the tokens of one pass stand, told by a tensor.

    Args:
        places: (B, t).
        cache: (2, B, heads, n, d), of any block.
        holes: (n,) bool.
    """

    def __init__(self, places: Tensor, cache: Tensor, holes: Tensor) -> None:
        self.hidden = hide(places, cache.shape[3], cache, holes)
        _, batch, heads, _, width = cache.shape
        self._index = places[None, :, None, :, None].expand(2, batch, heads, -1, width)

    def attend(self, cache: Tensor, qkv: Tensor) -> Tensor:
        """(B t, 3 C) -> (B t, C): keeps keys and values of a block, too."""
        parts = split_heads(qkv, *cache.shape[1:3]).to(cache.dtype)  # (3, B, heads, t, d)
        cache.scatter_(3, self._index, parts[1:])
        return attend(parts[0], cache[0], cache[1], self.hidden).transpose(1, 2).reshape(len(qkv), -1)
