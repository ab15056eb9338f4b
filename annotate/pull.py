"""Annotations to masks: only what changed, each mask whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from annotate.access import connect
from annotate.agreement import compare, majority, to_text
from annotate.classes import UNLABELLED, ClassTable
from annotate.config import PullConfig
from annotate.connection import AnswerError, MissingError, UnansweredError
from annotate.errors import UserError
from annotate.files import write_whole
from annotate.listing import list_tasks
from annotate.masks import Encoding, mask_texts, write_mask
from annotate.paintings import Painting, read_index, write_index
from annotate.progress import note, progress
from annotate.regions import class_map
from annotate.studio import Studio
from annotate.tasks import Annotation, Task
from annotate.workspace import Workspace

SOURCE = "annotation"  # text chunk of a pulled mask: what it was made from
PROBLEMS = "problems"  # text chunk: what of it was left out, one line each
COMPARED = "compared"  # text chunk: pixels by the classes that two annotators gave them
PIXELS = "pixels"  # text chunk: pixels of each raw id, so that counting needs no decoding
MOST_BROKEN = 5  # answers in a row that cannot be used: then it is the server, not the annotations
SHOWN = 12  # keys that a line names
FETCHED_AT_ONCE = 3  # the server is one Python process: more would only queue there


class Outcome(StrEnum):
    """What a pull found for one painting."""

    NEW = "new"
    CHANGED = "changed"
    EMPTY = "empty"  # new or changed, and not one pixel has a class
    UNCHANGED = "unchanged"
    SKIPPED = "skipped"  # the annotator pressed Skip
    DRAFT = "draft"  # begun, not submitted
    OPEN = "open"
    UNKNOWN = "unknown label"  # no class of tool.toml
    FAILED = "failed"


@dataclass(frozen=True)
class PullResult:
    """What a pull did."""

    outcomes: dict[str, Outcome]  # by key
    twice: tuple[str, ...]  # keys with more than one annotation
    consensus: str  # what counts there
    kept: tuple[str, ...]  # keys whose mask was pulled from an annotation that is gone
    problems: tuple[str, ...]  # one line for each annotation, or part of one, that was left out

    def count(self, *outcomes: Outcome) -> int:
        return sum(one in outcomes for one in self.outcomes.values())

    def text(self) -> str:
        parts = [f"{self.count(one)} {one}" for one in Outcome if self.count(one)]
        lines = ["masks/hand: " + (", ".join(parts) or "nothing to pull")]
        for outcome in (one for one in Outcome if one not in (Outcome.UNCHANGED, Outcome.OPEN)):
            keys = [key for key, one in self.outcomes.items() if one is outcome]
            if keys:
                lines.append(f"  {outcome}: {some(keys)}")
        if self.twice:
            rule = "the latest counts" if self.consensus == "latest" else "the majority of annotators counts"
            lines.append(f"annotated more than once, {rule}: {some(self.twice)}")
        if self.kept:
            lines.append(
                f"kept, though the annotation was deleted or skipped since: {some(self.kept)}; "
                "delete masks/hand/KEY.png to drop one"
            )
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
    def votes(self) -> list[Annotation]:
        """The latest submitted annotation of each annotator, the latest last."""
        found = {one.annotator: one for one in self.submitted}
        return sorted(found.values(), key=lambda one: (one.updated_at, one.id))

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
    after a pull that was killed, and a mask that was deleted comes back. Of several annotations of one person
    the latest counts; of several people's, what `config.consensus` says. One that cannot be drawn is a problem
    line, now and at each later pull, and an older mask stays.

    Raises:
        UserError: no server, no project or no list of paintings; the server went away (what was written stays).
    """
    index = read_index(workspace)
    classes = workspace.settings().classes
    studio = connect(workspace, config.url)
    try:
        tasks = list_tasks(studio, studio.project(workspace), workspace)
        outcomes = {task.key: Outcome.FAILED for task in tasks if task.damage and task.key in index}
        problems = [f"task {task.id}: {task.damage}" for task in tasks if task.damage]
        for work in gather(task for task in tasks if not fits(task, index)):
            if work.submitted:
                outcomes[work.key] = Outcome.FAILED
                problems.append(_replaced(work))
        works = gather(task for task in tasks if fits(task, index))
        fetched = []
        for work in works:
            if work.key not in index:
                if work.submitted:
                    problems.append(_stray(work))
            elif work.outcome is not None:
                outcomes[work.key] = work.outcome
            elif (said := _current(workspace, work, classes, config.consensus)) is not None:
                outcomes[work.key] = Outcome.UNCHANGED
                problems += said
            else:
                fetched.append(work)

        def fetch(work: Work) -> tuple[Outcome, list[str]] | AnswerError:
            try:
                return _fetch(studio, workspace, index[work.key], work, classes, config.consensus)
            except AnswerError as error:
                return error

        broken = 0
        with progress("Fetching the annotations", len(fetched)) as advance:
            pool = ThreadPoolExecutor(FETCHED_AT_ONCE)
            try:
                for work, found in zip(fetched, pool.map(fetch, fetched), strict=True):
                    broken = broken + 1 if isinstance(found, UnansweredError) else 0
                    if isinstance(found, AnswerError):
                        if broken == MOST_BROKEN:
                            raise found
                        found = Outcome.FAILED, [f"{_name(work, work.submitted[-1])}: {found.message}"]
                    outcomes[work.key], lines = found
                    problems += lines
                    advance()
            finally:
                pool.shutdown(cancel_futures=True)  # after an error, what waits is not begun
    finally:
        studio.close()
    twice = tuple(work.key for work in works if len(work.submitted) > 1 and work.key in index)
    _keep_split(workspace)
    kept = tuple(_kept(workspace, index, outcomes))
    result = PullResult(dict(sorted(outcomes.items())), twice, config.consensus, kept, tuple(problems))
    figures = {str(one): result.count(one) for one in Outcome}
    figures |= {"twice": len(twice), "kept": len(kept), "left_out": len(problems)}
    workspace.save_report("annotate-pull", figures)
    return result


