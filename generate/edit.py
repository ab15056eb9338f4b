"""A composition to Label Studio, to be repainted there by hand, and back."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from annotate.access import connect
from annotate.classes import UNLABELLED, ClassTable
from annotate.errors import UserError
from annotate.masks import Encoding, read_mask, unshift
from annotate.paintings import Shown, browser_bytes, load_painting, read_index
from annotate.pull import gather
from annotate.regions import class_map, class_map_regions
from annotate.server import Login
from annotate.studio import Studio
from annotate.tasks import Task, Upload
from annotate.workspace import Workspace
from generate.compose import (
    BY_HAND,
    Composed,
    composition_to_write,
    mask_file,
    read_composition,
    write_composition,
)
from generate.compose_config import EditConfig

Ids = NDArray[np.uint8]


@dataclass(frozen=True)
class Editing:
    """A composition that lies in Label Studio."""

    name: str
    url: str  # where to repaint it
    task: int
    sent: bool  # now, not earlier
    login: Login | None  # of the embedded server


def push_composition(workspace: Workspace, mask: str, config: EditConfig) -> Editing:
    """Send a composition to Label Studio, its classes drawn as brush regions; one that is there is not sent again.

    Beneath lies the painting, where the mask is a painting's, otherwise the classes in their colours. A composition
    that is sent is written to `compositions/NAME.png` as it is now.

    Raises:
        UserError: no such mask, a class that is not in tool.toml, another composition of this name there.
    """
    name = edit_name(workspace, mask, config)
    path = composition_to_write(workspace, name)
    made_of, shifted = read_composition(workspace, mask, config.encoding)
    raw, classes = unshift(shifted), workspace.settings().classes
    classes.to_index(raw)  # every id is a class that can be drawn
    shown = _backdrop(workspace, mask, raw, classes)
    upload = Upload(name, _digest(raw), shown.content, shown.suffix, shown.size)
    studio = connect(workspace, config.url)
    try:
        project = studio.compositions_project(workspace, make=True)
        assert project is not None, "it is made where there is none"
        task = _task(studio, project, name)
        if task is not None and task.sha256 != upload.sha256:
            raise UserError(
                f"{name}: lies in Label Studio already (task {task.id}), from another mask; fetch it with "
                f"`tool generate compose edit {name} --pull`, or give this one another --name"
            )
        sent = task is None
        if task is None:
            if mask_file(workspace, mask) != path:
                write_composition(workspace, name, raw, f"{made_of}, to be repainted by hand", check=False)
            studio.add(project, [upload])
            task = _task(studio, project, name)
            assert task is not None, "it was added a moment ago"
        if not task.annotations and not task.drafts:
            studio.annotate(task.id, class_map_regions(raw, classes))
    finally:
        studio.close()
    url = f"{studio.url}/projects/{project}/data?task={task.id}"
    return Editing(name, url, task.id, sent, studio.login)


def pull_composition(workspace: Workspace, mask: str, config: EditConfig) -> Composed:
    """Fetch what was repainted in Label Studio, as the composition.

    Raises:
        UserError: it was not sent, nothing was submitted, or a region that cannot be drawn.
    """
    names = dict.fromkeys([config.name or mask, edit_name(workspace, mask, config)])
    classes = workspace.settings().classes
    studio = connect(workspace, config.url)
    try:
        project = studio.compositions_project(workspace, make=False)
        found = {} if project is None else {one.key: one for one in studio.tasks(project)}
        name, task = next(((one, found[one]) for one in names if one in found), (next(reversed(names)), None))
        if task is None:
            raise UserError(
                f"{name}: is not in Label Studio; send it with `tool generate compose edit MASK --name {name}`"
            )
        size = _size(workspace, name, task)
        (work,) = gather([task])
        if not work.submitted:
            raise UserError(f"{name}: nothing was submitted (task {task.id}); press Submit or Update there")
        result = studio.result(work.submitted[-1].id)
    finally:
        studio.close()
    try:
        drawn = class_map(result, size, classes)
    except ValueError as error:
        raise UserError(
            f"{name} (task {task.id}): {error}; mend it in Label Studio and pull again"
        ) from error
    if drawn.unknown or drawn.problems:
        wanted = [f"no class {label!r} in tool.toml" for label in drawn.unknown]
        raise UserError(
            f"{name} (task {task.id}): {'; '.join([*wanted, *drawn.problems])}; mend it and pull again"
        )
    return write_composition(workspace, name, drawn.ids, name + BY_HAND, config.check, by_hand=True)


def edit_name(workspace: Workspace, mask: str, config: EditConfig) -> str:
    """A composition keeps its name; a painting's mask, which stays as it is, becomes KEY-edited."""
    if config.name:
        return config.name
    if not mask.lower().endswith(".png") and workspace.composition(mask).exists():
        return mask
    return f"{mask.rsplit('/', 1)[-1].removesuffix('.png')}-edited"


def _size(workspace: Workspace, name: str, task: Task) -> tuple[int, int]:
    """(H, W) of the composition that was sent."""
    path = workspace.composition(name)
    if not path.exists():
        if task.size is None:
            raise UserError(f"{path}: is gone, and Label Studio does not know its size; compose it again")
        return task.size
    height, width = read_mask(path, Encoding.RAW).shape
    return height, width


def _task(studio: Studio, project: int, name: str) -> Task | None:
    return next((task for task in studio.tasks(project) if task.key == name), None)


def _digest(raw: Ids) -> str:
    return hashlib.sha256(repr(raw.shape).encode() + raw.tobytes()).hexdigest()


def _backdrop(workspace: Workspace, mask: str, raw: Ids, classes: ClassTable) -> Shown:
    """The picture to paint over."""
    index = read_index(workspace) if workspace.index_file.exists() else {}
    if mask in index and index[mask].file(workspace).exists():
        path = index[mask].file(workspace)
        if load_painting(path).shape[:2] == raw.shape:
            return browser_bytes(path)
    colours = classes.colours()
    colours[UNLABELLED] = 24  # the same for all three: nearly black
    buffer = io.BytesIO()
    Image.fromarray(colours[raw]).save(buffer, format="PNG")
    return Shown(buffer.getvalue(), ".png", (raw.shape[0], raw.shape[1]))
