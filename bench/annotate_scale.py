"""The annotate commands on 600 paintings of 1000 x 800, each run as a person runs it, start of Python included.

A Label Studio runs already, on the same two cores. Every painting is sent (`--strategy all`); then 150 of them,
and at the end the other 450, get six anti-aliased brush regions each through the API that the browser uses. `MB` is
the most memory that the command held.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from annotate import server
from annotate.access import connect
from annotate.brush import encode
from annotate.classes import ClassTable
from annotate.progress import note, progress
from annotate.regions import brush_region
from annotate.studio import Studio
from annotate.workspace import Workspace
from bench.push import paint
from bench.timing import Run, run_tool

FEW, MANY = 150, 600
SIZE = (800, 1000)
SCENES = 20  # different ones, so that making them is not what takes the time


def run() -> list[dict[str, object]]:
    """One row for each command."""
    os.environ.pop("LABEL_STUDIO_URL", None)
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as name:
        few, many = Path(name) / "few", Path(name) / "many"
        paint(many, MANY, SIZE)
        few.mkdir()
        for path in sorted(many.iterdir())[:FEW]:
            shutil.copy(path, few)
        own = Workspace(Path(name) / "server")
        os.environ["LABEL_STUDIO_URL"] = server.start(own).url
        os.environ["LABEL_STUDIO_API_KEY"] = server.login(own).key
        try:
            for folder in (few, many):
                rows += measure(Workspace(Path(name) / f"workspace-{folder.name}"), folder)
        finally:
            server.stop(own)
            del os.environ["LABEL_STUDIO_URL"], os.environ["LABEL_STUDIO_API_KEY"]
    return rows


def measure(workspace: Workspace, folder: Path) -> list[dict[str, object]]:
    """Push, push again, annotate, pull, pull again, status; all but the first for the larger folder only."""
    count = len(list(folder.iterdir()))
    push = ("annotate", "push", str(folder), "--strategy", "all")
    rows = [row(f"push of {count}", tool(workspace, *push), added=count)]
    if count == FEW:
        return rows
    rows.append(row(f"push of {count}, again", tool(workspace, *push), added=0))
    studio = connect(workspace)
    done = 0
    for part in (FEW, MANY):
        annotate(studio, studio.project(workspace), part)
        name = f"pull of {part - done} annotated among {count}"
        rows.append(row(name, tool(workspace, "annotate", "pull"), new=part - done))
        done = part
    studio.close()
    rows.append(row(f"push of {count}, all annotated, again", tool(workspace, *push), added=0))
    rows.append(row(f"pull of {count}, again", tool(workspace, "annotate", "pull"), new=0))
    rows.append(row(f"status of {count}", tool(workspace, "annotate", "status"), pulled=done))
    return rows


def tool(workspace: Workspace, *words: str) -> Run:
    return run_tool(*words, "--json", "-w", str(workspace.root))


def row(what: str, run: Run, **expected: int) -> dict[str, object]:
    """A row of the table, after a look whether the command did what the row says."""
    said = json.loads(run.out)
    if "outcomes" in said:
        said["new"] = sum(one == "new" for one in said["outcomes"].values())
    for name, value in expected.items():
        assert said[name] == value, f"{what}: {name} is {said[name]}, not {value}"
    found: dict[str, object] = {"what": what, "s": run.seconds, "MB": run.megabytes}
    note(str(found))
    return found


def annotate(studio: Studio, project: int, count: int) -> None:
    """Submit an annotation of six brush regions for the first `count` tasks that have none."""
    scenes = [brushed(seed, SIZE) for seed in range(SCENES)]
    tasks = list(studio.tasks(project))[:count]
    with progress("Annotating", len(tasks)) as advance:
        for task in tasks:
            if not task.annotations:
                studio.annotate(task.id, scenes[task.id % SCENES], seconds=60)
            advance()


def brushed(seed: int, size: tuple[int, int]) -> list[dict[str, Any]]:
    """A class map of soft shapes as brush regions with the soft edges that a browser draws."""
    random = np.random.default_rng(seed)
    classes = ClassTable().classes
    fields = [Image.fromarray(random.random((8, 10)).astype(np.float32)) for _ in classes]
    high = np.stack([np.asarray(one.resize(size[::-1], Image.Resampling.BICUBIC)) for one in fields])
    seen = high.argmax(axis=0)  # (H, W)
    regions = []
    for number, one in enumerate(classes):
        mask = seen == number
        alpha = Image.fromarray(mask.astype(np.uint8) * 255).filter(ImageFilter.BoxBlur(1))
        region = brush_region(mask, one.name)
        region["value"]["rle"] = encode(np.asarray(alpha))
        regions.append(region)
    return regions