def gather(tasks: Iterable[Task]) -> list[Work]:
    """Tasks by painting, in the order of the server; tasks that are not ours are left out."""
    by_key: dict[str, list[Task]] = {}
    for task in tasks:
        if task.key and not task.damage:
            by_key.setdefault(task.key, []).append(task)
    return [Work(key, tuple(found)) for key, found in by_key.items()]


def fits(task: Task, index: Mapping[str, Painting]) -> bool:
    """Whether a task shows the very painting that the list has by its key; a task made elsewhere may not say it."""
    return task.key not in index or task.sha256 in ("", index[task.key].sha256)


def some(keys: Sequence[str]) -> str:
    """The first of some keys, and how many more there are."""
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return ", ".join(keys[:SHOWN]) + more


def _fetch(
    studio: Studio, workspace: Workspace, painting: Painting, work: Work, classes: ClassTable, consensus: str
) -> tuple[Outcome, list[str]]:
    """The annotations of one painting to one mask."""
    maps: dict[int, NDArray[np.uint8]] = {}
    lines, worst = [], Outcome.FAILED
    for one in work.votes:
        name = _name(work, one)
        try:
            found = class_map(studio.result(one.id), painting.size, classes)
        except MissingError:
            lines.append(f"{name}: was deleted just now; pull again")
            continue
        except ValueError as error:
            lines.append(f"{name}: {error}")
            continue
        if found.unknown:
            wanted = ", ".join(repr(label) for label in found.unknown)
            lines.append(f"{name}: no class {wanted} in tool.toml; add it there and pull again")
            worst = Outcome.UNKNOWN
            continue
        lines += [f"{name}: {line}" for line in found.problems]
        maps[one.id] = found.ids
    if not maps or (consensus == "latest" and work.votes[-1].id not in maps):
        return worst, lines
    seen = list(maps.values())
    ids = seen[-1] if consensus == "latest" else majority(seen)
    path = workspace.mask("hand", painting.key)
    before = path.exists()
    if before:
        _keep_foreign(workspace, painting.key)
    about = {SOURCE: _source(work, classes, consensus), PIXELS: json.dumps(_pixels(ids))}
    if lines:
        about[PROBLEMS] = json.dumps(lines)
    if len(seen) > 1:
        about[COMPARED] = to_text(compare(seen))
    write_mask(path, ids, Encoding.RAW, about)
    if (ids == UNLABELLED).all():
        return Outcome.EMPTY, lines
    return (Outcome.CHANGED if before else Outcome.NEW), lines


