"""Label Studio regions to a class map, and a class map to regions."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from annotate.brush import decode, encode
from annotate.classes import LONGEST_NAME, UNLABELLED, ClassTable
from annotate.shapes import Patch, fill_ellipse, fill_polygon, outlines

LABEL, BRUSH, POLYGON, IMAGE = "label", "brush", "polygon", "image"  # names in the labelling interface

MAX_POINTS = 100_000  # of one polygon; a person draws some hundred
MAX_REGIONS = 5_000  # of one annotation
MAX_PAINTED = 500  # times the image's pixels that all regions together may cover: bounds the time
_MAX_PERCENT = 10_000.0  # how far outside the image a coordinate may lie
_MIN_PERCENT = 1e-6  # of a side; smaller than any pixel, and large enough to divide by
_SHAPES = ("brush", "polygon", "rectangle", "ellipse")
# Answers about a region or the whole task, which draw nothing.
_NOT_DRAWN = (
    "choices",
    "textarea",
    "rating",
    "number",
    "taxonomy",
    "datetime",
    "relation",
    "ranker",
    "labels",
)


@dataclass(frozen=True)
class ClassMapResult:
    """What one annotation shows."""

    ids: NDArray[np.uint8]  # (H, W) raw COCO-Stuff ids, 255 = unlabelled
    unknown: tuple[str, ...]  # labels that are no class of the table; their regions are left out
    problems: tuple[str, ...]  # one line for each other region that is left out


@dataclass(frozen=True)
class _Region:
    """One drawn region and its label; the shape is not looked at yet."""

    name: str  # for messages
    shape: str  # one of _SHAPES
    value: Mapping[str, Any]
    label: str
    drawn_on: tuple[int, int]  # (H, W) of the image that the annotator saw


def class_map(
    result: Sequence[Mapping[str, Any]], size: tuple[int, int], classes: ClassTable
) -> ClassMapResult:
    """Draw the regions of one annotation into a class map.

    Brush, polygon, rectangle and ellipse regions count, with the label in the region itself
    (`brushlabels`) or in a `labels` result of the same id. Where regions overlap, the class of the higher
    order is seen, whatever was drawn last.

    Args:
        result: the annotation's `result`, as the server gives it: nothing in it is trusted.
        size: (H, W) of the painting on disk. Regions of an image that was scaled for the server fit too.
        classes: the workspace's classes.

    Raises:
        ValueError: a damaged region (the line names it): wrong types, NaN, a brush stream that does not fit,
            another image's size, or an image that was turned in the editor.
    """
    regions, problems = _read_regions(result, size)
    known = [region for region in regions if region.label in classes.by_name]
    known.sort(key=lambda region: classes.by_name[region.label].order)
    ids = np.full(size, UNLABELLED, np.uint8)
    painted = 0
    for region in known:
        try:
            patch = _draw(region, size)
        except ValueError as error:
            raise ValueError(f"{region.name}: {error}") from error
        if patch is None:
            problems.append(f"{region.name}: a {region.shape} without an area")
            continue
        painted += patch.mask.size
        if region.shape == "polygon":  # each edge is looked at in each row
            painted += len(region.value["points"]) * patch.mask.shape[0]
        if painted > MAX_PAINTED * ids.size:
            raise ValueError(f"{region.name}: with it the regions cover the image {MAX_PAINTED} times")
        np.copyto(ids[patch.rows, patch.columns], classes.by_name[region.label].id, where=patch.mask)
    unknown = sorted({region.label for region in regions} - set(classes.by_name))
    return ClassMapResult(ids, tuple(unknown), tuple(problems))


def brush_region(mask: NDArray[np.bool_], label: str) -> dict[str, Any]:
    """One brush region that shows exactly this (H, W) mask."""
    rle = encode(mask)
    return _region(BRUSH, label, (mask.shape[0], mask.shape[1]), bytes(rle), {"format": "rle", "rle": rle})


def polygon_regions(
    mask: NDArray[np.bool_], label: str, tolerance: float = 1.0, smallest: float = 0.0
) -> list[dict[str, Any]]:
    """Polygon regions that show a mask to within `tolerance` pixels, one for each connected part.

    Args:
        mask: (H, W). A hole stays a hole: see `outlines`. `class_map_regions` does without most of them.
        label: the class.
        tolerance: in pixels.
        smallest: parts and holes of fewer pixels are left out.
    """
    size = mask.shape[0], mask.shape[1]
    regions = []
    for ring in outlines(mask, tolerance, smallest):
        points = np.round(ring / (size[1], size[0]) * 100, 5).tolist()
        regions.append(_region(POLYGON, label, size, ring.tobytes(), {"points": points, "closed": True}))
    return regions


def class_map_regions(
    ids: NDArray[np.uint8],
    classes: ClassTable,
    form: Literal["brush", "polygon"] = "brush",
    tolerance: float = 1.0,
    smallest: float = 0.0,
) -> list[dict[str, Any]]:
    """The regions of a whole class map, such that `class_map` gives it back.

    As polygons, each class goes on below its neighbours of higher order, by a few pixels at an edge and all
    through a hole that only they fill: so the overlap order makes the holes, a person who moves an outline
    uncovers no gap, and simplified edges leave none.

    Args:
        ids: (H, W) raw ids, 255 = unlabelled.
        classes: the workspace's classes; ids that are not among them are left out.
        form: one brush region a class, or one polygon for each connected part.
        tolerance, smallest: as in `polygon_regions`.
    """
    regions = []
    for one in sorted(classes.classes, key=lambda entry: entry.order):
        mask = ids == one.id
        if not mask.any():
            continue
        if form == "brush":
            regions.append(brush_region(mask, one.name))
            continue
        above = np.isin(ids, [other.id for other in classes.classes if other.order > one.order])
        regions.extend(polygon_regions(_run_under(mask, above, tolerance), one.name, tolerance, smallest))
    return regions


def _run_under(mask: NDArray[np.bool_], above: NDArray[np.bool_], tolerance: float) -> NDArray[np.bool_]:
    """The mask, and what lies below `above` in its holes and along its edges."""
    from skimage.measure import label
    from skimage.morphology import isotropic_dilation

    outside = label(np.pad(~mask, 1, constant_values=True), connectivity=2)[1:-1, 1:-1]
    shown = np.unique(outside[~mask & ~above])  # parts of the outside that something else is seen in
    hidden = ~np.isin(outside, np.append(shown, 1)) & ~mask  # 1 is the part around the image
    reach = 2 * math.ceil(tolerance) + 1
    wider: NDArray[np.bool_] = isotropic_dilation(mask, reach)
    return mask | hidden | (wider & above)


def _region(
    control: str, label: str, size: tuple[int, int], content: bytes, value: dict[str, Any]
) -> dict[str, Any]:
    kind = f"{control}labels"
    return {
        # the same region gets the same id, so that a second push can be compared with the first
        "id": hashlib.sha256(f"{kind} {label} ".encode() + content).hexdigest()[:10],
        "from_name": control,
        "to_name": IMAGE,
        "type": kind,
        "original_width": size[1],
        "original_height": size[0],
        "image_rotation": 0,
        "value": {**value, kind: [label]},
    }


def _read_regions(
    result: Sequence[Mapping[str, Any]], size: tuple[int, int]
) -> tuple[list[_Region], list[str]]:
    """The labelled regions, and a line for each one that cannot be drawn."""
    if not isinstance(result, (list, tuple)) or not all(isinstance(item, Mapping) for item in result):
        raise ValueError("the annotation's result is not a list of regions")
    if len(result) > MAX_REGIONS:
        raise ValueError(f"{len(result)} regions; {MAX_REGIONS} are the most")
    labels_by_id: dict[str, list[str]] = {}
    for item in result:
        if item.get("type") == "labels":
            labels_by_id[str(item.get("id"))] = _labels(item, "labels")
    bare = set(labels_by_id)  # labels whose region is still to come
    regions, problems = [], []
    for item in result:
        name, key, kind = _name(item), str(item.get("id")), str(item.get("type")).lower()
        shape = kind.removesuffix("labels")
        if shape not in _SHAPES:
            if kind not in _NOT_DRAWN:
                problems.append(f"{name}: regions of type {kind[:40]!r} are not drawn")
            continue
        bare.discard(key)
        labels = _labels(item, kind) or labels_by_id.get(key, [])
        if not labels:
            problems.append(f"{name}: a {shape} without a label")
        value = item.get("value")
        if not isinstance(value, Mapping):
            raise ValueError(f"{name}: no value")
        drawn_on = _drawn_on(item, name, size)
        regions += [_Region(name, shape, value, label, drawn_on) for label in labels]
    problems += [f"region {key[:40]!r}: a label without a region" for key in sorted(bare)]
    return regions, problems


def _name(item: Mapping[str, Any]) -> str:
    return f"region {str(item.get('id'))[:40]!r}"


def _labels(item: Mapping[str, Any], key: str) -> list[str]:
    value = item.get("value")
    labels = value.get(key) if isinstance(value, Mapping) else None
    if labels is None:
        return []
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise ValueError(f"{_name(item)}: its {key} is not a list of names")
    return [label[:LONGEST_NAME] for label in labels]


def _drawn_on(item: Mapping[str, Any], name: str, size: tuple[int, int]) -> tuple[int, int]:
    """(H, W) of the image that the region was drawn on; the painting's own where it does not say."""
    if item.get("image_rotation", 0) not in (0, None):
        raise ValueError(f"{name}: the image was turned in the editor; turn it back there and submit again")
    height = item.get("original_height", size[0])
    width = item.get("original_width", size[1])
    if (
        type(height) is not int
        or type(width) is not int
        or not 0 < min(height, width) <= max(height, width) < 10**6
    ):
        raise ValueError(f"{name}: original size {str(height)[:20]} x {str(width)[:20]}")
    # both sides of a scaled image are rounded to whole pixels
    off = abs(height - width * size[0] / size[1])
    if height * width > 4 * size[0] * size[1] or off > 1 + size[0] / size[1]:
        raise ValueError(
            f"{name}: drawn on an image of {height} x {width} (H x W), the painting has {size[0]} x {size[1]}"
        )
    return height, width


