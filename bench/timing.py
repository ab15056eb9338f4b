"""Medians of things done side by side, and what one run of the command takes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Run:
    """One run of the command, as a person runs it: start of Python included."""

    seconds: float
    megabytes: float  # the most memory that it held
    code: int
    out: str
    err: str


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


def run_tool(*words: str, expect: int = 0) -> Run:
    """`tool WORDS` in a process of its own; anything but the expected exit code ends the benchmark."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        began = time.perf_counter()
        child = subprocess.Popen([sys.executable, "-m", "cli", *words], stdout=out, stderr=err)
        _, status, usage = os.wait4(child.pid, 0)  # this child's own use, not that of all children
        seconds = time.perf_counter() - began
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        run = Run(seconds, usage.ru_maxrss / 1024, child.returncode, out.read(), err.read())
    if run.code != expect:
        raise SystemExit(f"tool {' '.join(words)}: exit code {run.code}\n{run.err}")
    return run
