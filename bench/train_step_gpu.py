"""A training step of the three stages in preset `seed`, batch 1, against the reference's operations, on a GPU.

As `train_step`, on a GPU: medians of 43 steps behind two that do not count, and peak memory of the GPU, each side in a
process of its own. Ours runs as `tool generate train` does: forward and backward pass are replayed as a CUDA graph
(`generate/recorded_step.py`), and a step's figures are fetched while the next is computed (`generate/figures.py`).
"""

from __future__ import annotations

import os

import torch

from annotate.errors import UserError
from bench.train_step import STAGES, stage_rows

ONLY = os.environ.get("BENCH_STAGES", " ".join(STAGES)).split()


def run() -> list[dict[str, object]]:
    if not torch.cuda.is_available():
        raise UserError("bench train_step_gpu: no CUDA device here")
    return [row for stage in ONLY for row in stage_rows(stage, "cuda")]
