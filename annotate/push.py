"""Paintings to Label Studio: each exactly once, however often the command runs or is cut off."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from annotate.access import connect
from annotate.config import PushConfig
from annotate.connection import UnsureError
from annotate.errors import UserError
from annotate.listing import list_tasks
from annotate.lock import alone
from annotate.paintings import (
    Painting,
    Scan,
    browser_bytes,
    read_index,
    scan,
    thumbnail,
    write_index,
)
from annotate.predictions import AttachResult, attach
from annotate.progress import note, progress
from annotate.pull import some
from annotate.selection import draw_random, draw_spread, listed, share
from annotate.server import Login
from annotate.studio import Studio
from annotate.tasks import Task, Upload
from annotate.workspace import Workspace

BATCH_FILES = 50  # the server takes 100 at most
BATCH_BYTES = 32 * 2**20  # what a request may hold besides its first file
MOST_BYTES = 240 * 2**20  # of one file; the server takes requests of 250 MiB
ROUNDS = 3  # broken connections in a row without one more task on the server: then it is given up


@dataclass(frozen=True)
class PushResult:
    """What a push did."""

    url: str  # of the project
    project: int
    paintings: int  # good ones in the folder
    chosen: int  # of them a person annotates
    added: int  # tasks made now
    there: int  # tasks that were there before
    predictions: AttachResult | None  # where they were asked for
    problems: tuple[str, ...]  # one line for each painting left out
    login: Login | None  # of the embedded server


def push(workspace: Workspace, folder: Path, config: PushConfig) -> PushResult:
    """Scan a folder, choose the paintings that a person annotates, and make a task of each on the server.

    The choice is written to `paintings.jsonl` before anything is sent; what the server has already, by key, is
    not sent again. A painting whose file changed after it was sent is a problem line: its annotations belong
    to the old one.

    Raises:
        UserError: no images, two paintings with one key, an unknown `--keys` line, another push or review at the same
            time, or the server's refusal.
    """
    found = scan(folder, workspace, _known(workspace))
    if not found.paintings:
        raise UserError(f"{folder}: none of its images can be used; the first: {found.problems[0]}")
    with alone(workspace):
        return _push(workspace, found, config)


def _push(workspace: Workspace, found: Scan, config: PushConfig) -> PushResult:
    """What a push does, once nobody else does it."""
    known = _known(workspace)
    settings = workspace.settings()
    fraction = settings.fraction if config.fraction is None else config.fraction
    seed = settings.seed if config.seed is None else config.seed
    _refuse_two_folders(workspace, found.paintings, known)
    earlier = {key for key, one in known.items() if one.split == "hand"}
    chosen = _choose(workspace, found, earlier, config, fraction, seed)
    index = {one.key: replace(one, split="hand" if one.key in chosen else "rest") for one in found.paintings}
    max_side = settings.max_side if config.max_side is None else config.max_side
    wanted = replace(settings, fraction=fraction, seed=seed, max_side=max_side)
    if wanted != settings or not workspace.settings_file.exists():
        workspace.save_settings(fraction=fraction, seed=seed, max_side=max_side)

    studio = connect(workspace, config.url)
    try:
        project, fresh = studio.open_project(workspace)
        if fresh and settings.studio_project is not None:
            note(f"project {settings.studio_project} is not on {studio.url}: made project {project}")
        there = tasks_by_key(studio, project, workspace)
        changed = [one for key, one in index.items() if key in there and there[key].sha256 != one.sha256]
        for one in changed:  # the list keeps the painting that the annotations belong to
            index[one.key] = known.get(one.key, replace(one, split="hand"))
        _set_aside(workspace, index, known)
        kept = {key: one for key, one in known.items() if key not in index and one.file(workspace).exists()}
        gone = [key for key in known if key not in index and key not in kept]
        if gone:
            note(f"no longer on the disk, and taken off the list: {some(gone)}")
        if index | kept != known:
            write_index(workspace, (index | kept).values())
        missing = [one for key, one in index.items() if key in chosen and key not in there]
        added, failed = send(studio, project, missing, workspace, max_side)
        attached = attach(workspace, studio, project, index, config.regions) if config.predictions else None
    finally:
        studio.close()

    problems = (*found.problems, *failed, *(_changed_line(one, there[one.key], workspace) for one in changed))
    problems += attached.problems if attached else ()
    url = f"{studio.url}/projects/{project}/data"
    already = len(chosen & there.keys())
    result = PushResult(
        url, project, len(index), len(chosen), added, already, attached, problems, studio.login
    )
    figures = {"paintings": len(index), "chosen": len(chosen), "added": added, "there": already}
    workspace.save_report("annotate-push", figures | {"left_out": len(problems), "url": url})
    return result


def _known(workspace: Workspace) -> dict[str, Painting]:
    return read_index(workspace) if workspace.index_file.exists() else {}


def _choose(
    workspace: Workspace, found: Scan, earlier: set[str], config: PushConfig, fraction: float, seed: int
) -> set[str]:
    """Keys of the folder's paintings that a person annotates: the earlier ones and those drawn now."""
    keys = {one.key for one in found.paintings}
    earlier &= keys
    if config.keys is not None:
        try:
            lines = config.keys.read_text(encoding="utf-8-sig").splitlines()  # Notepad begins with a mark
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"{config.keys}: cannot be read ({error}); give a text file with one key a line"
            ) from error
        return earlier | listed(lines, keys)
    if config.strategy == "all":
        return keys
    count = share(len(keys), fraction)
    if count <= len(earlier):
        return earlier
    if config.strategy == "random":
        return draw_random(keys, count, earlier, seed)
    thumbnails = dict(found.thumbnails)
    unseen = [one for one in found.paintings if one.key not in thumbnails]

    def look(one: Painting) -> None:
        thumbnails[one.key] = thumbnail(one.file(workspace))

    with ThreadPoolExecutor() as pool:
        list(pool.map(look, unseen))
    return draw_spread(thumbnails, count, earlier, seed)


