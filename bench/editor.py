"""Label Studio's editor with pre-filled paintings, in headless Chromium, against the embedded server.

Each painting is a scene of `demo/painter.py` that shows all 6 classes, at 1000 x 800 and at 3000 x 2400 pixels
(width x height), pushed by `tool annotate push --predictions` with its true class map as the pseudo mask; the
first form of each size has no pre-annotation. Seconds, medians of 3 paintings, each opened once:

- open: from calling the task's address until its painting and all regions are drawn and the browser has taken
  two more frames, the browser's cache warm. Label Studio's own page is most of the empty form's time.
- stroke: one brush stroke of 12 mouse moves, from pressing the button to the picture after letting go.
- erase: the same with the eraser, on the pre-filled sky where that is a brush region, else on the stroke's.
- submit: from pressing Submit until the server has answered that it is saved. Then the editor reads the task
  back; "shown" is until it has, which the next task's opening takes the place of in a queue.
- kB: what was submitted.

The labelling interface gives each region as two results, so that Label Studio encodes a brush region twice.
Chromium draws without a GPU here, and shares the cores with the server. The machine was busy with other work,
over which browser and server had priority: the seconds are rather too many than too few.

The defaults, `--regions polygon` and `--max-side 2000`, are the most detailed that open in under 3 s and are
submitted in under 1 s at both sizes. Brush regions can be erased, polygons have points to be moved; Ctrl held
down, a new polygon can be drawn over others.
"""

from __future__ import annotations

import itertools
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from annotate import server
from annotate.access import connect
from annotate.classes import ClassTable
from annotate.config import PushConfig
from annotate.masks import Encoding, write_mask
from annotate.push import push
from annotate.workspace import Workspace
from bench.browser import Editor, browser_page
from demo.painter import Scene, paint

SMALL, LARGE = (800, 1000), (2400, 3000)
ROUNDS = 3


@dataclass(frozen=True)
class Form:
    """How paintings are pushed."""

    size: tuple[int, int]  # (H, W) on disk
    regions: str  # "none", "brush" or "polygon"
    max_side: int = 0


FORMS = (
    Form(SMALL, "none"),
    Form(SMALL, "brush"),
    Form(SMALL, "polygon"),
    Form(LARGE, "none"),
    Form(LARGE, "brush"),
    Form(LARGE, "polygon"),
    Form(LARGE, "brush", 2000),
    Form(LARGE, "polygon", 2000),
    Form(LARGE, "brush", 1400),
    Form(LARGE, "polygon", 1400),
)


def run() -> list[dict[str, object]]:
    """One row for each form."""
    os.environ.pop("LABEL_STUDIO_URL", None)
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("this benchmark needs Debian's chromium")
    rows: list[dict[str, object]] = []
    with served() as (root, owner), browser_page(chromium) as page:
        running = server.running(owner)
        assert running is not None
        editor = Editor(page, running.url)
        editor.log_in(server.login(owner))
        prepare(root)
        for number, form in enumerate(FORMS):
            workspace = Workspace(root / f"form-{number}")
            folder = root / str(form.size[0])
            shutil.copytree(folder / "masks", workspace.masks("pseudo"))
            rows.append(measure(editor, workspace, folder / "paintings", form))
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


def prepare(root: Path) -> None:
    """The paintings and their class maps, at both sizes."""
    scenes = (paint(seed) for seed in itertools.count())
    full = (scene for scene in scenes if len(np.unique(scene.ids)) == len(ClassTable()))
    for number, scene in enumerate(itertools.islice(full, ROUNDS)):
        for size in (SMALL, LARGE):
            image, ids = enlarged(scene, size)
            folder = root / str(size[0])
            write_mask(folder / "masks" / f"{number}.png", ids, Encoding.RAW)
            (folder / "paintings").mkdir(exist_ok=True)
            image.save(folder / "paintings" / f"{number}.jpg", quality=90)


@contextmanager
def served() -> Iterator[tuple[Path, Workspace]]:
    """A folder, and the workspace whose server every other workspace there uses by address and key."""
    with tempfile.TemporaryDirectory() as name:
        owner = Workspace(Path(name) / "owner")
        running = server.start(owner)
        os.environ["LABEL_STUDIO_URL"] = running.url
        os.environ["LABEL_STUDIO_API_KEY"] = server.login(owner).key
        try:
            yield Path(name), owner
        finally:
            del os.environ["LABEL_STUDIO_URL"], os.environ["LABEL_STUDIO_API_KEY"]
            server.stop(owner)


def enlarged(scene: Scene, size: tuple[int, int]) -> tuple[Image.Image, NDArray[np.uint8]]:
    """A scene at another size: the painting with fine grain, as a photograph has it, and its raw ids.

    The edges become as smooth as those that a network's probabilities have when they are scaled up.
    """
    wide = size[1], size[0]
    large = np.asarray(Image.fromarray(scene.painting).resize(wide, Image.Resampling.BICUBIC)).astype(
        np.int16
    )
    large += np.random.default_rng(0).integers(-12, 13, (*size, 1), np.int16)
    best, ids = np.zeros(size, np.uint8), np.zeros(size, np.uint8)
    for one in np.unique(scene.ids):
        found = Image.fromarray((scene.ids == one).astype(np.uint8) * 255).resize(
            wide, Image.Resampling.BICUBIC
        )
        level = np.asarray(found)
        ids[level > best] = one
        best = np.maximum(best, level)
    return Image.fromarray(large.clip(0, 255).astype(np.uint8)), ids


def measure(editor: Editor, workspace: Workspace, folder: Path, form: Form) -> dict[str, object]:
    """Push, then open, draw, erase and submit in each painting."""
    filled = form.regions != "none"
    regions = form.regions if filled else "brush"
    config = PushConfig(strategy="all", predictions=filled, regions=regions, max_side=form.max_side)
    project = push(workspace, folder, config).project
    studio = connect(workspace)
    tasks = list(studio.tasks(project))
    taken: dict[str, list[float]] = {"open": [], "stroke": [], "erase": [], "submit": [], "shown": []}
    kilobytes = []
    counts = []
    for task in tasks:
        guesses = studio.connection.get("api/predictions/", {"task": task.id}) if filled else []
        count = sum(one["type"] != "labels" for guess in guesses for one in guess["result"])
        counts.append(count)
        taken["open"].append(editor.open(project, task.id, count))
        editor.choose("brush-tool", "1")
        taken["stroke"].append(editor.stroke(((0.2, 0.2), (0.6, 0.5)))[1])
        if form.regions == "brush":
            editor.page.keyboard.press("Escape")
            editor.select("sky")
        editor.page.get_by_label("eraser").first.click()
        taken["erase"].append(editor.stroke(((0.3, 0.1), (0.7, 0.3)))[1])
        saved, shown = editor.submit()
        taken["submit"].append(saved)
        taken["shown"].append(shown)
        kilobytes.append(editor.sent / 1000)
    studio.close()
    return {
        "painting": f"{form.size[1]} x {form.size[0]}",
        "--max-side": form.max_side or "-",
        "--regions": form.regions,
        "regions": max(counts),
        **{f"{name}, s": f"{median(values):.2f}" for name, values in taken.items()},
        "kB": f"{median(kilobytes):.0f}",
    }
