"""A workspace of toy paintings, each class in its own colour, that a network learns in seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from annotate.classes import UNLABELLED, ClassTable
from annotate.masks import Encoding, write_mask
from annotate.paintings import scan, write_index
from annotate.workspace import Workspace
from segment.config import TrainConfig

SIZE = (40, 56)
QUICK = {
    "init": "none",
    "steps": 4,
    "batch": 2,
    "crop": 32,
    "smallest_side": 0,
    "save_every": 2,
    "rounds": 0,
}
SHORT = TrainConfig(**QUICK)  # type: ignore[arg-type]


def toy(seed: int, size: tuple[int, int] = SIZE) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A painting (H, W, 3) of three classes, and its raw mask (H, W); one pixel is unlabelled."""
    rng = np.random.default_rng(seed)
    classes = ClassTable()
    indices = np.zeros(size, np.uint8)
    indices[:, int(rng.integers(15, 25)) :] = 1
    indices[int(rng.integers(20, 30)) :] = 2
    painting = classes.colours()[classes.to_raw(indices)].astype(int) + rng.integers(-8, 9, (*size, 3))
    raw = classes.to_raw(indices)
    raw[0, 0] = UNLABELLED
    return painting.clip(0, 255).astype(np.uint8), raw


def toy_workspace(root: Path, paintings: int = 5, hand: int = 3) -> Workspace:
    """Paintings `set/p0`, `set/p1`..., of which the first `hand` are annotated; the truth of all in root/truth."""
    workspace = Workspace(root)
    for number in range(paintings):
        painting, raw = toy(number, (SIZE[0] + number, SIZE[1]))
        path = root / "paintings" / "set" / f"p{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(painting).save(path)
        write_mask(root / "truth" / "set" / f"p{number}.png", raw, Encoding.RAW)
        if number < hand:
            write_mask(workspace.mask("hand", f"set/p{number}"), raw, Encoding.RAW)
    index(workspace)
    return workspace


def index(workspace: Workspace) -> None:
    """List the workspace's paintings anew."""
    write_index(workspace, scan(workspace.root / "paintings", workspace).paintings)
