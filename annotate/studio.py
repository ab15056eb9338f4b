"""A Label Studio server: projects, tasks, annotations.

Source: Label Studio 1.23's API.
"""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from annotate import answers, server
from annotate.connection import AnswerError, Connection, MissingError
from annotate.errors import UserError
from annotate.files import write_whole
from annotate.interface import as_drawn, labelling_interface, shows
from annotate.progress import note
from annotate.tasks import Filter, Guess, Task, Upload, read_task
from annotate.workspace import Settings, Workspace

PAGE = 500  # tasks of one listing request
PROJECTS = 100  # of one listing request
MOST_PAGES = 1000  # of such a listing
MOST_TASKS = 250_000  # of one project; a listing without end stops there
# Fields of a task listing; the names also choose within its annotations, and `result` is not among them: a
# listing stays small however much was drawn.
_LISTED = ["id", "data", "annotations", "drafts", "updated_at", "was_cancelled", "lead_time", "completed_by"]
_LISTED += ["predictions", "model_version", "score"]
QUEUE = "Review: least sure first"  # a tab of the project's page
MODEL = "impasto"  # the name of our predictions; one for all, as only those of the project's model are shown


class Studio:
    """A server that answered and took the key."""

    def __init__(self, connection: Connection, login: server.Login | None) -> None:
        self.connection = connection
        self.login = login  # of the embedded server; None for any other

    @property
    def url(self) -> str:
        return self.connection.url

    def project(self, workspace: Workspace) -> int:
        """The workspace's project on this server.

        Raises:
            UserError: there is none, or it was deleted.
        """
        settings = workspace.settings()
        if settings.studio_project is None or settings.studio_url != self._saved_url:
            raise UserError(
                f"{self.url}: no project of this workspace; run `tool annotate push PAINTINGS` first"
            )
        try:
            self.connection.get(f"api/projects/{settings.studio_project}/", {"include": "id"})
        except MissingError as error:
            raise UserError(
                f"{self.url}: project {settings.studio_project} was deleted there; "
                "`tool annotate push PAINTINGS` makes a new one (masks that were pulled are kept)"
            ) from error
        return settings.studio_project

    def open_project(self, workspace: Workspace) -> tuple[int, bool]:
        """The workspace's project, made where there is none, with the classes of `tool.toml`.

        Returns:
            Its id, and whether it is new.
        """
        settings = workspace.settings()
        interface = labelling_interface(settings.classes)
        found = self._find_project(workspace, settings)
        if found is None:
            made = self.connection.send(
                "POST",
                "api/projects/",
                repeat=False,
                json=self._about(workspace) | {"label_config": interface},
            )
        else:
            made = found
        with self._understood():
            project = answers.number(made, "id")
        if found is not None and not shows(str(found.get("label_config")), settings.classes):
            self.connection.send(
                "PATCH", f"api/projects/{project}/", repeat=True, json={"label_config": interface}
            )
            note(
                f"project {project} lacked a class or colour of tool.toml: its labelling interface was written anew"
            )
        if (settings.studio_project, settings.studio_url) != (project, self._saved_url):
            workspace.save_settings(studio_project=project, studio_url=self._saved_url)
        return project, found is None

    def compositions_project(self, workspace: Workspace, make: bool) -> int | None:
        """The project in which the workspace's compositions are repainted by hand; None where there is none.

        It is another than the paintings' one: what is drawn there is no annotation of a painting.
        """
        about = self._about(workspace, "compositions")
        interface = labelling_interface(workspace.settings().classes)
        found = self._find_described(about)
        if found is None and not make:
            return None
        if found is None:
            body = about | {"label_config": interface}
            made = self.connection.send("POST", "api/projects/", repeat=False, json=body)
        else:
            made = found
        with self._understood():
            project = answers.number(made, "id")
        if found is not None and not shows(str(found.get("label_config")), workspace.settings().classes):
            path = f"api/projects/{project}/"
            self.connection.send("PATCH", path, repeat=True, json={"label_config": interface})
        return project

    def count_tasks(self, project: int) -> int:
        """How many tasks a project has."""
        answer = self.connection.get("api/tasks/", {"project": project, "include": "id", "page_size": 1})
        with self._understood():
            return answers.number(answer, "total")

    def tasks(self, project: int, only: Sequence[Filter] = ()) -> Iterator[Task]:
        """The tasks of a project that pass all filters, by id, a page at a time."""
        page = seen = 0
        total = 1
        while seen < total:
            page += 1
            asked = {"project": project, "fields": "all", "include": _LISTED, "page": page, "page_size": PAGE}
            if only:
                items = [one.item() for one in only]
                asked["query"] = json.dumps({"filters": {"conjunction": "and", "items": items}})
            answer = self.connection.get("api/tasks/", asked)
            with self._understood():
                total, rows = answers.number(answer, "total"), answers.objects(answer, "tasks")
            if not rows:
                break
            seen += len(rows)
            if seen > MOST_TASKS:
                raise AnswerError(f"{self.url}: project {project} has more than {MOST_TASKS} tasks")
            yield from (read_task(row) for row in rows)

    def result(self, annotation: int) -> Any:
        """What was drawn in one annotation: a list of regions, as the server gives it."""
        answer = self.connection.get(f"api/annotations/{annotation}/")
        with self._understood():
            return answers.fields(answer).get("result")

    def add(self, project: int, paintings: Sequence[Upload]) -> None:
        """Upload some paintings and make a task of each.

        At most 100 files and 250 MiB a call (the server's limits). Not to be repeated blindly.

        Raises:
            UnsureError: the connection broke at the last step; list the tasks to see what is there.
        """
        # every file needs a form field of its own, and the name comes back as part of the stored one
        files = {f"file{n}": (f"{p.sha256[:16]}{p.suffix}", p.content) for n, p in enumerate(paintings)}
        # twice uploaded files are no tasks yet
        sent = self.connection.send(
            "POST",
            f"api/projects/{project}/import",
            repeat=True,
            files=files,
            params={"commit_to_project": "false"},
        )
        with self._understood():
            ids = answers.numbers(sent, "file_upload_ids")
        stored = self.connection.get(f"api/projects/{project}/file-uploads", {"ids": str(ids)})
        with self._understood():
            by_id = {
                answers.number(one, "id"): answers.text(one, "file")
                for one in answers.objects({"uploads": stored}, "uploads")
            }
        rows = []
        for painting, upload in zip(paintings, ids + [0] * len(paintings), strict=False):
            place = by_id.get(upload, "")
            if painting.sha256[:16] not in place:
                raise UserError(
                    f"{self.url}: mixed up the uploaded files; nothing was added, run the command again"
                )
            data: dict[str, str | int]
            data = {"image": f"/data/{place}", "key": painting.key, "sha256": painting.sha256}
            data |= {"height": painting.size[0], "width": painting.size[1]}
            rows.append({"data": data, "file_upload_id": upload})
        made = self.connection.send("POST", f"api/projects/{project}/import", repeat=False, json=rows)
        with self._understood():
            count = answers.number(made, "task_count")
        if count != len(rows):
            raise UserError(f"{self.url}: made {count} tasks of {len(rows)}; run the command again")

    def annotate(
        self, task: int, result: Sequence[Mapping[str, Any]], seconds: float = 0.0, cancelled: bool = False
    ) -> int:
        """Submit an annotation, as the browser does; returns its id.

        Args:
            task: its id.
            result: regions of `annotate.regions`, or as the editor writes them.
            seconds: how long it took.
            cancelled: the annotator pressed Skip.
        """
        body = {"result": as_drawn(result), "lead_time": seconds, "was_cancelled": cancelled}
        made = self.connection.send("POST", f"api/tasks/{task}/annotations/", repeat=False, json=body)
        with self._understood():
            return answers.number(made, "id")

    def predict(self, project: int, guesses: Sequence[Guess]) -> None:
        """Attach pre-annotations to tasks.

        Raises:
            UserError: the server dropped some of them, which it does without a word.
            UnsureError: the connection broke; list the tasks to see what is there.
        """
        rows = [
            {"task": one.task, "result": as_drawn(one.regions), "score": one.score, "model_version": MODEL}
            for one in guesses
        ]
        path = f"api/projects/{project}/import/predictions"
        made = self.connection.send("POST", path, repeat=False, json=rows)
        with self._understood():
            count = answers.number(made, "created")
        if count != len(rows):
            raise UserError(f"{self.url}: took {count} of {len(rows)} pre-annotations; run the command again")

    def show_predictions(self, project: int) -> None:
        """Have the editor show our pre-annotations, and let tasks be ordered by their score.

        The server refuses it before there is one of them.
        """
        shown = {"model_version": MODEL, "show_collab_predictions": True}
        with self._understood():
            about = answers.fields(
                self.connection.get(f"api/projects/{project}/", {"include": ",".join(shown)})
            )
        if any(about.get(name) != value for name, value in shown.items()):
            self.connection.send("PATCH", f"api/projects/{project}/", repeat=True, json=shown)

    def queue_by_score(self, project: int) -> int:
        """Have tasks come in the order of our pre-annotations' scores, the lowest first.

        Returns:
            The id of the tab of the project's page that lists them so.
        """
        self.connection.send(
            "PATCH", f"api/projects/{project}/", repeat=True, json={"sampling": "Uncertainty sampling"}
        )
        asked = {"total_annotations": ("equal", 0), "total_predictions": ("greater", 0)}
        filters = [
            {"filter": f"filter:tasks:{name}", "operator": operator, "type": "Number", "value": value}
            for name, (operator, value) in asked.items()
        ]
        data = {
            "title": QUEUE,
            "type": "list",
            "target": "tasks",
            "filters": {"conjunction": "and", "items": filters},
            "ordering": ["tasks:predictions_score"],
        }
        tabs = self.connection.get("api/dm/views/", {"project": project})
        with self._understood():
            for tab in tabs if isinstance(tabs, list) else []:
                about = answers.fields(tab)
                if answers.fields(about.get("data")).get("title") == QUEUE:
                    return answers.number(about, "id")
        made = self.connection.send(
            "POST", "api/dm/views/", repeat=False, json={"project": project, "data": data}
        )
        with self._understood():
            return answers.number(answers.fields(made), "id")

    def add_backend(self, project: int, address: str) -> int:
        """Have the server ask `address` for pre-annotations of tasks that have none; returns the backend's id.

        One of ours that was left behind is taken over. The server asks at once whether it answers.

        Raises:
            UserError: the server does not reach it, or refuses addresses of its own machine.
        """
        found = self.connection.get("api/ml/", {"project": project})
        with self._understood():
            rows = [answers.fields(one) for one in (found if isinstance(found, list) else [])]
            ours = [answers.number(one, "id") for one in rows if one.get("title") == MODEL]
        # one name for the backend and its predictions: the server orders tasks by the score of that one only
        about = {"project": project, "url": address, "title": MODEL, "is_interactive": False}
        try:
            if ours:
                self.connection.send("PATCH", f"api/ml/{ours[0]}", repeat=True, json=about)
                backend = ours[0]
            else:
                made = self.connection.send("POST", "api/ml/", repeat=False, json=about)
                with self._understood():
                    backend = answers.number(answers.fields(made), "id")
        except UserError as error:
            raise UserError(
                f"{self.url}: does not take {address} as ML backend ({error.message}); a server of your own must "
                "be allowed to reach it (docs/assist.md), the embedded one is started anew by `tool annotate stop`"
            ) from error
        self.show_predictions(project)
        return backend

    def remove_backend(self, project: int, backend: int) -> None:
        """Undo `add_backend`; pre-annotations stay, and are still shown."""
        try:
            self.connection.send("DELETE", f"api/ml/{backend}", repeat=True)
        except MissingError:
            return
        with contextlib.suppress(UserError):  # refused where nothing was ever predicted: nothing to show then
            self.show_predictions(project)

    def drop_predictions(self, project: int, tasks: Sequence[Task]) -> None:
        """Remove our pre-annotations of some tasks, and nobody else's."""
        only_ours = [task.id for task in tasks if all(one.model == MODEL for one in task.predictions)]
        if only_ours:
            action = {"id": "delete_tasks_predictions", "project": project}
            body = {"selectedItems": {"all": False, "included": only_ours}}
            self.connection.send("POST", "api/dm/actions", repeat=True, params=action, json=body)
        for task in tasks:
            for one in task.predictions:
                if task.id not in only_ours and one.model == MODEL:
                    with contextlib.suppress(MissingError):
                        self.connection.send("DELETE", f"api/predictions/{one.id}/", repeat=True)

    def delete_task(self, task: int) -> None:
        """Remove a task; one that is gone already is fine."""
        try:
            self.connection.send("DELETE", f"api/tasks/{task}/", repeat=True)
        except MissingError:
            return

    def close(self) -> None:
        self.connection.close()

    @contextlib.contextmanager
    def _understood(self) -> Iterator[None]:
        """An answer that is not what Label Studio's API gives is one line."""
        try:
            yield
        except ValueError as error:
            raise AnswerError(f"{self.url}: an answer that Label Studio would not give: {error}") from error

    @property
    def _saved_url(self) -> str:
        """What `tool.toml` says of this server: the embedded one, whose port may change, is the empty text."""
        return "" if self.login is not None else self.url

    def _find_project(self, workspace: Workspace, settings: Settings) -> Mapping[str, Any] | None:
        if settings.studio_project is not None and settings.studio_url == self._saved_url:
            try:
                found = self.connection.get(f"api/projects/{settings.studio_project}/")
                with self._understood():
                    return answers.fields(found)
            except MissingError:
                pass  # deleted: a new one is made
        # a push that was killed after making the project, before its id was saved
        return self._find_described(self._about(workspace))

    def _find_described(self, about: Mapping[str, str]) -> Mapping[str, Any] | None:
        """The project with this description; its title may be another, as the workspace's folder was called."""
        seen = 0
        for page in range(1, MOST_PAGES + 1):
            asked = {"include": "id,description,label_config", "page": page, "page_size": PROJECTS}
            answer = self.connection.get("api/projects/", asked)
            with self._understood():
                total, projects = answers.number(answer, "count"), answers.objects(answer, "results")
            for one in projects:
                if one.get("description") == about["description"]:
                    return one
            seen += len(projects)
            if not projects or seen >= total:
                break
        return None

    def _about(self, workspace: Workspace, part: str = "") -> dict[str, str]:
        """Title, and a description that no other project has: of the workspace, or of a part of it."""
        mark = workspace.studio_folder / "workspace-id"
        if not mark.exists():
            write_whole(mark, secrets.token_hex(8))
        name = " ".join([workspace.root.resolve().name or "paintings", part]).strip()
        text = " ".join(["impasto workspace", mark.read_text().strip(), part]).strip()
        return {"title": f"{name} (impasto)"[-50:], "description": text}
