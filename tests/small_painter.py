"""A painter of two small paintings, with models of random weights, and what a user does with them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from click.testing import CliRunner, Result
from golden_models import save_models
from numpy.typing import NDArray
from PIL import Image

from annotate.masks import Encoding, shift, write_mask
from annotate.paintings import scan, write_index
from annotate.workspace import Workspace
from cli import main

Pixels = NDArray[np.uint8]
SIZE = (72, 88)  # 5 x 6 tokens, padded to a window of 16 x 16


def small_painter(root: Path) -> Workspace:
    """Models, and two paintings with masks that share a horizon."""
    made = Workspace(root)
    save_models(made)
    random = np.random.default_rng(5)
    (made.root / "paintings").mkdir()
    for number in range(2):
        ids = np.full(SIZE, 156, np.uint8)
        ids[48:] = 148
        ids[16:32, 16 * number : 16 * number + 32] = 168
        write_mask(made.mask("shifted", f"p{number}"), shift(ids), Encoding.SHIFTED)
        patches = Image.fromarray(random.integers(0, 256, (5, 6, 3), np.uint8))
        patches.resize((SIZE[1], SIZE[0])).save(made.root / "paintings" / f"p{number}.png")
    write_index(made, scan(made.root / "paintings", made).paintings)
    return made


def sample(workspace: Workspace, *words: str) -> Result:
    return CliRunner().invoke(
        main, ["generate", "sample", "-w", str(workspace.root), "--device", "cpu", *words]
    )


def painted(workspace: Workspace, out: Path, *words: str) -> Path:
    result = sample(workspace, *words, "--json", "--out", str(out))
    assert result.exit_code == 0, result.output
    (one, *_) = json.loads(result.stdout)["samples"]
    return Path(one["path"])


def pixels(path: Path) -> Pixels:
    with Image.open(path) as image:
        return np.asarray(image)
