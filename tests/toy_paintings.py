"""A workspace of a few small paintings with shifted masks, whose colours say the class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from annotate.masks import Encoding, shift, write_mask
from annotate.paintings import scan, write_index
from annotate.workspace import Workspace

COLOURS = {148: (176, 112, 60), 177: (47, 127, 209), 255: (10, 10, 10)}


def toy_workspace(root: Path, count: int = 4, size: tuple[int, int] = (36, 44)) -> Workspace:
    """Paintings of road left, water right and an unlabelled strip on top; the border moves; two are held out."""
    workspace, (height, width) = Workspace(root), size
    folder = root / "paintings"
    folder.mkdir(parents=True)
    for number in range(count):
        ids = np.full(size, 148, np.uint8)
        ids[:, width // 4 + 3 * number :] = 177
        ids[: height // 8] = 255
        painting = np.zeros((*size, 3), np.uint8)
        for value, colour in COLOURS.items():
            painting[ids == value] = colour
        painting[::4] = painting[::4] // 2
        Image.fromarray(painting).save(folder / f"toy {number}.png")
        write_mask(workspace.mask("shifted", f"toy {number}"), shift(ids), Encoding.SHIFTED)
    write_index(workspace, scan(folder, workspace).paintings)
    (workspace.masks("shifted") / "val.txt").write_text(f"toy {count - 1}.png\n")
    return workspace
