"""Medians of things done side by side, and what one run of the command takes."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median


@dataclass(frozen=True)
class Run:
    """One run of the command, as a person runs it: start of Python included."""

    seconds: float
    megabytes: float  # the most memory that it held
    code: int
    out: str
    err: str


def milliseconds(work: Callable[[], object]) -> float:
    """Of one call; on a GPU until all that it was asked for is done."""
    torch = sys.modules.get("torch")  # where nothing has imported it, nothing runs on a GPU
    wait = torch.cuda.synchronize if torch is not None and torch.cuda.is_available() else lambda: None
    wait()
    started = time.perf_counter()
    work()
    wait()
    return (time.perf_counter() - started) * 1000


def side_by_side(candidates: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each candidate.

    They take turns, so that a busy machine is fair to all, three calls a turn, so that none is judged by what
    another left in the caches.
    """
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            for _ in range(3):
                taken[name].append(milliseconds(run))
    return {name: median(times) for name, times in taken.items()}


def run_tool(*words: str, expect: int = 0) -> Run:
    """`tool WORDS` in a process of its own; anything but the expected exit code ends the benchmark."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        began = time.perf_counter()
        child = subprocess.Popen([sys.executable, "-m", "cli", *words], stdout=out, stderr=err)
        most = 0.0
        while child.poll() is None:
            most = max(most, _peak(child.pid))
            time.sleep(0.02)
        seconds = time.perf_counter() - began
        out.seek(0)
        err.seek(0)
        run = Run(seconds, most, child.returncode, out.read(), err.read())
    if run.code != expect:
        raise SystemExit(f"tool {' '.join(words)}: exit code {run.code}\n{run.err}")
    return run


def _peak(pid: int) -> float:
    """The most MB that a process has held since it began to run its program.

    Not the `ru_maxrss` of `wait4`, which starts from what the parent held when it forked.
    """
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), 0.0)
