"""How `tool segment pseudo-label` grows: 100, 1000 and 10,000 paintings, run as a person runs it.

Tiny paintings, 64 x 80 pixels as PNG, and a network with random weights: what is asked is how time and memory grow with
their number, not what one costs. `s` is the whole command, start of Python included, of which `ms a painting` leaves out
what the command takes with nothing to do; `again` is the same command once more, with every mask there. `MB` is the
most memory that it held.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from annotate.paintings import scan, write_index
from annotate.progress import note
from annotate.workspace import Workspace
from bench.timing import run_tool
from demo.painter import paint
from segment.model import build, save

COUNTS = (100, 1000, 10_000)
SIZE = (64, 80)
SCENES = 40  # painted ones; the others are these, moved sideways


def run() -> list[dict[str, object]]:
    """One row for each number of paintings."""
    rows: list[dict[str, object]] = []
    scenes = [paint(seed, SIZE).painting for seed in range(SCENES)]
    for count in COUNTS:
        with tempfile.TemporaryDirectory() as name:
            workspace = Workspace(Path(name))
            fill(workspace, scenes, count)
            words = ("segment", "pseudo-label", "--device", "cpu", "--json", "-w", name)
            first, again = run_tool(*words), run_tool(*words)
            there = len(workspace.keys_with_mask("pseudo"))
            assert there == count, f"{there} of {count} labelled"
        rows.append(
            {
                "paintings": count,
                "s": first.seconds,
                "MB": first.megabytes,
                "again, s": again.seconds,
                "again, MB": again.megabytes,
            }
        )
        note(str(rows[-1]))
    start = float(str(rows[0]["again, s"]))  # with next to nothing to do
    for row, count in zip(rows, COUNTS, strict=True):
        row["ms a painting"] = 1000 * (float(str(row["s"])) - start) / count
    return rows


def fill(workspace: Workspace, scenes: Sequence[NDArray[np.uint8]], count: int) -> None:
    """Write `count` paintings, none like another, and a network."""
    folder = workspace.root / "paintings"
    folder.mkdir()
    for number in range(count):
        around, which = divmod(number, len(scenes))
        moved = np.roll(scenes[which], (around % SIZE[1], around // SIZE[1]), (1, 0))
        Image.fromarray(moved).save(folder / f"{number:05}.png", compress_level=1)
    write_index(workspace, scan(folder, workspace).paintings)
    classes = workspace.settings().classes
    about = {"architecture": "mobilenet_v3_large", "smallest_side": SIZE[0], "classes": classes.as_list()}
    save(workspace, build("mobilenet_v3_large", len(classes)), about)
