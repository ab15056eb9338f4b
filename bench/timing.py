"""Medians of things done side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median


def side_by_side(candidates: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each candidate.

    They take turns, so that a busy machine is fair to all, three calls a turn, so that none is judged by what
    another left in the caches.
    """
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            for _ in range(3):
                started = time.perf_counter()
                run()
                taken[name].append((time.perf_counter() - started) * 1000)
    return {name: median(times) for name, times in taken.items()}
