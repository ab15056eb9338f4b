"""The composition check: how often it warns, in percent, having learnt from a few or many of one painter's masks.

The masks are the demo painter's. `unseen` are 80 other scenes of the same hand, none of which departs: each warning is
a false one. The other columns are 40 of them altered, and each should be noticed: turned upside down; sky down to
two thirds of the height, over the trees; the ground reaching up to two thirds (seen from above); a strip of road
across the houses; a second painting's sky and trees below the ground. `bare range` is the alternative: the same
figures, but everything outside the smallest and largest value that was seen is a departure.
"""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from annotate.classes import ClassTable
from annotate.masks import shift
from demo.scene import ROAD, SKY, compose
from generate.composition import SIDE, Habits, _Range, to_grid

Ids = NDArray[np.uint8]
NAMES = {one.id + 1: one.name for one in ClassTable().classes}
DRAWS = 4  # sets of masks to learn from, for each number


def run() -> list[dict[str, object]]:
    scenes = [_scene(seed) for seed in range(360)]
    unseen, altered = scenes[280:], scenes[280:320]
    rows: list[dict[str, object]] = []
    for count in (3, 5, 10, 40):
        learnt = [scenes[start * 40 : start * 40 + count] for start in range(DRAWS)]
        habits = [Habits([str(n) for n in range(count)], np.stack(one), NAMES) for one in learnt]
        for rule, outside in (("ours", _Range.outside), ("bare range", _bare)):
            row: dict[str, object] = {"masks": count, "rule": rule}
            with patch.object(_Range, "outside", outside):
                row["unseen"] = _warned(habits, unseen)
                for name, change in ALTERED.items():
                    row[name] = _warned(habits, [change(one) for one in altered])
            rows.append(row)
    return rows


def _warned(habits: list[Habits], grids: list[Ids]) -> float:
    return float(100 * np.mean([[bool(one.departures(grid)) for grid in grids] for one in habits]))


def _bare(known: _Range, least: float, most: float) -> float:
    return float(max(least - max(known.values), min(known.values) - most))


def _scene(seed: int) -> Ids:
    return to_grid(shift(compose(np.random.default_rng([seed, 8191]), (248, 320)).ids))


def _filled(rows: slice, one: int) -> Callable[[Ids], Ids]:
    def fill(grid: Ids) -> Ids:
        changed = grid.copy()
        changed[rows] = one + 1
        return changed

    return fill


ALTERED: dict[str, Callable[[Ids], Ids]] = {
    "upside down": lambda grid: grid[::-1],
    "bare sky": _filled(slice(0, 2 * SIDE // 3), SKY),
    "from above": _filled(slice(SIDE // 3, SIDE), ROAD),
    "road over houses": _filled(slice(3 * SIDE // 10, SIDE // 2), ROAD),
    "stacked": lambda grid: np.roll(grid, SIDE // 2, axis=0),
}
