"""The report of a whole workspace: every step's figures, the masks, and the paintings that were made."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from annotate.classes import ClassTable
from annotate.files import write_whole
from annotate.masks import Encoding, read_mask, unshift
from annotate.page import (
    cards,
    colour,
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
from annotate.workspace import Workspace

ROWS = 12  # paintings shown of each kind
STEPS = {  # report -> what people call the step
    "demo-paint": "Paint the scenes",
    "annotate-push": "Push to Label Studio",
    "demo-annotate": "Annotate (stand-in)",
    "annotate-pull": "Pull the masks",
    "segment-train": "Train the DeepLabV3",
    "segment-pseudo-label": "Pseudo-label the rest",
    "segment-evaluate": "Evaluate",
    "segment-convert": "Convert to shifted masks",
    "generate-train-painting": "Train the painting codes",
    "generate-train-mask": "Train the mask codes",
    "generate-train-transformer": "Train the transformer",
    "generate-sample": "Sample",
}
GRIDS = {  # pictures that training leaves in reports/
    "generate-train-painting": "Scenes above, what the painting codes make of them below.",
    "generate-train-mask": "Masks above, what the mask codes make of them below.",
}


def build_report(
    workspace: Workspace, title: str = "From paintings to new paintings", note: str = ""
) -> Path:
    """Write `reports/index.html`, one self-contained file; parts that the workspace does not have are left out.

    Args:
        title: of the page.
        note: a line of plain text below it, such as who annotated.
    """
    parts: tuple[Callable[[Workspace], str], ...] = (
        _overview,
        _samples,
        _steps,
        _quality,
        _hand_masks,
        _pseudo_masks,
        _training,
    )
    sections = []
    with progress("Writing the report", len(parts)) as advance:
        for part in parts:
            sections.append(part(workspace))
            advance()
    path = workspace.reports / "index.html"
    write_whole(path, page(title, note, [one for one in sections if one]))
    return path


def _overview(workspace: Workspace) -> str:
    index = read_index(workspace) if workspace.index_file.exists() else {}
    figures = {
        "paintings": str(len(index)),
        "annotated by hand": str(len(workspace.keys_with_mask("hand"))),
        "labelled by the model": str(len(workspace.keys_with_mask("pseudo"))),
        "shifted masks": str(len(workspace.keys_with_mask("shifted"))),
        "new paintings": str(len(_sample_recipes(workspace))),
    }
    evaluation = workspace.report("segment-evaluate") or {}
    if "miou" in evaluation:
        figures["mIoU of the labels"] = f"{evaluation['miou']:.3f}"
    seconds = [one["seconds"] for one in _times(workspace).values()]
    if seconds:
        figures["all steps together"] = duration(sum(seconds))
    flow = workspace.reports / "flow.png"
    picture = image(_pixels(flow), "from paintings to a new painting, step by step") if flow.exists() else ""
    return section("At a glance", "", picture, cards(figures))


def _samples(workspace: Workspace) -> str:
    recipes = _sample_recipes(workspace)
    if not recipes:
        return ""
    classes = workspace.settings().classes
    index = read_index(workspace)
    by_mask: dict[str, list[tuple[Path, dict[str, Any]]]] = {}
    for path, recipe in recipes:
        by_mask.setdefault(str(recipe["mask"]), []).append((path, recipe))
    rows = []
    for mask, made in list(by_mask.items())[:ROWS]:
        cells = []
        ids = _composition(workspace, mask)
        if ids is not None:
            cells.append((f"asked for: {made[0][1]['mask_name']}", colour(ids, classes)))
        cells += [
            (f"painted, seed {recipe['seed']}, number {recipe['number']}", _pixels(path))
            for path, recipe in made[:3]
        ]
        if mask in index:
            cells.append(("the painting that the mask came from", load_painting(index[mask].file(workspace))))
        rows.append(pictures(*((text, shrink(one)) for text, one in cells), wrap=True))
    text = "Each row: the mask that was asked for, and what the generator painted from it."
    return section("New paintings", text, legend(classes), *rows)


def _steps(workspace: Workspace) -> str:
    times = _times(workspace)
    rows = []
    for name, step in STEPS.items():
        figures = workspace.report(name) or {}
        shown = ", ".join(f"{label.replace('_', ' ')} {value}" for label, value in _plain(figures))
        if shown or name in times:
            seconds = times.get(name, {}).get("seconds")
            rows.append((step, duration(seconds) if seconds is not None else "", shown))
    return (
        section(
            "Every step", "What each step took and what it found.", table(("step", "time", "figures"), rows)
        )
        if rows
        else ""
    )


def _quality(workspace: Workspace) -> str:
    found = workspace.report("segment-evaluate")
    if not found:
        return ""
    known = found["method"] == "truth"
    against = "true masks, on paintings that nobody annotated" if known else "hand masks, by cross-validation"
    rows = [(one["name"], one["iou"], one["precision"], one["recall"]) for one in found["classes"]]
    figures = {"mIoU": f"{found['miou']:.3f}", "pixel accuracy": f"{found['pixel_accuracy']:.3f}"}
    scores = table(("class", "IoU", "precision", "recall"), rows)
    return section("How good the labels are", f"Against the {against}.", cards(figures), scores)


def _hand_masks(workspace: Workspace) -> str:
    rows = _mask_rows(workspace, "hand", workspace.keys_with_mask("hand"))
    text = "Drawn in Label Studio, pulled, and resolved to one class map: painting, mask, overlay."
    return section("Annotated paintings", text, legend(workspace.settings().classes), *rows) if rows else ""


def _pseudo_masks(workspace: Workspace) -> str:
    hand = set(workspace.keys_with_mask("hand"))
    rows = _mask_rows(
        workspace, "pseudo", [key for key in workspace.keys_with_mask("pseudo") if key not in hand]
    )
    text = "Labelled by the DeepLabV3: painting, mask, overlay, and how sure it is (white is sure)."
    return section("Labelled by the model", text, legend(workspace.settings().classes), *rows) if rows else ""


def _training(workspace: Workspace) -> str:
    rows = []
    for name, text in GRIDS.items():
        path = workspace.reports / f"{name}.png"
        if path.exists():
            rows.append(pictures((text, _pixels(path))))
    return section("What the codebooks learnt", "", *rows) if rows else ""


def _mask_rows(workspace: Workspace, kind: str, keys: list[str]) -> list[str]:
    classes = workspace.settings().classes
    index = read_index(workspace) if workspace.index_file.exists() else {}
    shown = [key for key in keys if key in index]
    step = max(1, len(shown) // ROWS)
    return [_mask_row(workspace, kind, index[key], classes) for key in shown[::step][:ROWS]]


def _mask_row(workspace: Workspace, kind: str, one: Painting, classes: ClassTable) -> str:
    key, painting = one.key, load_painting(one.file(workspace))
    ids = read_mask(workspace.mask(kind, key), Encoding.RAW)
    cells = [(key, painting), ("mask", colour(ids, classes)), ("overlay", overlay(painting, ids, classes))]
    confidence = workspace.mask("confidence", key)
    if kind == "pseudo" and confidence.exists():
        cells.append(("confidence", _pixels(confidence)))
    return pictures(*((text, shrink(pixels, 420)) for text, pixels in cells), wrap=True)


def _sample_recipes(workspace: Workspace) -> list[tuple[Path, dict[str, Any]]]:
    """The paintings in samples/ with their recipes, by name; files without one are not ours."""
    found = []
    for path in sorted(workspace.samples.glob("*.png")):
        with Image.open(path) as image:
            recipe = image.info.get("recipe")
        if recipe:
            found.append((path, json.loads(recipe)))
    return found


def _composition(workspace: Workspace, mask: str) -> NDArray[np.uint8] | None:
    """Raw ids of the mask that a recipe names: a key, or a file that may be gone."""
    if mask in workspace.keys_with_mask("shifted"):
        return unshift(read_mask(workspace.mask("shifted", mask), Encoding.SHIFTED))
    path = Path(mask)
    return read_mask(path, Encoding.RAW, foreign=Encoding.RAW) if path.is_file() else None


def _times(workspace: Workspace) -> Mapping[str, Any]:
    steps: Mapping[str, Any] = (workspace.report("demo") or {}).get("steps", {})
    return steps


def _pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB" if image.mode not in ("L", "RGB") else image.mode))


def _plain(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The figures that fit in a line: numbers, short words and flags."""
    plain = []
    for name, value in figures.items():
        if isinstance(value, bool) or (isinstance(value, str) and len(value) <= 24 and "/" not in value):
            plain.append((name, str(value)))
        elif isinstance(value, int):
            plain.append((name, f"{value:,}"))
        elif isinstance(value, float):
            plain.append((name, f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"))
    return plain
