"""Push, pull and status with 10,000 tasks on the server, and nothing changed since the last time.

The paintings are small (160 x 120), for the number of tasks is what counts here; all are sent, and 500 of them
are annotated and pulled before the clock starts. Each command runs as a person runs it.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from annotate import server
from annotate.access import connect
from annotate.progress import note, progress
from annotate.workspace import Workspace
from bench.annotate_scale import brushed, row, tool
from bench.push import paint

TASKS, ANNOTATED = 10_000, 500
SIZE = (120, 160)


def run() -> list[dict[str, object]]:
    """One row for each command."""
    os.environ.pop("LABEL_STUDIO_URL", None)
    with tempfile.TemporaryDirectory() as name:
        workspace, folder = Workspace(Path(name) / "workspace"), Path(name) / "paintings"
        push = ("annotate", "push", str(folder), "--strategy", "all")
        paint(folder, TASKS, SIZE)
        server.start(workspace)
        try:
            rows = [row("the first push", tool(workspace, *push), added=TASKS)]
            studio = connect(workspace)
            scene = brushed(0, SIZE)
            began = time.perf_counter()
            tasks = list(studio.tasks(studio.project(workspace)))
            note(f"one listing: {time.perf_counter() - began:.1f} s")
            with progress("Annotating", ANNOTATED) as advance:
                for task in tasks[:ANNOTATED]:
                    studio.annotate(task.id, scene, seconds=60)
                    advance()
            studio.close()
            rows.append(row("the first pull", tool(workspace, "annotate", "pull"), new=ANNOTATED))
            rows.append(row("push, nothing changed", tool(workspace, *push), added=0))
            rows.append(row("pull, nothing changed", tool(workspace, "annotate", "pull"), new=0))
            rows.append(row("status", tool(workspace, "annotate", "status"), pulled=ANNOTATED))
        finally:
            server.stop(workspace)
    return rows
