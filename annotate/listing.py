"""All tasks of a project, of which only those are asked for that may have changed since the last time.

For each task that it lists, the server reads everything that was ever drawn on it, whatever fields are asked for:
some 10 ms for six brush regions. So what is known of annotated tasks is kept in the workspace, and the server is
asked for those whose `updated_at` moved, and for those without an annotation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

from annotate.files import write_whole
from annotate.studio import Studio
from annotate.tasks import Annotation, Filter, Prediction, Task
from annotate.workspace import Workspace

_OVERLAP = timedelta(minutes=2)  # a change may be seen later than its time says
_FORMAT = "%Y-%m-%dT%H:%M:%S.%fZ"  # the only one that the server's filters take
_OPEN = Filter("total_annotations", "equal", "Number", 0)
_ANNOTATED = Filter("total_annotations", "greater", "Number", 0)


def list_tasks(studio: Studio, project: int, workspace: Workspace) -> list[Task]:
    """The project's tasks, by id, as `Studio.tasks` gives them.

    Where the number of tasks does not come out (one was deleted, one came while we looked), all are asked for.
    """
    kept = _read(workspace, studio.url, project)
    tasks: dict[int, Task] = {}
    if kept:
        since = max(datetime.fromisoformat(one.updated_at) for one in kept.values()) - _OVERLAP
        moved = Filter("updated_at", "greater", "Datetime", since.astimezone(UTC).strftime(_FORMAT))
        changed = [*studio.tasks(project, [_OPEN]), *studio.tasks(project, [_ANNOTATED, moved])]
        tasks = kept | {one.id: one for one in changed}
        if len(tasks) != studio.count_tasks(project):
            tasks = {}
    found = [tasks[number] for number in sorted(tasks)] or list(studio.tasks(project))
    _write(workspace, studio.url, project, {one.id: one for one in found if _is_kept(one)}, kept)
    return found


def _is_kept(task: Task) -> bool:
    """Whether it is worth keeping, and will be seen when it changes."""
    try:
        timed = datetime.fromisoformat(task.updated_at).tzinfo is not None
    except ValueError:
        return False
    return timed and not task.damage and any(not one.cancelled for one in task.annotations)


def _read(workspace: Workspace, url: str, project: int) -> dict[int, Task]:
    """What the last listing knew of this project; empty where there is none, or a damaged one."""
    path = workspace.studio_folder / "tasks.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if (found["url"], found["project"]) != (url, project):
            return {}
        tasks = {row["id"]: _task(row) for row in found["tasks"]}
        return tasks if all(map(_is_kept, tasks.values())) else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _write(
    workspace: Workspace, url: str, project: int, tasks: Mapping[int, Task], before: Mapping[int, Task]
) -> None:
    if tasks != before:
        rows = [asdict(one) for one in tasks.values()]
        text = json.dumps({"url": url, "project": project, "tasks": rows})
        write_whole(workspace.studio_folder / "tasks.json", text)


def _task(row: Mapping[str, Any]) -> Task:
    parts = {
        "annotations": tuple(Annotation(**one) for one in row["annotations"]),
        "predictions": tuple(Prediction(**one) for one in row["predictions"]),
        "size": None if row["size"] is None else (row["size"][0], row["size"][1]),
    }
    return Task(**{**row, **parts})
