"""Push of 200 paintings of 1000 x 800 to the embedded Label Studio, after its start.

Ours is `annotate.push.push` as a whole: scan, choice, upload, tasks. Then the command `tool annotate push` once
more, as a person runs it, start of Python included. The other way is the loop that people write (the SDK has no
call to upload a file): one request a painting to the import API, over one kept connection; it knows no keys, and
doubles every task when it is run again. Each round takes a new project, and the ways take turns.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import httpx
import numpy as np
from PIL import Image

from annotate import server
from annotate.access import connect
from annotate.config import PushConfig
from annotate.push import push
from annotate.studio import Studio
from annotate.workspace import Workspace

PAINTINGS = 200
ROUNDS = 3
LOOP, OURS, AGAIN = "one request a painting", "push", "the command, again"


def run() -> list[dict[str, object]]:
    """One row for each way."""
    os.environ.pop("LABEL_STUDIO_URL", None)
    with tempfile.TemporaryDirectory() as name:
        workspace, folder = Workspace(Path(name) / "workspace"), Path(name) / "paintings"
        megabytes = paint(folder)
        server.start(workspace)
        try:
            taken = [measure(workspace, folder) for _ in range(ROUNDS)]
        finally:
            server.stop(workspace)
    rows: list[dict[str, object]] = []
    for way in (LOOP, OURS, AGAIN):
        seconds = median(one[way] for one in taken)
        sent = 0 if way == AGAIN else PAINTINGS
        rate = f"{sent / seconds:.0f}" if sent else "-"
        rows.append(
            {"way": way, "s": seconds, "tasks added": sent, "a second": rate, "MB": megabytes if sent else 0}
        )
    return rows


def measure(workspace: Workspace, folder: Path) -> dict[str, float]:
    """Seconds of each way."""
    taken = {}
    studio = connect(workspace)
    project = new_project(workspace, studio)
    began = time.perf_counter()
    headers = {"Authorization": f"Token {server.login(workspace).key}"}
    with httpx.Client(base_url=studio.url, headers=headers, timeout=60) as client:
        for path in sorted(folder.iterdir()):
            files = {"file": (path.name, path.read_bytes())}
            client.post(f"/api/projects/{project}/import", files=files).raise_for_status()
    taken[LOOP] = time.perf_counter() - began
    assert len(list(studio.tasks(project))) == PAINTINGS

    project = new_project(workspace, studio)
    began = time.perf_counter()
    assert push(workspace, folder, PushConfig(strategy="all")).added == PAINTINGS
    taken[OURS] = time.perf_counter() - began
    assert len(list(studio.tasks(project))) == 0, "push has its own project"
    studio.close()

    command = [
        sys.executable,
        "-m",
        "cli",
        "annotate",
        "push",
        str(folder),
        "--json",
        "-w",
        str(workspace.root),
    ]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    taken[AGAIN] = time.perf_counter() - began
    assert '"added": 0' in done.stdout
    return taken


def new_project(workspace: Workspace, studio: Studio) -> int:
    """Forget what was pushed, and make an empty project for the loop."""
    for path in (workspace.index_file, workspace.settings_file, workspace.studio_folder / "workspace-id"):
        path.unlink(missing_ok=True)
    label_config = '<View><Image name="image" value="$image"/></View>'
    made = studio.connection.send(
        "POST", "api/projects/", repeat=False, json={"title": "loop", "label_config": label_config}
    )
    return int(made["id"])


def paint(folder: Path, count: int = PAINTINGS, size: tuple[int, int] = (800, 1000)) -> float:
    """Write the paintings, soft patches with some grain, as JPEG; returns their MB."""
    folder.mkdir()
    total = 0
    for seed in range(count):
        random = np.random.default_rng(seed)
        patches = Image.fromarray(random.integers(0, 256, (16, 20, 3), np.uint8))
        grain = random.integers(-20, 20, (*size, 1))
        image = np.clip(np.asarray(patches.resize(size[::-1], Image.Resampling.BICUBIC)) + grain, 0, 255)
        path = folder / f"{seed:05}.jpg"
        Image.fromarray(image.astype(np.uint8)).save(path, quality=90)
        total += path.stat().st_size
    return total / 1e6
