"""Where the transformer's window lies for each token of a canvas, and in which order windows are painted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


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
    """Windows half a side apart, each painting the block in its middle; one anti-diagonal a wave.

    In the middle a token sees about as much of painting and mask on each side as in a window of its own. Windows at the
    canvas's borders also paint what lies between block and border. What is to the right of a block, and stands before
    its later rows, is not painted yet: the window has to do without (`Session`).
    """
    tops, lefts = _stops(height, side, side // 2), _stops(width, side, side - side // 4)
    empty = [[True] * width for _ in range(height)]
    for diagonal in range(len(tops) + len(lefts) - 1):
        wave = []
        for a in range(len(tops)):
            b = diagonal - a
            if 0 <= b < len(lefts):
                top, left = tops[a], lefts[b]
                rows = side if top == tops[-1] else side - side // 4
                # the first token of a row follows the last one of the row above, so the first window paints whole rows
                columns = side if left in (0, lefts[-1]) else side - side // 4
                inside = [(i, j) for i in range(rows) for j in range(columns)]
                places = tuple(i * side + j for i, j in inside if empty[top + i][left + j])
                wave.append(Task(top, left, places))
        for task in wave:
            for place in task.places:
                empty[task.top + place // side][task.left + place % side] = False
        yield wave


def _start(index: int, length: int, side: int) -> int:
    return index - local(index, length, side)


def _stops(length: int, side: int, second: int) -> list[int]:
    """Where windows begin along an axis: at the border, then `second` from it, then half a side apart."""
    last = length - side
    return sorted({0, last, *range(second, last, side // 2)})
