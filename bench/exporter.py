"""Annotations to files: 20 tasks of 1000 x 800 with 6 brush regions of 8 soft dabs each; milliseconds for
all, medians.

Theirs: `label_studio_sdk.converter.Converter`, BRUSH_TO_PNG, in process: one greyscale PNG for each region,
overlaps unresolved. Ours: the same export file, read and drawn to one class map PNG for each painting.
Both read the same JSON from disk and write to an empty folder.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from annotate.brush import encode
from annotate.classes import ClassTable
from annotate.masks import Encoding, write_mask
from annotate.regions import brush_region, class_map
from bench.brush import blobs
from bench.timing import side_by_side

TASKS, SIZE = 20, (800, 1000)
CONFIG = '<View><Image name="image" value="$image"/><BrushLabels name="brush" toName="image">{}</BrushLabels></View>'


def run() -> list[dict[str, object]]:
    from label_studio_sdk.converter.converter import Converter

    classes = ClassTable()
    config = CONFIG.format("".join(f'<Label value="{name}"/>' for name in classes.names))
    with tempfile.TemporaryDirectory() as folder:
        export = Path(folder) / "export.json"
        export.write_text(json.dumps([_task(number, classes) for number in range(TASKS)]))

        def sdk() -> None:
            with tempfile.TemporaryDirectory() as out:
                converter = Converter(config, project_dir=folder, download_resources=False)
                converter.convert(str(export), out, "BRUSH_TO_PNG", is_dir=False)
                assert len(list(Path(out).glob("*.png"))) == TASKS * len(classes)

        def ours() -> None:
            with tempfile.TemporaryDirectory() as out:
                for task in json.loads(export.read_text()):
                    found = class_map(task["annotations"][0]["result"], SIZE, classes)
                    write_mask(Path(out) / f"{task['id']}.png", found.ids, Encoding.RAW)

        taken = side_by_side({"sdk": sdk, "ours": ours}, rounds=1)
    row = {
        "tasks": TASKS,
        "regions": TASKS * len(classes),
        "BRUSH_TO_PNG, ms": taken["sdk"],
        "class maps, ms": taken["ours"],
    }
    return [{**row, "times": taken["sdk"] / taken["ours"]}]


def _task(number: int, classes: ClassTable) -> dict[str, Any]:
    """One annotated task of an export; each class is eight soft dabs."""
    result = []
    for place, name in enumerate(classes.names):
        alpha = np.roll(blobs(*SIZE, 8, seed=number * len(classes) + place), (31 * place, 97 * place), (0, 1))
        region = brush_region(alpha > 127, name)
        region["value"]["rle"] = encode(alpha)  # with the soft edges that a browser gives
        result.append(region)
    return {
        "id": number,
        "data": {"image": f"/data/upload/{number}.png"},
        "annotations": [{"id": number, "completed_by": 1, "result": result}],
    }