def _pixels(ids: NDArray[np.uint8]) -> dict[int, int]:
    found, counts = np.unique(ids, return_counts=True)
    return {int(one): int(count) for one, count in zip(found, counts, strict=True)}


def _current(workspace: Workspace, work: Work, classes: ClassTable, consensus: str) -> list[str] | None:
    """The problem lines of the mask on disk, if it was made from the annotations that count, with the same
    classes; else None."""
    path = workspace.mask("hand", work.key)
    if not path.exists():
        return None
    try:
        texts = mask_texts(path)
    except UserError:  # damaged: it is written again
        return None
    if texts.get(SOURCE) != _source(work, classes, consensus):
        return None
    try:
        said = json.loads(texts.get(PROBLEMS, "[]"))
    except ValueError:
        return None
    return [str(line) for line in said] if isinstance(said, list) else None


def _source(work: Work, classes: ClassTable, consensus: str) -> str:
    """What a mask is made of: the annotations, how they are joined, and the classes."""
    table = hashlib.sha256(json.dumps(classes.as_list()).encode()).hexdigest()[:12]
    votes = [f"{one.id} {one.updated_at}" for one in work.votes]
    return " ".join([*votes, *([consensus] if len(votes) > 1 else []), table])


def _was_pulled(path: Path) -> bool | None:
    """Whether a pull wrote a mask as it is; None for a damaged one."""
    try:
        return SOURCE in mask_texts(path)
    except UserError:
        return None


def _keep_foreign(workspace: Workspace, key: str) -> None:
    """Copy a mask that somebody made or retouched by hand, before an annotation takes its place."""
    path = workspace.mask("hand", key)
    if _was_pulled(path) is False:
        content = path.read_bytes()
        copy = workspace.outdated(key, hashlib.sha256(content).hexdigest()[:8])
        write_whole(copy, content)
        note(f"{path}: no pull wrote it as it was; the annotation takes its place, and it lies in {copy}")


def _kept(
    workspace: Workspace, index: Mapping[str, Painting], outcomes: Mapping[str, Outcome]
) -> Iterator[str]:
    """Keys whose mask was pulled, and whose annotations are gone from the server, or skipped."""
    for key in workspace.keys_with_mask("hand"):
        gone = outcomes.get(key, Outcome.OPEN) in (Outcome.OPEN, Outcome.DRAFT, Outcome.SKIPPED)
        if gone and key in index and _was_pulled(workspace.mask("hand", key)):
            yield key


def _keep_split(workspace: Workspace) -> None:
    """A painting that a person annotated, sent by a review or by hand, is no longer the model's to label."""
    hand, index = set(workspace.keys_with_mask("hand")), read_index(workspace)  # a push may have changed it
    late = {key for key, one in index.items() if one.split != "hand" and key in hand}
    if late:
        rows = (replace(one, split="hand") if key in late else one for key, one in index.items())
        write_index(workspace, rows)


def _name(work: Work, annotation: Annotation) -> str:
    """What an annotation is called in messages."""
    task = next(task.id for task in work.tasks if annotation in task.annotations)
    return f"{work.key} (task {task}, annotation {annotation.id})"


def _replaced(work: Work) -> str:
    return (
        f"task {work.tasks[0].id}: annotates another painting than {work.key} is now; put the old file back and "
        "push again, or delete that task in Label Studio"
    )


def _stray(work: Work) -> str:
    return (
        f"task {work.tasks[0].id}: annotates {work.key[:200]!r}, which is not in paintings.jsonl; "
        "push the folder that has it"
    )
