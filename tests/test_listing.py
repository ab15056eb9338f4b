"""What is kept of a project's tasks is never behind the server, and annotated tasks are not asked for again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import Painter

from annotate import listing
from annotate.access import connect
from annotate.config import PullConfig, PushConfig
from annotate.listing import list_tasks
from annotate.pull import Outcome, pull
from annotate.push import push
from annotate.studio import Studio
from annotate.tasks import Task
from annotate.workspace import Workspace

pytestmark = pytest.mark.server


@pytest.fixture
def project(remote: Workspace, tmp_path: Path, paint: Painter) -> int:
    for seed in range(5):
        paint(tmp_path / "paintings" / f"{seed}.png", seed=seed)
    return push(remote, tmp_path / "paintings", PushConfig(strategy="all")).project


@pytest.fixture
def studio(remote: Workspace) -> Any:
    there = connect(remote)
    yield there
    there.close()


def test_every_change_is_seen(
    remote: Workspace, project: int, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "_OVERLAP", listing._OVERLAP * 0)  # each change must show by its own time

    def look() -> list[Task]:
        found = list_tasks(studio, project, remote)
        assert found == list(studio.tasks(project)), "what is kept is what the server has"
        return found

    def post(path: str, **body: Any) -> None:
        studio.connection.send("POST", path, repeat=False, json=body)

    tasks = look()
    first = studio.annotate(tasks[0].id, [], seconds=3)
    studio.annotate(tasks[1].id, [], seconds=5)
    look()
    studio.annotate(tasks[0].id, [], seconds=9)  # a second one of the same task
    look()
    body = {"result": [], "lead_time": 77}
    studio.connection.send("PATCH", f"api/annotations/{first}/", repeat=True, json=body)
    assert look()[0].annotations[0].seconds == 77
    post(f"api/tasks/{tasks[2].id}/drafts", result=[], lead_time=1.0)
    assert look()[2].drafts == 1
    studio.annotate(tasks[3].id, [], cancelled=True)
    assert look()[3].annotations[0].cancelled
    studio.connection.send("DELETE", f"api/annotations/{first}/", repeat=True)
    assert len(look()[0].annotations) == 1
    post(f"api/projects/{project}/import", data={"image": "/data/x.png", "key": "late"})
    assert look()[-1].key == "late"
    studio.delete_task(tasks[1].id)
    assert len(look()) == 5
    studio.delete_task(tasks[0].id)
    post(f"api/projects/{project}/import", data={"image": "/data/x.png", "key": "one for one"})
    assert look()[-1].key == "one for one"


def test_annotated_tasks_are_not_read_again(
    remote: Workspace, project: int, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "_OVERLAP", listing._OVERLAP * 0)
    for task in list(studio.tasks(project))[:3]:
        studio.annotate(task.id, [])
    full = list_tasks(studio, project, remote)
    read: list[str] = []
    original = Studio.tasks

    def counted(self: Studio, project: int, only: Any = ()) -> Any:
        for task in original(self, project, only):
            read.append(task.key)
            yield task

    monkeypatch.setattr(Studio, "tasks", counted)
    assert list_tasks(studio, project, remote) == full
    assert sorted(read) == ["3", "4"]
    for damage in ("", "{", "[]", '{"url": 1}', '{"url": "", "project": 1, "tasks": [{}]}'):
        (remote.studio_folder / "tasks.json").write_text(damage)
        assert list_tasks(studio, project, remote) == full


def test_pull_sees_a_correction_of_what_it_pulled(remote: Workspace, project: int, studio: Studio) -> None:
    task = next(iter(studio.tasks(project)))
    number = studio.annotate(task.id, [])
    assert pull(remote, PullConfig()).count(Outcome.EMPTY) == 1
    assert pull(remote, PullConfig()).count(Outcome.UNCHANGED) == 1
    body = {"result": [], "lead_time": 5}
    studio.connection.send("PATCH", f"api/annotations/{number}/", repeat=True, json=body)
    assert pull(remote, PullConfig()).count(Outcome.EMPTY) == 1