def _refuse_two_folders(
    workspace: Workspace, paintings: Iterable[Painting], known: Mapping[str, Painting]
) -> None:
    """A key must not change its painting because another folder was given."""
    for one in paintings:
        before = known.get(one.key)
        if before is None or before.path == one.path or before.sha256 == one.sha256:
            continue
        if before.file(workspace).exists():
            raise UserError(
                f"{before.file(workspace)} and {one.file(workspace)} share the key {one.key!r}; "
                "rename one of them, or take another --workspace for the other folder"
            )


def _set_aside(workspace: Workspace, index: Mapping[str, Painting], known: Mapping[str, Painting]) -> None:
    """Take the masks of paintings that are others now out of the way; what a person drew is kept.

    Before the list is written: a push that is killed in between does it again.
    """
    for key, one in index.items():
        before = known.get(key)
        if before is None or before.sha256 == one.sha256:
            continue
        path = workspace.mask("hand", key)
        if path.exists():
            old = workspace.outdated(key, before.sha256[:8])
            old.parent.mkdir(parents=True, exist_ok=True)
            path.replace(old)
            note(
                f"{one.file(workspace)}: another painting than before; the mask of the old one lies in {old}"
            )
        for kind in ("pseudo", "confidence"):
            workspace.mask(kind, key).unlink(missing_ok=True)


def tasks_by_key(studio: Studio, project: int, workspace: Workspace) -> dict[str, Task]:
    """The server's tasks of ours; of two with one key, an untouched one is removed.

    Two can only come of a connection that broke while the server went on working.
    """
    by_key: dict[str, Task] = {}
    for task in list_tasks(studio, project, workspace):
        if not task.key:
            continue
        first = by_key.setdefault(task.key, task)
        if first is task or first.sha256 != task.sha256:
            continue
        if task.untouched:
            studio.delete_task(task.id)
        elif first.untouched:
            studio.delete_task(first.id)
            by_key[task.key] = task
    return by_key


def send(
    studio: Studio, project: int, missing: list[Painting], workspace: Workspace, max_side: int
) -> tuple[int, list[str]]:
    """Send the missing paintings. Returns how many tasks were made, and a line for each that could not be."""
    if not missing:
        return 0, []
    failed: list[str] = []
    waiting = list(missing)
    broken, fruitless = False, 0
    with progress("Sending the paintings", len(missing)) as advance:
        while True:
            before = len(waiting)
            try:
                for batch in _batches(waiting, workspace, failed, max_side):
                    studio.add(project, batch)
                    sent = {one.key for one in batch}
                    waiting = [one for one in waiting if one.key not in sent]
                    advance(len(batch))
                break
            except UnsureError:
                broken = True
                failed.clear()
                there = tasks_by_key(studio, project, workspace)
                advance(sum(one.key in there for one in waiting))
                waiting = [one for one in waiting if one.key not in there]
                fruitless = 0 if len(waiting) < before else fruitless + 1
                if fruitless == ROUNDS:
                    raise
    if broken:  # what was cut off may have been done after the look at the list
        tasks_by_key(studio, project, workspace)
    return len(missing) - len(failed), failed


def _batches(
    waiting: list[Painting], workspace: Workspace, failed: list[str], max_side: int
) -> Iterator[list[Upload]]:
    """Uploads for one request each; the files of the next are read while one is sent."""

    def read(painting: Painting) -> Upload | str:
        path = painting.file(workspace)
        try:
            shown = browser_bytes(path, max_side)
        except UserError as error:
            return error.message
        megabytes = len(shown.content) >> 20
        if len(shown.content) > MOST_BYTES:
            return (
                f"{path}: {megabytes} MiB, more than Label Studio takes ({MOST_BYTES >> 20}); use --max-side"
            )
        return Upload(painting.key, painting.sha256, shown.content, shown.suffix, shown.size)

    batch: list[Upload] = []
    size = 0
    with ThreadPoolExecutor(2) as pool:
        for start in range(0, len(waiting), BATCH_FILES):
            for upload in pool.map(read, waiting[start : start + BATCH_FILES]):
                if isinstance(upload, str):
                    failed.append(upload)
                    continue
                if batch and size + len(upload.content) > BATCH_BYTES:
                    yield batch
                    batch, size = [], 0
                batch.append(upload)
                size += len(upload.content)
            if batch:
                yield batch
                batch, size = [], 0


def _changed_line(one: Painting, task: Task, workspace: Workspace) -> str:
    return (
        f"{one.file(workspace)}: changed since it was sent (task {task.id}); put the old file back, "
        "or delete that task in Label Studio and push again to have it annotated anew"
    )
