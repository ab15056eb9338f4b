"""A stand-in for the person: it knows what the painter composed, and draws it in Label Studio.

It goes the way that the browser goes: brush strokes and polygons are posted to the server's API, and come back
as masks by `tool annotate pull` alone.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annotate.access import connect
from annotate.classes import ClassTable
from annotate.masks import Encoding, read_mask
from annotate.progress import progress
from annotate.regions import brush_region, class_map_regions
from annotate.workspace import Workspace

BRUSHED = ("trees", "sky")  # of no clear outline: a person would brush them, and draw the others as polygons


@dataclass(frozen=True)
class StandInResult:
    """What the stand-in annotator did."""

    annotated: int  # paintings, now
    there: int  # paintings that had an annotation already
    brush_regions: int
    polygon_regions: int


def stand_in(workspace: Workspace, truth: Path) -> StandInResult:
    """Annotate every task of the workspace's project that nobody has annotated yet.

    Args:
        truth: folder of the raw masks that the painter wrote.
    """
    classes = workspace.settings().classes
    studio = connect(workspace)
    try:
        tasks = list(studio.tasks(studio.project(workspace)))
        waiting = [task for task in tasks if not task.annotations]
        drawn: list[dict[str, Any]] = []
        with progress("Stand-in annotator draws", len(waiting)) as advance:
            for task in waiting:
                started = time.monotonic()
                regions = draw(read_mask(truth / f"{task.key}.png", Encoding.RAW), classes)
                studio.annotate(task.id, regions, seconds=time.monotonic() - started)
                drawn += regions
                advance()
    finally:
        studio.close()
    brushes = sum(one["type"] == "brushlabels" for one in drawn)
    return StandInResult(len(waiting), len(tasks) - len(waiting), brushes, len(drawn) - brushes)


def draw(ids: NDArray[np.uint8], classes: ClassTable) -> list[dict[str, Any]]:
    """The regions of a scene, (H, W) raw ids: brush strokes for what is leafy, polygons for the rest."""
    regions = []
    for one in classes.classes:
        if one.name in BRUSHED and (ids == one.id).any():
            regions.append(brush_region(ids == one.id, one.name))
    for region in class_map_regions(ids, classes, form="polygon", tolerance=0.5):
        if region["value"]["polygonlabels"][0] not in BRUSHED:
            regions.append(region)
    return regions
