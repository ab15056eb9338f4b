"""Pseudo masks as pre-annotations: what the model sees, for a person to correct."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from annotate.classes import ClassTable
from annotate.connection import UnsureError
from annotate.errors import UserError
from annotate.masks import MEAN_CONFIDENCE, Encoding, mask_digest, mask_texts, read_levels, read_mask
from annotate.paintings import Painting
from annotate.progress import progress
from annotate.regions import class_map_regions
from annotate.studio import MODEL, Studio
from annotate.tasks import Guess, Task
from annotate.workspace import Workspace

Form = Literal["brush", "polygon"]

SMALLEST = (
    16.0  # pixels; smaller parts of a polygon's class are speckle, and each would be a region of its own
)
BATCH_TASKS = 25
BATCH_NUMBERS = 4_000_000  # bytes of brush strokes in one request: as JSON they are eight times as many
ROUNDS = 3  # how often the server's list is compared again after a broken connection
_STEP = (
    1e-10  # a score's last digits, far below what orders paintings, are a fingerprint of what it belongs to
)
_MARKS = 90_000


@dataclass(frozen=True)
class AttachResult:
    """What became of the pre-annotations."""

    attached: int  # now
    there: int  # made of the same masks before
    without: int  # open tasks whose painting has no pseudo mask
    problems: tuple[str, ...]  # one line for each mask that was left out

    def text(self) -> str:
        line = f"pre-annotations: {self.attached} attached now, {self.there} there"
        return f"{line}, {self.without} tasks without a pseudo mask" if self.without else line


def attach(
    workspace: Workspace,
    studio: Studio,
    project: int,
    index: Mapping[str, Painting],
    form: str,
    order: Mapping[str, float] | None = None,
) -> AttachResult:
    """Give every task that nobody has begun the pseudo mask of its painting, to be corrected in the editor.

    Tasks that have it are left alone; older ones of ours are replaced. Annotations and drafts, and tasks that
    have some, are not touched.

    Args:
        index: the paintings by key; tasks of others are left alone.
        form: `brush` or `polygon`.
        order: the scores by key, instead of how sure the model is of each.

    Raises:
        UserError: the server's refusal.
    """
    if form not in ("brush", "polygon"):
        raise ValueError(f"no regions of form {form!r}")
    classes = workspace.settings().classes
    problems: dict[str, str] = {}
    first: int | None = None  # how many were to be attached, before any was
    for attempt in range(ROUNDS):
        tasks = [task for task in studio.tasks(project) if _is_open(task, index)]
        scores = _scores(workspace, tasks, classes, form, order or {}, problems)
        stale = {task.id: task for task in tasks if task.id in scores and not _has(task, scores[task.id])}
        first = len(stale) if first is None else first
        guesses = _guesses(workspace, stale.values(), index, scores, cast(Form, form), problems)
        try:
            with progress("Attaching the pre-annotations", len(stale)) as advance:
                for batch in _batches(guesses):
                    older = [stale[guess.task] for guess in batch if _ours(stale[guess.task])]
                    studio.drop_predictions(project, older)
                    studio.predict(project, batch)
                    advance(len(batch))
            break
        except UnsureError:
            if attempt == ROUNDS - 1:
                raise
    failed = sum(stale[one].key in problems for one in stale)
    if len(scores) > failed:
        studio.show_predictions(project)
    assert first is not None, "the list was looked at once at least"
    without = sum(task.id not in scores and task.key not in problems for task in tasks)
    return AttachResult(first - failed, len(scores) - first, without, tuple(problems.values()))


def confidence(workspace: Workspace, key: str) -> float | None:
    """How sure the model is of a painting's pseudo mask, 0 to 1 over its pixels; None where nothing says it.

    Raises:
        UserError: a damaged file.
    """
    said = mask_texts(workspace.mask("pseudo", key)).get(MEAN_CONFIDENCE)
    if said is not None:
        try:
            found = float(said)
        except ValueError:
            found = math.nan
        if 0 <= found <= 1:
            return found
    path = workspace.mask("confidence", key)
    return float(read_levels(path).mean()) / 255 if path.exists() else None


def _is_open(task: Task, index: Mapping[str, Painting]) -> bool:
    """Whether nobody has begun a task, and the painting on disk is the one that it shows."""
    known = task.key in index and index[task.key].sha256 == task.sha256
    return known and task.untouched


def _scores(
    workspace: Workspace,
    tasks: list[Task],
    classes: ClassTable,
    form: str,
    order: Mapping[str, float],
    problems: dict[str, str],
) -> dict[int, float]:
    """The score of each task whose painting has a pseudo mask: how sure the model is, and a fingerprint."""
    table = [classes.as_list(), form]
    scores = {}
    for task in tasks:
        path = workspace.mask("pseudo", task.key)
        if not path.exists():
            continue
        try:
            sure = order[task.key] if task.key in order else confidence(workspace, task.key) or 0.0
            made_of = json.dumps([mask_digest(path), task.size, table])
        except UserError as error:
            problems[task.key] = error.message
            continue
        mark = int.from_bytes(hashlib.sha256(made_of.encode()).digest()[:8]) % _MARKS
        scores[task.id] = round(sure, 4) + mark * _STEP
    return scores


def _ours(task: Task) -> bool:
    return any(one.model == MODEL for one in task.predictions)


def _has(task: Task, score: float) -> bool:
    """Whether the task has this pre-annotation, once."""
    ours = [one.score for one in task.predictions if one.model == MODEL]
    return len(ours) == 1 and abs(ours[0] - score) < _STEP / 4


def _guesses(
    workspace: Workspace,
    tasks: Iterable[Task],
    index: Mapping[str, Painting],
    scores: Mapping[int, float],
    form: Form,
    problems: dict[str, str],
) -> Iterator[Guess]:
    """The pseudo masks of some tasks as regions; one that cannot be used is a problem line."""
    classes = workspace.settings().classes
    for task in tasks:
        try:
            ids = _as_shown(workspace, index[task.key], task)
        except UserError as error:
            problems[task.key] = error.message
            continue
        regions = class_map_regions(ids, classes, form, smallest=SMALLEST)
        yield Guess(task.id, regions, scores[task.id])


def _as_shown(workspace: Workspace, painting: Painting, task: Task) -> NDArray[np.uint8]:
    """A pseudo mask at the size of the image that the browser shows."""
    path = workspace.mask("pseudo", painting.key)
    ids = read_mask(path, Encoding.RAW)
    if ids.shape != painting.size:
        raise UserError(
            f"{path}: the mask is {ids.shape[0]} x {ids.shape[1]}, its painting "
            f"{painting.size[0]} x {painting.size[1]}; run `tool segment pseudo-label` again"
        )
    size = task.size or painting.size
    if size == painting.size:
        return ids
    if size[0] > painting.size[0] or size[1] > painting.size[1]:
        raise UserError(f"task {task.id}: claims to show {painting.key} enlarged; delete it and push again")
    return np.asarray(Image.fromarray(ids).resize((size[1], size[0]), Image.Resampling.NEAREST))


def _batches(guesses: Iterator[Guess]) -> Iterator[list[Guess]]:
    """Guesses for one request each."""
    batch: list[Guess] = []
    numbers = 0
    for guess in guesses:
        batch.append(guess)
        numbers += sum(len(one["value"].get("rle", ())) for one in guess.regions)
        if len(batch) == BATCH_TASKS or numbers > BATCH_NUMBERS:
            yield batch
            batch, numbers = [], 0
    if batch:
        yield batch
