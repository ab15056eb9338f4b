"""Which windows may begin, and how far they may go: as their neighbours paint what they are to see."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from generate.window import Task

AHEAD = 32  # groups among which the next to begin is looked for


@dataclass(frozen=True, eq=False)
class Group:
    """Tasks of one wave that ask for the same places of their windows, and whose windows lack the same."""

    places: tuple[int, ...]  # to be painted, ascending
    holes: tuple[int, ...]  # before the last of them, and not to be seen: only later waves paint them
    tasks: list[Task]
    needed: NDArray[np.int64]  # before the last place, what others have to paint


class Schedule:
    """Groups in the order of their waves, each as soon as all is painted that it may see before its first place.

    What a window may see is what earlier waves paint, whenever it begins and whatever else is painted by then. So tokens
    depend on no window's pace.

    Args:
        waves: of tasks, none of which needs another of its wave.
        painted: (h, w) bool, given tokens to begin with; the caller goes on marking what is painted.
        side: of the window.
        most: tasks of a group.
    """

    def __init__(self, waves: Iterator[list[Task]], painted: NDArray[np.bool_], side: int, most: int) -> None:
        self._painted, self._side, self._most = painted, side, most
        self._groups, self._ahead = self._grouped(waves), deque[Group]()

    def next(self, windows: int) -> Group | None:
        """Take the first group that may begin and has no more windows than that, or None."""
        self._ahead.extend(islice(self._groups, AHEAD - len(self._ahead)))
        for group in self._ahead:
            if len(group.tasks) <= windows and self.known(group) >= group.places[0]:
                self._ahead.remove(group)
                return group
        return None

    def known(self, group: Group) -> int:
        """How many tokens of its windows, from the first one on, are painted, or its own, or not to be seen."""
        width = self._painted.shape[1]
        cells = group.needed // self._side * width + group.needed % self._side
        flat, end = self._painted.reshape(-1), group.places[-1]
        for task in group.tasks:
            missing = ~flat[task.top * width + task.left + cells]
            if missing.any():
                end = min(end, int(group.needed[missing.argmax()]))
        return end

    def _grouped(self, waves: Iterator[list[Task]]) -> Iterator[Group]:
        planned = self._painted.copy()  # by earlier waves
        for wave in waves:
            alike: dict[tuple[tuple[int, ...], tuple[int, ...]], list[Task]] = defaultdict(list)
            for task in wave:
                known = self._window(planned, task)
                places = tuple(place for place in task.places if not known[place])
                if places:
                    unknown = set(np.flatnonzero(~known[: places[-1]]).tolist())
                    alike[places, tuple(sorted(unknown - set(places)))].append(task)
            for (places, holes), tasks in alike.items():
                needed = np.setdiff1d(np.arange(places[-1]), [*places, *holes])
                for first in range(0, len(tasks), self._most):
                    yield Group(places, holes, tasks[first : first + self._most], needed)
            for task in wave:
                rows, columns = np.divmod(task.places, self._side)
                planned[task.top + rows, task.left + columns] = True

    def _window(self, grid: NDArray[np.bool_], task: Task) -> NDArray[np.bool_]:
        """Its cells in raster order."""
        return grid[task.top : task.top + self._side, task.left : task.left + self._side].ravel()
