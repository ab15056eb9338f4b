"""The whole command, 256 x 256, one painting in bfloat16, with the seed document's models (random weights).

`python -m cli generate sample` as a process of its own, files in the system's cache, against the sum of what cannot
be left out, measured in the same run: starting Python with the imports, cutting the mask to tokens, 256 times the
linear layers of one step, decoding. The median of three runs of the command; the target is 1.3 times the sum.
Reading 1.8 GB of weights, laying them out and hashing them is not in the sum, so it is paid from the difference.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch

from annotate.masks import Encoding, write_mask
from annotate.workspace import Workspace
from bench.sample import floor_and_step
from bench.timing import run_tool
from generate.checkpoint import save_model
from generate.config import SEED_MASK_CODES, SEED_PAINTING_CODES, SEED_TRANSFORMER
from generate.decoding import Decoder
from generate.gpt import GPT
from generate.tiles import decode_tiled, encode_tiled
from generate.vqgan import VQGAN

SIZE = (256, 256)
TOKENS = 256
ROUNDS = 3


def run() -> list[dict[str, object]]:
    """One row for each part, their sum, and the command."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        workspace, mask = Workspace(Path(folder)), Path(folder) / "mask.png"
        ids = np.full(SIZE, 156, np.uint8)
        ids[170:] = 148
        write_mask(mask, ids, Encoding.RAW)
        parts = {"start and imports": _seconds(_imports), **_parts(workspace, ids)}
        command = median(_command(workspace, mask, number) for number in range(ROUNDS))
    total = sum(parts.values())
    rows = {**parts, "sum": total, "the command": command}
    return [{"what": what, "s": s, "of the sum": s / total} for what, s in rows.items()]


def _parts(workspace: Workspace, ids: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> dict[str, float]:
    """Save the models, and time what each of them cannot do without."""
    codes = VQGAN(SEED_PAINTING_CODES).eval()
    save_model(workspace.model("painting-codes"), codes, {})
    tokens = torch.randint(codes.config.codebook_size, (16, 16))
    decode = _seconds(lambda: decode_tiled(codes, tokens, SIZE))
    codes = VQGAN(SEED_MASK_CODES).eval()
    save_model(workspace.model("mask-codes"), codes, {})
    canvas = torch.from_numpy(ids)[None]
    encode = _seconds(lambda: encode_tiled(codes, canvas))
    model = GPT(SEED_TRANSFORMER).eval()
    save_model(workspace.model("transformer"), model, {})
    with torch.inference_mode():
        floor, _ = floor_and_step(Decoder(model, "bfloat16"), 1)
    return {"encode": encode, f"floor of {TOKENS} steps": TOKENS * floor / 1000, "decode": decode}


def _imports() -> None:
    subprocess.run([sys.executable, "-c", "import cli, generate.sample"], check=True)


def _command(workspace: Workspace, mask: Path, seed: int) -> float:
    words = ("--mask", str(mask), "--encoding", "raw", "--precision", "bfloat16", "--seed", str(seed))
    return run_tool("generate", "sample", "-w", str(workspace.root), *words).seconds


def _seconds(work: Callable[[], object]) -> float:
    """Median of three, after one that warms the caches."""
    times = []
    for _ in range(ROUNDS + 1):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return median(times[1:])
