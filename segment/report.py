"""`tool segment report`: how good the labels are, in one HTML file that a phone shows too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annotate.classes import ClassTable
from annotate.errors import UserError
from annotate.files import write_whole
from annotate.masks import Encoding, read_mask
from annotate.page import cards, colour, legend, overlay, page, pictures, section, shrink, table
from annotate.paintings import Painting, load_painting, read_index
from annotate.progress import note, progress
from annotate.workspace import Workspace
from segment.label import REPORT as LABELLED
from segment.label import read_confidence

SHOWN = 6  # paintings of each end of the ranking
SIDE = 360  # pixels of a picture's longer side
NAME = "segment.html"


def write_report(workspace: Workspace) -> Path:
    """Write reports/segment.html from the last `evaluate` and `pseudo-label`.

    Raises:
        UserError: neither has run.
    """
    found = workspace.report("segment-evaluate") or {}
    labelled = workspace.report(LABELLED) or {}
    if not found and not labelled:
        raise UserError(
            f"{workspace.reports}: nothing to report; run `tool segment pseudo-label` and `tool segment evaluate`"
        )
    classes = workspace.settings().classes
    parts = [_at_a_glance(found, labelled)]
    if found.get("classes"):
        parts += [_classes(found), _confusion(found), _reliability(found)]
    ranking = found.get("ranking") or labelled.get("ranking") or []
    parts += _ends(workspace, classes, [str(key) for key in ranking])
    path = workspace.reports / NAME
    intro = "What the model labels, how good that is, and which paintings a person should look at first."
    write_whole(path, page("The labels and how far to trust them", intro, [one for one in parts if one]))
    return path


def _at_a_glance(found: Mapping[str, Any], labelled: Mapping[str, Any]) -> str:
    figures = {}
    told = found.get("estimate")
    if told:
        figures["mIoU expected of the pseudo-labels"] = _percent(told["miou"]["value"])
        figures["of their pixels right, expected"] = _percent(told["pixel_accuracy"]["value"])
    how = "cross-validated" if found.get("method") == "folds" else "against the truth"
    if found:
        figures[f"mIoU, {how}"] = _percent(found["miou"])
        figures[f"pixel accuracy, {how}"] = _percent(found["pixel_accuracy"])
    if labelled:
        figures["labelled by the model"] = str(labelled["labelled"] + labelled["there"])
        figures["annotated by hand"] = str(labelled["hand"])
        figures["of the pixels left unlabelled"] = _percent(labelled["unlabelled"])
    text = ""
    if told:
        low, high = _percent(told["miou"]["low"]), _percent(told["miou"]["high"])
        text = (
            f"The truth about the pseudo-labels should lie between {low} and {high} mIoU in nine cases of ten. "
            "Confidence alone promises too much: these figures are corrected by what it was worth on hand masks "
            "that the model had not seen."
        )
    return section("At a glance", text, cards(figures))


def _classes(found: Mapping[str, Any]) -> str:
    """The table of the classes: scores, thresholds, and the estimate for the pseudo-labels."""
    estimates = dict((found.get("estimate") or {}).get("classes", []))
    thresholds = found.get("thresholds") or {}
    headers = ["class", "IoU", "precision", "recall", "pixels"]
    headers += ["threshold"] if thresholds else []
    headers += ["IoU expected of pseudo-labels"] if estimates else []
    rows = []
    for one in found["classes"]:
        row = [one["name"], one["iou"], one["precision"], one["recall"], one["pixels"]]
        row += [thresholds.get(one["name"])] if thresholds else []
        if estimates:
            told = estimates.get(one["name"])
            row.append(
                f"{_percent(told['value'])} ({100 * told['low']:.0f} to {100 * told['high']:.0f})"
                if told
                else None
            )
        rows.append(row)
    how = (
        "Cross-validated: each hand mask was labelled by a model that had not seen it"
        if found.get("method") == "folds"
        else "The pseudo masks against true masks"
    )
    text = f"{how} ({found.get('paintings')} paintings). A dash: it does not occur."
    if thresholds:
        text += " A pixel less sure than its class's threshold stays unlabelled."
    return section("Class by class", text, table(headers, rows))


def _confusion(found: Mapping[str, Any]) -> str:
    """What each true class was taken for, as shares of its row; the darker, the more."""
    matrix = np.array(found.get("confusion", []), float)
    names = [str(one["name"]) for one in found["classes"]]  # as they were then
    if matrix.shape != (len(names), len(names) + 1):
        return ""
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    columns = [*names, "unlabelled"] if matrix[:, -1].any() else names
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = []
    for k, name in enumerate(names):
        cells = []
        for j, _ in enumerate(columns):
            share = shares[k, j]
            tint = "var(--mark)" if k != j else "#4f8a5b"
            style = f"background:color-mix(in srgb, {tint} {100 * share:.0f}%, transparent)"
            cells.append(f'<td class="n" style="{style}">{100 * share:.0f}</td>')
        body.append(f"<tr><th>{escape(name)}</th>{''.join(cells)}</tr>")
    grid = f"<table><thead><tr><th>true</th>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    text = "Of 100 pixels of the class on the left, so many were labelled as the class above."
    return section("What is taken for what", text, f'<div class="scroll">{grid}</div>')


def _reliability(found: Mapping[str, Any]) -> str:
    """Share that is right over confidence; on the dashed line, confidence could be taken at its word."""
    points = found.get("reliability") or []
    if not points:
        return ""
    place = [(40 + 300 * sure, 320 - 300 * right, share) for sure, right, share in points]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in place)
    dots = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{2 + 10 * share**0.5:.1f}" fill="var(--mark)" fill-opacity="0.55"/>'
        for x, y, share in place
    )
    marks = "".join(
        f'<text x="{40 + 3 * n}" y="340" text-anchor="middle">{n}</text><text x="32" y="{324 - 3 * n}" '
        f'text-anchor="end">{n}</text>'
        for n in (0, 25, 50, 75, 100)
    )
    label = "; ".join(f"{100 * sure:.0f} sure: {100 * right:.0f} right" for sure, right, _ in points)
    drawing = (
        f'<svg viewBox="0 0 360 362" role="img" aria-label="{escape(label)}" '
        'style="width:100%;max-width:420px;font:11px system-ui" fill="var(--soft)">'
        '<rect x="40" y="20" width="300" height="300" fill="none" stroke="var(--line)"/>'
        '<line x1="40" y1="320" x2="340" y2="20" stroke="var(--soft)" stroke-dasharray="4 4"/>'
        f'<polyline points="{line}" fill="none" stroke="var(--mark)" stroke-width="2"/>{dots}{marks}'
        '<text x="190" y="358" text-anchor="middle">confidence, %</text>'
        '<text x="12" y="170" text-anchor="middle" transform="rotate(-90 12 170)">right, %</text></svg>'
    )
    text = (
        "How often pixels of a confidence are right; a larger dot stands for more pixels. Below the dashed line "
        "the model is surer than it should be."
    )
    return section("What confidence is worth", text, drawing)


def _ends(workspace: Workspace, classes: ClassTable, ranking: Sequence[str]) -> list[str]:
    """The paintings that the model is least and most sure of."""
    index = read_index(workspace)
    there = [key for key in ranking if key in index and workspace.mask("pseudo", key).exists()]
    worst, best = there[:SHOWN], there[SHOWN:][::-1][:SHOWN]
    parts = []
    with progress("Drawing the paintings", len(worst) + len(best)) as advance:
        for heading, text, keys in (
            (
                "The least sure",
                "`tool annotate review` sends these back to be corrected, in this order.",
                worst,
            ),
            ("The surest", "What the model does best.", best),
        ):
            rows = []
            for key in keys:
                try:
                    rows.append(_row(workspace, index[key], classes))
                except UserError as error:
                    note(f"left out: {error.message}")
                advance()
            if rows:
                parts.append(section(heading, text, legend(classes), *rows))
    return parts


def _row(workspace: Workspace, painting: Painting, classes: ClassTable) -> str:
    """Painting | mask | confidence | overlay."""
    ids = read_mask(workspace.mask("pseudo", painting.key), Encoding.RAW)
    levels = read_confidence(workspace, painting.key, ids.shape)
    pixels = load_painting(painting.file(workspace))
    cells: list[tuple[str, NDArray[np.uint8]]] = [
        (painting.key, shrink(pixels, SIDE)),
        ("mask", _shrink_mask(colour(ids, classes))),
        (
            f"confidence, mean {levels.mean() / 255:.2f} (white: sure)",
            shrink(np.stack([levels] * 3, -1), SIDE),
        ),
    ]
    if pixels.shape[:2] == ids.shape:  # a painting may have been changed since
        cells.append(("overlay", shrink(overlay(pixels, ids, classes), SIDE)))
    return pictures(*cells, wrap=True)


def _shrink_mask(coloured: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Every n-th pixel: colours stay those of the legend, and few."""
    step = -(-max(coloured.shape[:2]) // SIDE)
    return np.ascontiguousarray(coloured[::step, ::step])


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