def _draw(region: _Region, size: tuple[int, int]) -> Patch | None:
    """The region's pixels; None where it has no area."""
    if region.shape == "brush":
        return _draw_brush(region, size)
    scale = size[1] / region.drawn_on[1], size[0] / region.drawn_on[0]
    if region.shape == "polygon":
        points = _points(region.value)
        return fill_polygon(points / 100 * (size[1], size[0]), size) if len(points) >= 3 else None
    x, y, turn = (
        _number(region.value, key, 0.0 if key == "rotation" else None) for key in ("x", "y", "rotation")
    )
    keys = ("width", "height") if region.shape == "rectangle" else ("radiusX", "radiusY")
    along, across = (_number(region.value, key) for key in keys)
    if min(along, across) < _MIN_PERCENT:
        return None
    # percent of the width and height that the annotator saw, in whose pixels angles are true
    height, width = region.drawn_on[0] / 100, region.drawn_on[1] / 100
    x, y, along, across = x * width, y * height, along * width, across * height
    if region.shape == "ellipse":
        return fill_ellipse((x, y), (along, across), turn, scale, size)
    cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    corners = [(x, y), (x + along * cos, y + along * sin)]  # turned clockwise about its first corner
    corners += [
        (corners[1][0] - across * sin, corners[1][1] + across * cos),
        (x - across * sin, y + across * cos),
    ]
    return fill_polygon(np.array(corners) * scale, size)


