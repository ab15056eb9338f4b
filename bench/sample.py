"""Sampling with the seed document's transformer (305 M parameters, random weights) against its naive loop.

Milliseconds a token of one painting, tokens only, without encoding and decoding. The naive loop runs the whole
511-token forward in float32 for every token; each of its tokens costs the same, so three are timed before ours and
three after, for each precision, and their median is taken. Ours paints whole canvases from three random masks, whose
mean is given, except for 512 x 768 in exact mode: there every call that the painter makes of the transformer is listed
first, with guesses that are never right, and up to 4 calls of each kind are timed and stand for the others of their
kind (the naive loop would take 32 minutes). `a pass` is how many tokens of a painting a pass of the transformer settles
(`generate/drafting.py`); these random weights foretell little, and a trained transformer's guesses are right more often
(see `sample_guesses`). `one step` is a pass without guesses, and `floor` its linear layers alone, in the same run: the
time to read every weight once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from annotate.files import read_json, write_json
from annotate.progress import note
from bench.timing import milliseconds, side_by_side
from generate.config import SEED_TRANSFORMER
from generate.decoding import Decoder, Pass, Session
from generate.gpt import GPT
from generate.painting import Chance, paint_tokens
from generate.projection import Precision

# what, canvas in tokens, paintings, stride, precision, how many times faster than the naive loop it shall be
WORK: tuple[tuple[str, tuple[int, int], int, int, Precision, float], ...] = (
    ("256 x 256, exact", (16, 16), 1, 1, "float32", 28),
    ("256 x 256, exact", (16, 16), 1, 1, "bfloat16", 42),
    ("256 x 256, exact", (16, 16), 1, 1, "int8", 70),
    ("8 paintings of 256 x 256, each", (16, 16), 8, 1, "bfloat16", 180),
    ("8 paintings of 256 x 256, each", (16, 16), 8, 1, "int8", 350),
    ("512 x 768, exact", (32, 48), 1, 1, "float32", 1.8),
    ("512 x 768, exact", (32, 48), 1, 1, "bfloat16", 7),
    ("512 x 768, blocks", (32, 48), 1, 8, "bfloat16", 45),
    ("512 x 768, blocks", (32, 48), 1, 8, "int8", 70),
)
# The whole takes some minutes: BENCH_SAMPLE names a folder for what is done, BENCH_ONLY some precisions.
FOLDER = Path(os.environ["BENCH_SAMPLE"]) if "BENCH_SAMPLE" in os.environ else None
ONLY = os.environ.get("BENCH_ONLY", "float32 bfloat16 int8").split()
MASKS = 3
TIMED = 4  # calls of a kind, at most
ROUNDS = 4  # of three calls each
KIND = 64  # tokens: calls whose numbers of tokens, seen and new, round to the same are of one kind


def run() -> list[dict[str, object]]:
    """One row for each work; those of one precision are kept together, so that a killed run goes on after them."""
    rows: list[dict[str, object]] = []
    precisions: tuple[Precision, ...] = ("float32", "bfloat16", "int8")
    for precision in precisions:
        if precision not in ONLY:
            continue
        kept = FOLDER / f"{precision}.json" if FOLDER else None
        if kept and kept.exists():
            rows += read_json(kept)
            continue
        found = _rows(precision)
        rows += found
        if kept:
            write_json(kept, found)
    return rows


def _rows(precision: Precision) -> list[dict[str, object]]:
    torch.manual_seed(0)
    model = GPT(SEED_TRANSFORMER).eval()
    decoder = Decoder(model, precision)
    rows = []
    with torch.inference_mode():
        naive = [naive_token(model) for _ in range(3)]
        for what, canvas, count, stride, _, target in (one for one in WORK if one[4] == precision):
            whole = canvas == (16, 16) or stride > 1
            ours, settled = (
                paint(decoder, canvas, count, stride) if whole else (_replay(decoder, canvas), None)
            )
            floor, step = floor_and_step(decoder, count)
            note(f"{what}, {precision}: {ours:.1f} ms a token, step {step:.1f}, floor {floor:.1f}")
            rows.append((what, ours, settled, floor, step, target))
        naive += [naive_token(model) for _ in range(3)]
    theirs = median(naive)
    return [
        {
            "work": what,
            "precision": precision,
            "naive, ms a token": theirs,
            "ours, ms a token": ours,
            "times faster": theirs / ours,
            "target": target,
            "a pass": settled or "",
            "one step, ms": step,
            "floor, ms": floor,
            "step / floor": step / floor,
        }
        for what, ours, settled, floor, step, target in rows
    ]


def naive_token(model: GPT) -> float:
    """Milliseconds a token of the reference's loop."""
    shape = (1, model.config.block_size - 1)
    tokens = torch.randint(model.config.vocab_size, shape, device=model.pos_emb.device)
    return milliseconds(lambda: model(tokens)[:, -1].argmax(1))


