"""Push and pull while things break: a faulty line in 20 seeded runs each, `kill -9` at 20 random moments each.

A real embedded Label Studio stands behind a proxy that meets a quarter of all requests with one of: connection
dropped before or after the server did its work, answer cut in half, answer that never comes, 500, 502, 429 with
Retry-After. Each push sends 200 paintings to a new project, each pull fetches 200 annotations to a new workspace.
A run that stops must stop with one line, and is started again. `twice` and `lost` count tasks of the project, and
masks that are missing or differ from what was drawn by a pixel.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from annotate import access, server
from annotate.access import connect
from annotate.classes import UNLABELLED
from annotate.config import PullConfig, PushConfig
from annotate.errors import UserError
from annotate.masks import Encoding, read_mask
from annotate.paintings import read_index
from annotate.progress import note
from annotate.pull import pull
from annotate.push import push
from annotate.regions import class_map_regions
from annotate.workspace import Workspace
from bench.proxy import faulty, seeded
from bench.push import paint

PAINTINGS, SEEDS, KILLS = 200, 20, 20
KILLED_PAINTINGS = 80
SIZE = (60, 80)
RATE = 0.25
ANSWER_SECONDS, STALL = 2.0, 3.0  # so that a stall is noticed in a time that a benchmark has
ALL = PushConfig(strategy="all")
MOST_STARTS = 10


@dataclass(frozen=True)
class Ending:
    """How it went, and what was there afterwards."""

    starts: int  # of the command, until it was done
    seconds: float
    twice: int
    lost: int
    lines: tuple[str, ...]  # what the stops said


def run() -> list[dict[str, object]]:
    """One row for each of the four."""
    with tempfile.TemporaryDirectory() as name, _server(Path(name) / "server") as url:
        folder = Path(name) / "paintings"
        paint(folder, PAINTINGS, SIZE)
        few = Path(name) / "few"
        few.mkdir()
        for path in sorted(folder.iterdir())[:KILLED_PAINTINGS]:
            shutil.copy(path, few)
        rows = []
        pushed = [push_through(Workspace(Path(name) / f"push-{n}"), folder, url, n) for n in range(SEEDS)]
        rows.append(_row(f"push of {PAINTINGS}, faulty line", pushed))
        source = annotated(Workspace(Path(name) / "annotated"), folder, url)
        pulled = [pull_through(_copy(source, f"pull-{n}"), url, n) for n in range(SEEDS)]
        rows.append(_row(f"pull of {PAINTINGS}, faulty line", pulled))
        with _address(url):
            chance = random.Random(0)
            killed = [push_killed(Workspace(Path(name) / f"killed-{n}"), few, chance) for n in range(KILLS)]
            rows.append(_row(f"push of {KILLED_PAINTINGS}, kill -9", killed))
            killed = [pull_killed(_copy(source, f"killed-pull-{n}"), chance) for n in range(KILLS)]
            rows.append(_row(f"pull of {PAINTINGS}, kill -9", killed))
    return rows


def push_through(workspace: Workspace, folder: Path, url: str, seed: int, rate: float = RATE) -> Ending:
    """Push over a faulty line until it is done."""
    with _address(url, seed, rate):
        starts, seconds, lines = _until_done(lambda: push(workspace, folder, ALL).problems)
    with _address(url):
        workspace.save_settings(studio_url=url)
        return Ending(starts, seconds, *_tasks(workspace), lines)


def pull_through(workspace: Workspace, url: str, seed: int, rate: float = RATE) -> Ending:
    """Pull over a faulty line until it is done."""
    with _address(url, seed, rate):
        workspace.save_settings(studio_url=os.environ["LABEL_STUDIO_URL"])
        starts, seconds, lines = _until_done(lambda: pull(workspace, PullConfig()).problems)
    return Ending(starts, seconds, 0, _lost(workspace), lines)


def push_killed(workspace: Workspace, folder: Path, chance: random.Random) -> Ending:
    """Kill a push somewhere, run it again."""
    words = ("push", str(folder), "--strategy", "all", "-w", str(workspace.root))
    starts, seconds = _kill(words, chance)
    return Ending(starts, seconds, *_tasks(workspace), ())


def pull_killed(workspace: Workspace, chance: random.Random) -> Ending:
    """Kill a pull somewhere, run it again."""
    starts, seconds = _kill(("pull", "-w", str(workspace.root)), chance)
    return Ending(starts, seconds, 0, _lost(workspace), ())


def annotated(workspace: Workspace, folder: Path, url: str) -> Workspace:
    """A workspace whose paintings are all annotated on the server, and none is pulled."""
    with _address(url):
        push(workspace, folder, ALL)
        there = connect(workspace)
        classes = workspace.settings().classes
        for task in there.tasks(there.project(workspace)):
            there.annotate(task.id, class_map_regions(truth(task.key), classes))
        there.close()
    return workspace


def truth(key: str) -> NDArray[np.uint8]:
    """What is drawn on a painting: rectangles of every class, others for every key."""
    chance = random.Random(key)
    ids = np.full(SIZE, UNLABELLED, np.uint8)
    for one in (148, 177, 168, 156, 95, 129):
        row, column = chance.randrange(SIZE[0] - 9), chance.randrange(SIZE[1] - 9)
        ids[row : row + chance.randint(3, 30), column : column + chance.randint(3, 30)] = one
    return ids


def _until_done(action: Callable[[], tuple[str, ...]]) -> tuple[int, float, tuple[str, ...]]:
    """Run it as often as a person would; returns starts, seconds and what the stops said."""
    began, lines = time.perf_counter(), []
    for start in range(1, MOST_STARTS + 1):
        try:
            problems = action()
        except UserError as error:
            lines.append(error.message)
            continue
        if not problems:
            return start, time.perf_counter() - began, tuple(lines)
        lines += problems
    raise SystemExit(f"not done after {MOST_STARTS} starts: {lines[-1]}")


def _kill(words: tuple[str, ...], chance: random.Random) -> tuple[int, float]:
    """`kill -9` a command at a random moment of its work, then run it again."""
    command = [sys.executable, "-m", "cli", "annotate", *words]
    began, starts = time.perf_counter(), 1
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        child.wait(chance.uniform(0.4, 3.0))
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    if child.returncode != 0:
        starts = 2
        subprocess.run(command, check=True, capture_output=True)
    return starts, time.perf_counter() - began


def _tasks(workspace: Workspace) -> tuple[int, int]:
    """How many paintings have more than one task, and how many none."""
    there = connect(workspace)
    found = Counter(task.key for task in there.tasks(there.project(workspace)))
    there.close()
    return sum(count > 1 for count in found.values()), len(set(read_index(workspace)) - set(found))


def _lost(workspace: Workspace) -> int:
    """How many masks are missing, or are not what was drawn."""
    lost = 0
    for key in read_index(workspace):
        path = workspace.mask("hand", key)
        lost += not path.exists() or not np.array_equal(read_mask(path, Encoding.RAW), truth(key))
    return lost


def _copy(source: Workspace, name: str) -> Workspace:
    """Another workspace on the same project, without masks."""
    copy = Workspace(source.root.parent / name)
    copy.root.mkdir()
    for path in (source.settings_file, source.index_file):
        shutil.copy(path, copy.root)
    return copy


def _row(what: str, endings: list[Ending]) -> dict[str, object]:
    for line in sorted({line for one in endings for line in one.lines}):
        assert "\n" not in line
        note(f"{what}: {line}")
    row: dict[str, object] = {
        "what": what,
        "runs": len(endings),
        "done at the first start": sum(one.starts == 1 for one in endings),
        "at the second": sum(one.starts == 2 for one in endings),
        "later": sum(one.starts > 2 for one in endings),
        "twice": sum(one.twice for one in endings),
        "lost": sum(one.lost for one in endings),
        "median s": median(one.seconds for one in endings),
    }
    note(str(row))
    return row


@contextmanager
def _server(root: Path) -> Iterator[str]:
    """An embedded server, used by address and key as any other; yields its address."""
    os.environ.pop("LABEL_STUDIO_URL", None)
    workspace = Workspace(root)
    found = server.start(workspace)
    os.environ["LABEL_STUDIO_API_KEY"] = server.login(workspace).key
    try:
        yield found.url
    finally:
        server.stop(workspace)


@contextmanager
def _address(url: str, seed: int | None = None, rate: float = RATE) -> Iterator[None]:
    """Inside, commands use this server; with a seed, over a faulty line."""
    if seed is None:
        os.environ["LABEL_STUDIO_URL"] = url
        yield
        return
    before, access.ANSWER_SECONDS = access.ANSWER_SECONDS, ANSWER_SECONDS
    with faulty(url, seeded(seed, rate), STALL) as there:
        os.environ["LABEL_STUDIO_URL"] = there
        try:
            yield
        finally:
            access.ANSWER_SECONDS = before
