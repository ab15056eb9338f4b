"""Time and memory of the whole command from 256 x 256 to 4096 x 3072 pixels, in blocks and float32.

The models have random weights: the transformer of preset `small` (4 layers, width 256), and VQGANs with 16 pixels a
token as the seed document's, but a quarter of their width. `s` is the command's own time of painting, encoding and
decoding; `MB` the most memory that the process held. Linear time is a level `ms a block`, and memory that does not
grow beyond the canvas itself is a level `MB` up to the canvas's own bytes (3 a pixel, a few copies while it is
written as PNG).
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np

from annotate.masks import Encoding, write_mask
from annotate.workspace import Workspace
from bench.timing import run_tool
from generate.checkpoint import save_model
from generate.config import GPTConfig, VQGANConfig
from generate.gpt import GPT
from generate.presets import TRANSFORMER
from generate.vqgan import VQGAN
from generate.window import block_waves

SIZES = ((256, 256), (512, 512), (1024, 1024), (2048, 2048), (4096, 3072))
CODES = VQGANConfig(channels=32, residual_blocks=1, z_channels=64, embed_dim=64)


def run() -> list[dict[str, object]]:
    """One row for each size."""
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder))
        masks = VQGANConfig.from_dict(CODES.to_dict() | {"in_channels": 182, "out_channels": 182})
        sizes: GPTConfig = TRANSFORMER["small"].gpt(CODES.codebook_size)
        save_model(workspace.model("painting-codes"), VQGAN(CODES), {})
        save_model(workspace.model("mask-codes"), VQGAN(masks), {})
        save_model(workspace.model("transformer"), GPT(sizes), {})
        return [_row(workspace, size, sizes.window) for size in SIZES]


def _row(workspace: Workspace, size: tuple[int, int], side: int) -> dict[str, object]:
    height, width = size
    ids = np.full(size, 156, np.uint8)
    ids[height * 2 // 3 :] = 148
    ids[: height // 3, width // 2 :] = 168
    mask = workspace.root / f"{height}x{width}.png"
    write_mask(mask, ids, Encoding.RAW)
    words = ("--mask", str(mask), "--encoding", "raw", "--json")
    run = run_tool("generate", "sample", "-w", str(workspace.root), *words)
    seconds = json.loads(run.out)["seconds"]
    factor = CODES.downsampling
    blocks = sum(len(wave) for wave in block_waves(height // factor, width // factor, side))
    return {
        "canvas": f"{height} x {width}",
        "tokens": height * width // factor**2,
        "blocks": blocks,
        "s": seconds,
        "ms a block": 1000 * seconds / blocks,
        "MB": run.megabytes,
        "canvas, MB": 3 * height * width / 1e6,
    }
