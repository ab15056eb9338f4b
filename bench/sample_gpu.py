"""Sampling on a GPU with the seed document's transformer (305 M parameters, random weights) against its naive loop.

As `sample`, on a GPU: milliseconds a token of one painting, tokens only. The naive loop runs the whole 511-token forward
in float32 for every token; ten of its tokens are timed before ours and ten after, and their median is taken. Ours paints
whole canvases, one window from three random masks and larger ones from one, behind one that is not timed: there passes are
recorded. `one step` is a pass
of one token a painting, which is recorded for 16, and `floor` its linear layers alone, as a CUDA graph too, in the same run.
`s a painting` is the whole time of its tokens.
"""

from __future__ import annotations

from functools import partial
from statistics import median

import torch

from annotate.errors import UserError
from annotate.progress import note
from bench.sample import MASKS, linear_layers, naive_token, paint
from bench.timing import side_by_side
from generate.config import SEED_TRANSFORMER
from generate.decoding import Decoder
from generate.gpt import GPT
from generate.projection import Precision

# what, canvas in tokens, paintings, stride, precision
WORK: tuple[tuple[str, tuple[int, int], int, int, Precision], ...] = (
    ("256 x 256, exact", (16, 16), 1, 1, "float32"),
    ("8 paintings of 256 x 256, each", (16, 16), 8, 1, "float32"),
    ("512 x 768, exact", (32, 48), 1, 1, "float32"),
    ("512 x 768, blocks", (32, 48), 1, 8, "float32"),
    ("256 x 256, exact", (16, 16), 1, 1, "bfloat16"),
    ("8 paintings of 256 x 256, each", (16, 16), 8, 1, "bfloat16"),
    ("512 x 768, exact", (32, 48), 1, 1, "bfloat16"),
    ("512 x 768, blocks", (32, 48), 1, 8, "bfloat16"),
    ("1024 x 1024, blocks", (64, 64), 1, 8, "bfloat16"),
    ("8 paintings of 1024 x 1024, blocks, each", (64, 64), 8, 8, "bfloat16"),
)


def run() -> list[dict[str, object]]:
    if not torch.cuda.is_available():
        raise UserError("bench sample_gpu: no CUDA device here")
    torch.manual_seed(0)
    model = GPT(SEED_TRANSFORMER).cuda().eval()
    precisions: tuple[Precision, ...] = ("float32", "bfloat16")
    rows = []
    with torch.inference_mode():
        naive_token(model)
        naive = [naive_token(model) for _ in range(10)]
        for precision in precisions:
            decoder = Decoder(model, precision)
            for what, canvas, count, stride, _ in (one for one in WORK if one[4] == precision):
                masks = MASKS if canvas == (16, 16) else 1
                paint(decoder, canvas, count, stride, 1)
                torch.cuda.reset_peak_memory_stats()
                ours, settled = paint(decoder, canvas, count, stride, masks)
                held = torch.cuda.max_memory_allocated() / 2**30
                floor, step = _floor_and_step(decoder, count)
                note(f"{what}, {precision}: {ours:.3f} ms a token, step {step:.2f}, floor {floor:.2f} ms")
                rows.append((what, precision, canvas, ours, settled, floor, step, held))
        naive += [naive_token(model) for _ in range(10)]
    theirs = median(naive)
    return [
        {
            "work": what,
            "precision": precision,
            "naive, ms a token": theirs,
            "ours, ms a token": ours,
            "times faster": theirs / ours,
            "s a painting": ours * canvas[0] * canvas[1] / 1000,
            "a pass": settled,
            "one step, ms": step,
            "floor, ms": floor,
            "step / floor": step / floor,
            "GPU memory, GiB": held,
        }
        for what, precision, canvas, ours, settled, floor, step, held in rows
    ]


def _floor_and_step(decoder: Decoder, batch: int) -> tuple[float, float]:
    """Median milliseconds of one token through the linear layers alone, and of a replayed pass, in turns."""
    session, layers = decoder.session(batch), linear_layers(decoder, batch)
    tokens = torch.randint(decoder.config.vocab_size, (batch, 1))
    layers()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        layers()
    step = partial(session.look_ahead, tokens, [384] * batch)
    step(), step()
    times = side_by_side({"floor": graph.replay, "step": step}, 4)
    return times["floor"], times["step"]