def paint(
    decoder: Decoder, canvas: tuple[int, int], count: int, stride: int, masks: int = MASKS
) -> tuple[float, float]:
    """Milliseconds a token, and tokens of a painting that a pass settles: the mean of some masks."""
    cells, passes, spent = canvas[0] * canvas[1], list[int](), 0.0
    for _ in range(masks):
        tokens = torch.randint(decoder.config.vocab_size, (1, *canvas)).expand(count, -1, -1)
        work = partial(paint_tokens, decoder, tokens, Chance(), stride, advance=passes.append)
        spent += milliseconds(work)
    return spent / (masks * count * cells), masks * cells / len(passes)


def linear_layers(decoder: Decoder, batch: int) -> Callable[[], Tensor]:
    """One token of each sequence through the linear layers alone: every weight is read once."""
    widths = (decoder.config.width, 4 * decoder.config.width)
    x, wide = (torch.randn(batch, 1, n, dtype=decoder.dtype, device=decoder.device) for n in widths)

    def layers() -> Tensor:
        for block in decoder.blocks:
            block.qkv(x)
            block.proj(x)
            block.up(x)
            block.down(wide)
        return decoder.head(x)

    return layers


def floor_and_step(decoder: Decoder, batch: int) -> tuple[float, float]:
    """Median milliseconds of one token through the linear layers alone, and of a cached step mid-painting, in turns.

    The paintings share their mask, as those of `--count` do.
    """
    session = decoder.session(batch)
    session.share(torch.randint(decoder.config.vocab_size, (1, decoder.config.block_size // 2)))
    session.cache.zero_()
    tokens = torch.randint(decoder.config.vocab_size, (batch, 1))

    def step() -> Tensor:
        session.seen = 384
        return session.feed(tokens)

    times = side_by_side({"floor": linear_layers(decoder, batch), "step": step}, ROUNDS)
    return times["floor"], times["step"]


# sequences, tokens seen, tokens new, whether the logits behind each are wanted; of each session that takes part
Call = tuple[tuple[int, int, int, bool], ...]


class _Listed(Decoder):
    """Stands in for a decoder to list what the painter asks of it."""

    def __init__(self, decoder: Decoder) -> None:
        self.config, self.kept, self.device, self.rooms = decoder.config, decoder.kept, decoder.device, None
        self.costs = decoder.costs
        self.calls: list[Call] = []

    def run(self, passes: Sequence[Pass]) -> list[Tensor]:
        self.calls.append(
            tuple(
                sorted(
                    (*one.tokens.shape[:1], max(one.starts), one.tokens.shape[1], not one.last)
                    for one in passes
                )
            )
        )
        for one in passes:
            one.session.seen = max(one.starts) + one.tokens.shape[1]
        shapes = ((len(one.tokens), 1 if one.last else one.tokens.shape[1]) for one in passes)
        return [100 * torch.rand(*shape, self.config.vocab_size) for shape in shapes]


def _replay(decoder: Decoder, canvas: tuple[int, int]) -> float:
    """Milliseconds a token from every call that the painter makes in exact mode, some of each kind timed."""
    listed = _Listed(decoder)
    mask_tokens = torch.randint(decoder.config.vocab_size, (1, *canvas))
    paint_tokens(listed, mask_tokens, Chance())
    kinds: dict[object, list[Call]] = {}
    for call in sorted(listed.calls):
        kind = tuple(
            (batch, seen // KIND, -(-new // KIND) * (new > 1), every) for batch, seen, new, every in call
        )
        kinds.setdefault(kind, []).append(call)
    total, sessions = 0.0, list[Session]()
    for calls in kinds.values():
        if [one.batch for one in sessions] != [batch for batch, *_ in calls[0]]:
            sessions = [decoder.session(batch) for batch, *_ in calls[0]]
            for one in sessions:
                one.cache.zero_()
        chosen = calls[:: -(-len(calls) // TIMED)]
        times = [_call(decoder, sessions, call) for call in chosen]
        total += sum(times) / len(times) * len(calls)
    return total / mask_tokens.numel()


def _call(decoder: Decoder, sessions: Sequence[Session], call: Call) -> float:
    passes = []
    for session, (batch, seen, new, every) in zip(sessions, call, strict=True):
        session.seen = seen
        tokens = torch.randint(decoder.config.vocab_size, (batch, new))
        passes.append(session.looking_ahead(tokens, [seen]) if every else session.feeding(tokens))
    return milliseconds(lambda: decoder.run(passes))
