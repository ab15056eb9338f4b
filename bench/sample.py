"""Sampling with the seed document's transformer (305 M parameters, random weights) against its naive loop.

Milliseconds a token of one painting, tokens only, without encoding and decoding. The naive loop runs the whole
511-token forward for every token; each of its tokens costs the same, so three are timed, before and after ours,
and their median is taken. Ours is timed over whole canvases. `floor` is the same step's linear layers alone, on
one token: the time to read every weight once, below which no sampler gets in that precision.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from generate.config import SEED_TRANSFORMER
from generate.decoding import Decoder
from generate.gpt import GPT
from generate.painting import Chance, paint_tokens

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# (what, canvas in tokens, paintings, stride, precision)
WORK = (
    ("256 x 256, exact", (16, 16), 1, 1, "float32"),
    ("256 x 256, exact", (16, 16), 1, 1, "bfloat16"),
    ("8 paintings of 256 x 256, exact", (16, 16), 8, 1, "bfloat16"),
    ("512 x 768, blocks", (32, 48), 1, 8, "bfloat16"),
)


def run() -> list[dict[str, object]]:
    torch.manual_seed(0)
    model = GPT(SEED_TRANSFORMER).eval()
    rows = []
    with torch.inference_mode():
        naive = [_naive(model) for _ in range(3)]
        for what, canvas, count, stride, precision in WORK:
            decoder = Decoder(model, PRECISIONS[precision])
            milliseconds = _paint(decoder, canvas, count, stride)
            rows.append((what, precision, milliseconds, _floor(decoder)))
        naive += [_naive(model) for _ in range(3)]
    theirs = median(naive)
    return [
        {
            "work": what,
            "precision": precision,
            "naive, ms a token": theirs,
            "ours, ms a token": ours,
            "times faster": theirs / ours,
            "floor, ms a step": floor,
        }
        for what, precision, ours, floor in rows
    ]


def _naive(model: GPT) -> float:
    tokens = torch.randint(model.config.vocab_size, (1, model.config.block_size - 1))
    return _milliseconds(lambda: model(tokens)[:, -1].argmax(1))


def _paint(decoder: Decoder, canvas: tuple[int, int], count: int, stride: int) -> float:
    mask_tokens = torch.randint(decoder.config.vocab_size, (count, *canvas))
    return _milliseconds(lambda: paint_tokens(decoder, mask_tokens, Chance(), stride)) / mask_tokens.numel()


def _floor(decoder: Decoder, rounds: int = 9) -> float:
    """Median of one token through the linear layers, one after another."""
    x, wide = (
        torch.randn(1, n, dtype=decoder.dtype) for n in (decoder.config.width, 4 * decoder.config.width)
    )

    def layers() -> Tensor:
        for block in decoder.blocks:
            F.linear(x, block.qkv, block.qkv_bias)
            F.linear(x, *block.proj)
            F.linear(x, *block.up)
            F.linear(wide, *block.down)
        return F.linear(x, decoder.head)

    return median(_milliseconds(layers) for _ in range(rounds))


def _milliseconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1000