def _draw_brush(region: _Region, size: tuple[int, int]) -> Patch:
    if region.value.get("format", "rle") != "rle" or "rle" not in region.value:
        raise ValueError("a brush region without RLE")
    alpha = decode(region.value["rle"], region.drawn_on)
    if region.drawn_on != size:
        scaled = Image.fromarray(alpha).resize((size[1], size[0]), Image.Resampling.BILINEAR)
        alpha = np.asarray(scaled)
    return Patch(slice(0, size[0]), slice(0, size[1]), alpha > 127)


def _number(value: Mapping[str, Any], key: str, default: float | None = None) -> float:
    number = value.get(key, default)
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not abs(number) <= _MAX_PERCENT:
        raise ValueError(f"{key} is {str(number)[:20]}, not a place on the image")
    return float(number)


def _points(value: Mapping[str, Any]) -> NDArray[np.float64]:
    """(N, 2) x, y in percent."""
    pairs = value.get("points")
    if not isinstance(pairs, (list, tuple)):
        raise ValueError("a polygon without points")
    if len(pairs) > MAX_POINTS:
        raise ValueError(f"a polygon of {len(pairs)} points; {MAX_POINTS} are the most")
    if not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
        raise ValueError("a polygon whose points are not pairs of numbers")
    numbers = [number for pair in pairs for number in pair]
    if not set(map(type, numbers)) <= {int, float} or not all(
        abs(number) <= _MAX_PERCENT for number in numbers
    ):
        raise ValueError("a polygon with a point that is not a place on the image")
    return np.array(numbers, np.float64).reshape(-1, 2)
