"""The report of a whole workspace: every step's figures, the masks, and the paintings that were made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from annotate.classes import ClassTable
from annotate.errors import UserError
from annotate.files import read_json, write_whole
from annotate.masks import Encoding, mask_encoding, mask_texts, read_mask, shift, unshift
from annotate.page import (
    cards,
    colour,
    curve,
    duration,
    image,
    legend,
    overlay,
    page,
    pictures,
    section,
    shrink,
    table,
)
from annotate.paintings import Painting, load_painting, read_index
from annotate.progress import progress
from annotate.standing import annotators_agreement
from annotate.workspace import Workspace
from demo.figures import STEPS, readable
from generate.compose import MADE_OF
from generate.recipe import digest as mask_digest

ROWS = 12  # paintings shown of each kind
GRIDS = {  # pictures that training leaves in reports/
    "generate-train-painting": "Paintings above, what the painting codes make of them below.",
    "generate-train-mask": "Masks above, what the mask codes make of them below.",
    "generate-train-transformer": "The transformer's own trials.",
}
CURVES = {  # the figure that is drawn, the first that a training has: the loss of codes has parts that join it on the way
    "l1": "L1",
    "cross_entropy": "cross-entropy",
    "loss": "loss",
}


def build_report(workspace: Workspace, title: str = "From paintings to new paintings") -> Path:
    """Write `reports/index.html`, one self-contained file; parts that the workspace does not have are left out.

    Args:
        title: of the page.

    Raises:
        UserError: nothing was pushed yet; or a mask or painting is damaged (the line names it).
    """
    index = read_index(workspace)
    parts: tuple[Callable[[Workspace, Mapping[str, Painting]], str], ...] = (
        at_a_glance,
        new_paintings,
        every_step,
        label_quality,
        agreement,
        hand_masks,
        pseudo_masks,
        training,
    )
    sections = []
    with progress("Writing the report", len(parts)) as advance:
        for part in parts:
            sections.append(part(workspace, index))
            advance()
    note = str((workspace.report("demo") or {}).get("note", ""))
    path = workspace.reports / "index.html"
    write_whole(path, page(title, note, [one for one in sections if one]))
    return path


def at_a_glance(workspace: Workspace, index: Mapping[str, Painting]) -> str:
    """Cards: how many of everything."""
    hand = set(workspace.keys_with_mask("hand"))
    figures = {
        "paintings": len(index),
        "annotated by hand": len(hand),
        "labelled by the model": len(set(workspace.keys_with_mask("pseudo")) - hand),
        "shifted masks": len(workspace.keys_with_mask("shifted")),
        "new paintings": len(_samples(workspace)),
    }
    shown = {label: str(count) for label, count in figures.items() if count}
    evaluation = workspace.report("segment-evaluate") or {}
    if isinstance(evaluation.get("miou"), float):
        shown["mIoU of the model's labels"] = f"{100 * evaluation['miou']:.1f} %"
    seconds = [one for name in STEPS if (one := _seconds(workspace, name)) is not None]
    if seconds:
        shown["all steps together"] = duration(sum(seconds))
    flow = workspace.reports / "flow.png"
    parts = [image(_pixels(flow), "the flow, from painting to new painting")] if flow.exists() else []
    return section("At a glance", "", *parts, cards(shown))


def new_paintings(workspace: Workspace, index: Mapping[str, Painting]) -> str:
    """Each mask that was painted from, what was painted, and the painting that the mask came from."""
    by_mask: dict[tuple[str, str], list[tuple[Path, Mapping[str, Any]]]] = {}
    for path, recipe in _samples(workspace):
        by_mask.setdefault((recipe["mask_name"], recipe["mask_sha256"]), []).append((path, recipe))
    if not by_mask:
        return ""
    classes = workspace.settings().classes
    rows = []
    for (name, digest), made in list(by_mask.items())[:ROWS]:
        cells, key = _asked_for(workspace, name, digest, classes)
        for path, recipe in made[:3]:
            cells.append((f"painted: seed {recipe['seed']}, number {recipe['number']}", _pixels(path)))
        if key in index:
            original = load_painting(index[key].file(workspace))
            cells.append(("the painting that the mask came from", original))
        rows.append(_row(cells, 640))
    text = "Each row: the mask that was asked for, and what the generator painted from it."
    return section("New paintings", text, legend(classes), *rows)


def every_step(workspace: Workspace, index: Mapping[str, Painting]) -> str:
    """What each step took and found."""
    rows = []
    for name, step in STEPS.items():
        figures = workspace.report(name)
        seconds = _seconds(workspace, name)
        if figures is not None or seconds is not None:
            shown = ", ".join(f"{label} {value}" for label, value in readable(figures or {}))
            time = duration(seconds).replace(" ", "\N{NO-BREAK SPACE}") if seconds is not None else ""
            rows.append((step, time, shown))
    if not rows:
        return ""
    return section("Every step", "What each took and found.", table(("step", "time", "figures"), rows))


def label_quality(workspace: Workspace, index: Mapping[str, Painting]) -> str:
    """IoU, precision and recall of each class."""
    found = workspace.report("segment-evaluate") or {}
    if not found.get("classes"):
        return ""
    how = {
        "truth": "the model's labels against the true masks, on paintings that nobody annotated",
        "folds": "cross-validation on the hand masks: each was labelled by a model that had not seen it",
    }.get(str(found.get("method")), "")
    rows = [(one["name"], one["iou"], one["precision"], one["recall"]) for one in found["classes"]]
    text = f"Measured by {how} ({found.get('paintings')} paintings). A dash: it does not occur."
    parts = table(("class", "IoU", "precision", "recall"), rows)
    return section("How good the labels are", text if how else "", parts)


def agreement(workspace: Workspace, index: Mapping[str, Painting]) -> str:
    """How far several annotators of the same paintings agree, class by class."""
    keys = [key for key in workspace.keys_with_mask("hand") if key in index]
    found = annotators_agreement(workspace, keys)
    if found is None:
        return ""
    rows = [(one.name, one.iou, one.kappa) for one in found.classes]
    rows.append(("all classes", None, found.kappa))
    text = (
        f"{found.paintings} paintings were annotated by several people: what each pair of them gave the same "
        "pixels. Kappa is 1 where they always agree, 0 where they agree as often as by chance."
    )
    return section("How far the annotators agree", text, table(("class", "IoU", "Cohen's kappa"), rows))


def hand_masks(workspace: Workspace, index: Mapping[str, Painting]) -> str:
    rows = _mask_rows(workspace, "hand", index, workspace.keys_with_mask("hand"))
    text = "Drawn in Label Studio, pulled, and resolved to one class map: painting, mask, overlay."
    return section("Annotated paintings", text, legend(workspace.settings().classes), *rows) if rows else ""


def pseudo_masks(workspace: Workspace, index: Mapping[str, Painting]) -> str:
    hand = set(workspace.keys_with_mask("hand"))
    keys = [key for key in workspace.keys_with_mask("pseudo") if key not in hand]
    rows = _mask_rows(workspace, "pseudo", index, keys)
    text = "Labelled by the DeepLabV3: painting, mask, overlay, and how sure it is (white is sure)."
    return section("Labelled by the model", text, legend(workspace.settings().classes), *rows) if rows else ""


def training(workspace: Workspace, index: Mapping[str, Painting]) -> str:
    """What each training brought down, and the pictures that it left."""
    parts = []
    for name, step in STEPS.items():
        history = (workspace.report(name) or {}).get("history")
        if isinstance(history, list) and len(history) > 1:
            figure, text = next(
                ((name, text) for name, text in CURVES.items() if name in history[0]), ("loss", "loss")
            )
            points = [(float(one["step"]), float(one[figure])) for one in history if figure in one]
            parts.append(curve(f"{step}: {text} over the steps", points))
        path = workspace.reports / f"{name}.png"
        if name in GRIDS and path.exists():
            parts.append(pictures((GRIDS[name], shrink(_pixels(path), 1280))))
    return section("How training went", "", *parts) if parts else ""


def _mask_rows(
    workspace: Workspace, kind: str, index: Mapping[str, Painting], keys: Sequence[str]
) -> list[str]:
    """Up to ROWS paintings with their masks, evenly spread over the list."""
    classes = workspace.settings().classes
    shown = [key for key in keys if key in index]
    chosen = [shown[n * len(shown) // ROWS] for n in range(ROWS)] if len(shown) > ROWS else shown
    rows = []
    for key in chosen:
        painting = load_painting(index[key].file(workspace))
        ids = read_mask(workspace.mask(kind, key), Encoding.RAW)
        cells = [(key, painting), ("mask", colour(ids, classes))]
        if painting.shape[:2] == ids.shape:  # a painting may have been changed since
            cells.append(("overlay", overlay(painting, ids, classes)))
        confidence = workspace.mask("confidence", key)
        if kind == "pseudo" and confidence.exists():
            cells.append(("confidence", _pixels(confidence)))
        rows.append(_row(cells, 420))
    return rows


def _row(cells: Sequence[tuple[str, NDArray[np.uint8]]], side: int) -> str:
    return pictures(*((text, shrink(pixels, side)) for text, pixels in cells), wrap=True)


def _samples(workspace: Workspace) -> list[tuple[Path, Mapping[str, Any]]]:
    """The paintings in samples/ with their recipes; files without one are not ours."""
    found: list[tuple[Path, Mapping[str, Any]]] = []
    for path in sorted(workspace.samples.glob("*.png")):
        beside = path.with_suffix(".json")
        recipe = read_json(beside) if beside.exists() else None
        if isinstance(recipe, dict) and {"mask_name", "mask_sha256", "seed", "number"} <= recipe.keys():
            found.append((path, recipe))
    return found


def _asked_for(
    workspace: Workspace, name: str, digest: str, classes: ClassTable
) -> tuple[list[tuple[str, NDArray[np.uint8]]], str]:
    """The mask that a recipe names, with its caption, if it is still there; and its key, if it has one."""
    for key in workspace.keys_with_mask("shifted"):
        if key.rsplit("/", 1)[-1] == name:
            ids = read_mask(workspace.mask("shifted", key), Encoding.SHIFTED)
            if mask_digest(ids) == digest:
                return [(f"asked for: the mask of {key}", colour(unshift(ids), classes))], key
    path = workspace.composition(name)
    if path.is_file() and mask_encoding(path) is Encoding.RAW:
        raw = read_mask(path, Encoding.RAW)
        if mask_digest(shift(raw, n_labels=256)) == digest:
            made_of = mask_texts(path).get(MADE_OF, name)
            return [(f"asked for: {made_of}", colour(raw, classes))], ""
    return [], ""


def _seconds(workspace: Workspace, name: str) -> float | None:
    """How long a step took: as the demo timed it, else as the step itself did."""
    timed = (workspace.report("demo") or {}).get("steps", {}).get(name, {}).get("seconds")
    own = (workspace.report(name) or {}).get("seconds")
    found = own if timed is None else timed
    return float(found) if isinstance(found, int | float) else None


def _pixels(path: Path) -> NDArray[np.uint8]:
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"))
    except OSError as error:
        raise UserError(f"{path}: damaged ({error}); delete it and run the step that wrote it") from error
