"""Annotations to masks: only what changed, each mask whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from annotate.classes import ClassTable
from annotate.config import PullConfig
from annotate.connection import AnswerError, MissingError
from annotate.errors import UserError
from annotate.masks import Encoding, mask_texts, write_mask
from annotate.paintings import Painting, read_index
from annotate.progress import progress
from annotate.regions import class_map
from annotate.studio import Annotation, Studio, Task, connect
from annotate.workspace import Workspace

SOURCE = "annotation"  # text chunk of a pulled mask: what it was made from
PIXELS = "pixels"  # text chunk: pixels of each raw id, so that counting needs no decoding
MOST_BROKEN = 5  # answers in a row that cannot be used: then it is the server, not the annotations
FETCHED_AT_ONCE = 3  # the server is one Python process: more would only queue there


class Outcome(StrEnum):
    """What a pull found for one painting."""

    NEW = "new"
    CHANGED = "changed"
    UNCHANGED = "unchanged"
    SKIPPED = "skipped"  # the annotator pressed Skip
    DRAFT = "draft"  # begun, not submitted
    OPEN = "open"
    FAILED = "failed"


@dataclass(frozen=True)
class PullResult:
    """What a pull did."""

    outcomes: dict[str, Outcome]  # by key
    twice: tuple[str, ...]  # keys with more than one annotation; the latest counts
    problems: tuple[str, ...]  # one line for each annotation, or part of one, that was left out

    def count(self, *outcomes: Outcome) -> int:
        return sum(one in outcomes for one in self.outcomes.values())

    def text(self) -> str:
        parts = [f"{self.count(one)} {one}" for one in Outcome if self.count(one)]
        lines = ["masks/hand: " + (", ".join(parts) or "nothing to pull")]
        if self.twice:
            lines.append(f"annotated more than once, the latest counts: {', '.join(self.twice)}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Work:
    """The tasks of one painting, and the annotation that counts."""

    key: str
    tasks: tuple[Task, ...]

    @property
    def submitted(self) -> list[Annotation]:
        """Annotations that were not skipped, the latest last."""
        found = [one for task in self.tasks for one in task.annotations if not one.cancelled]
        return sorted(found, key=lambda one: (one.updated_at, one.id))

    @property
    def outcome(self) -> Outcome | None:
        """Known without fetching anything; None where there is an annotation to fetch."""
        if self.submitted:
            return None
        if any(task.drafts for task in self.tasks):
            return Outcome.DRAFT
        return Outcome.SKIPPED if any(task.annotations for task in self.tasks) else Outcome.OPEN


def pull(workspace: Workspace, config: PullConfig) -> PullResult:
    """Fetch the annotations that changed since the last pull, and write them to `masks/hand`.

    A mask says in itself which annotation and which classes it was made from: so what is there is known even
    after a pull that was killed, and a mask that was deleted comes back. Of several annotations the latest
    counts. One that cannot be drawn is a problem line, and an older mask stays.

    Raises:
        UserError: no server, no project or no list of paintings; the server went away (what was written stays).
    """
    index = read_index(workspace)
    classes = workspace.settings().classes
    studio = connect(workspace, config.url)
    try:
        tasks = list(studio.tasks(studio.project(workspace)))
        works = gather(tasks)
        outcomes = {task.key: Outcome.FAILED for task in tasks if task.damage and task.key in index}
        problems = [f"task {task.id}: {task.damage}" for task in tasks if task.damage]
        fetched = []
        for work in works:
            if work.key not in index:
                if work.submitted:
                    problems.append(_stray(work))
            elif work.outcome is not None:
                outcomes[work.key] = work.outcome
            elif _is_current(workspace, work, classes):
                outcomes[work.key] = Outcome.UNCHANGED
            else:
                fetched.append(work)

        def fetch(work: Work) -> tuple[Outcome, list[str]] | AnswerError:
            try:
                return _fetch(studio, workspace, index[work.key], work, classes)
            except AnswerError as error:
                return error

        broken = 0
        with progress("Fetching the annotations", len(fetched)) as advance:
            pool = ThreadPoolExecutor(FETCHED_AT_ONCE)
            try:
                for work, found in zip(fetched, pool.map(fetch, fetched), strict=True):
                    if isinstance(found, AnswerError):
                        broken += 1
                        if broken == MOST_BROKEN:
                            raise found
                        found = Outcome.FAILED, [f"{_name(work)}: {found.message}"]
                    else:
                        broken = 0
                    outcomes[work.key], lines = found
                    problems += lines
                    advance()
            finally:
                pool.shutdown(cancel_futures=True)  # after an error, what waits is not begun
    finally:
        studio.close()
    twice = tuple(work.key for work in works if len(work.submitted) > 1 and work.key in index)
    result = PullResult(dict(sorted(outcomes.items())), twice, tuple(problems))
    figures = {str(one): result.count(one) for one in Outcome}
    workspace.save_report("annotate-pull", figures | {"twice": len(twice), "left_out": len(problems)})
    return result


def gather(tasks: Iterable[Task]) -> list[Work]:
    """Tasks by painting, in the order of the server; tasks that are not ours are left out."""
    by_key: dict[str, list[Task]] = {}
    for task in tasks:
        if task.key and not task.damage:
            by_key.setdefault(task.key, []).append(task)
    return [Work(key, tuple(found)) for key, found in by_key.items()]


def _fetch(
    studio: Studio, workspace: Workspace, painting: Painting, work: Work, classes: ClassTable
) -> tuple[Outcome, list[str]]:
    """One annotation to one mask."""
    latest, name = work.submitted[-1], _name(work)
    try:
        found = class_map(studio.result(latest.id), painting.size, classes)
    except MissingError:
        return Outcome.FAILED, [f"{name}: was deleted just now; pull again"]
    except ValueError as error:
        return Outcome.FAILED, [f"{name}: {error}"]
    if found.unknown:
        wanted = ", ".join(repr(label) for label in found.unknown)
        return Outcome.FAILED, [f"{name}: no class {wanted} in tool.toml; add it there and pull again"]
    lines = [f"{name}: {line}" for line in found.problems]
    ids, counts = np.unique(found.ids, return_counts=True)
    pixels = {int(one): int(count) for one, count in zip(ids, counts, strict=True)}
    path = workspace.mask("hand", painting.key)
    before = path.exists()
    about = {SOURCE: _source(latest, classes), PIXELS: json.dumps(pixels)}
    write_mask(path, found.ids, Encoding.RAW, about)
    return (Outcome.CHANGED if before else Outcome.NEW), lines


def _is_current(workspace: Workspace, work: Work, classes: ClassTable) -> bool:
    """Whether the mask on disk was made from the annotation that counts, with the same classes."""
    path = workspace.mask("hand", work.key)
    if not path.exists():
        return False
    try:
        return mask_texts(path).get(SOURCE) == _source(work.submitted[-1], classes)
    except UserError:  # damaged: it is written again
        return False


def _source(annotation: Annotation, classes: ClassTable) -> str:
    table = hashlib.sha256(json.dumps(classes.as_list()).encode()).hexdigest()[:12]
    return f"{annotation.id} {annotation.updated_at} {table}"


def _name(work: Work) -> str:
    """What the annotation that counts is called in messages."""
    latest = work.submitted[-1]
    task = next(task.id for task in work.tasks if latest in task.annotations)
    return f"{work.key} (task {task}, annotation {latest.id})"


def _stray(work: Work) -> str:
    return (
        f"task {work.tasks[0].id}: annotates {work.key[:200]!r}, which is not in paintings.jsonl; "
        "push the folder that has it"
    )
