"""Where the transformer's window lies for each token of a canvas, and in which order windows are painted."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Task:
    """Some tokens that one window paints, in one go; the one before each of them is known or painted by it."""

    top: int  # the window's first row and column on the canvas
    left: int
    places: tuple[int, ...]  # raster numbers inside the window, ascending
    again: bool = False  # the same window is asked for a later row


def local(index: int, length: int, side: int) -> int:
    """Row (or column) inside the window of the canvas's row `index`: in the middle, except near the borders.

    Args:
        index: 0..length - 1.
        length: rows of the canvas, at least `side`.
        side: of the window.

    Source: the seed document's sampler; the same rule as taming-transformers' scripts.
    """
    half = side // 2
    if index <= half:
        return index
    if length - index < half:
        return side - (length - index)
    return half


def exact_waves(height: int, width: int, side: int) -> Iterator[list[Task]]:
    """Every token in its own window, as the reference paints; the tasks of one wave do not need one another.

    Token (i, j) needs what its window holds before it: rows up to i - 1, columns up to its window's right edge.
    So a row can follow the one above at a distance, and several rows are painted at once. Near the borders the window
    stands still: the tokens that it paints in a row make one task, and whole rows where it is as wide as the canvas.
    """
    lefts, tops = ([_start(n, length, side) for n in range(length)] for length in (width, height))
    if width == side:
        for top in sorted(set(tops)):
            rows = [i - top for i in range(height) if tops[i] == top]
            yield [Task(top, 0, tuple(range(rows[0] * side, (rows[-1] + 1) * side)))]
        return
    done = [0] * height  # tokens painted in each row
    while done[-1] < width:
        wave = []
        for i in range(height):
            j = done[i]
            if j == width:
                continue
            left, top = lefts[j], tops[i]
            if i > 0 and done[i - 1] < min(left + side, width):
                break  # the row above is not far enough, so no row below it is either
            first = (i - top) * side - left
            again = i + 1 < height and tops[i + 1] == top
            wave.append((i, Task(top, left, tuple(range(first + j, first + j + lefts.count(left))), again)))
        for i, task in wave:
            done[i] += len(task.places)
        yield [task for _, task in wave]


def block_waves(height: int, width: int, side: int) -> Iterator[list[Task]]:
    """Windows half a side apart, each painting a block in its middle as soon as what is before and above is painted.

    In the middle a token sees about as much of painting and mask on each side as in a window of its own. Blocks lean to
    the left, a column for every second row: what is painted ends further left below than above, as it does where single
    tokens follow one another, and no straight line between blocks shows. Windows at the canvas's borders also paint what
    lies between block and border. What is to the right of a block, and stands before its later rows, may not be painted
    yet: the window has to do without (`Session`).
    """
    bands = [deque(_band(top, first, end, width, side)) for top, first, end in _bands(height, side)]
    painted = np.zeros((height, width), bool)
    while any(bands):
        wave = [band.popleft() for band in bands if band and _ready(band[0], painted, side)]
        for task in wave:
            rows, columns = np.divmod(task.places, side)
            painted[task.top + rows, task.left + columns] = True
        yield wave


def _bands(height: int, side: int) -> Iterator[tuple[int, int, int]]:
    """(top of the windows, first row painted, row behind the last) of each row of blocks."""
    first = 0
    for top in _stops(height, side):
        end = height if top == height - side else top + side - side // 4
        yield top, first, end
        first = end


def _band(top: int, first: int, end: int, width: int, side: int) -> Iterator[Task]:
    """The blocks of one band, from left to right."""
    half, lean, last = side // 2, [i // 2 for i in range(first, end)], width - side
    border = side + lean[0] - (lean[0] + side // 8) % half  # that between two blocks, where lean is 0
    starts = [0] * len(lean)
    while starts[0] < width:
        ends = [border - one for one in lean]
        left = max(0, starts[-1] - max(1, side // 4 - 1), ends[0] - side)
        if starts[-1] > last or not last:
            left, ends = last, [width] * len(lean)
        inside = [
            (i, j) for i, (start, end) in enumerate(zip(starts, ends, strict=True)) for j in range(start, end)
        ]
        yield Task(top, left, tuple((first - top + i) * side + j - left for i, j in inside))
        starts, border = ends, border + half


def _ready(task: Task, painted: NDArray[np.bool_], side: int) -> bool:
    """Is everything known that is above a place and not to the right of it, or before it in its row."""
    asked = np.zeros((side, side), bool)
    asked.flat[list(task.places)] = True
    needed = asked[::-1].cumsum(0)[::-1][:, ::-1].cumsum(1)[:, ::-1] > 0
    window = painted[task.top : task.top + side, task.left : task.left + side]
    return bool((~needed | asked | window).all())


def _start(index: int, length: int, side: int) -> int:
    return index - local(index, length, side)


def _stops(length: int, side: int) -> list[int]:
    """Where windows begin along an axis."""
    return [*range(0, length - side, side // 2), length - side]
