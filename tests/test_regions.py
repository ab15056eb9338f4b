"""Regions to class maps and back: reference strokes, overlaps by hand, turned shapes, damage."""

from __future__ import annotations

import copy
import json
import math
import tracemalloc
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from annotate.brush import encode
from annotate.classes import ClassTable
from annotate.regions import brush_region, class_map, class_map_regions, polygon_regions

CLASSES = ClassTable()
ID = {one.name: one.id for one in CLASSES.classes}
GOLDEN = json.loads((Path(__file__).parent / "golden" / "browser-annotation.json").read_text())
LETTERS = {"r": "road", "w": "water", "t": "trees", "s": "sky", "b": "buildings", "l": "street light"}


def table(text: str) -> NDArray[np.uint8]:
    """A class map drawn in letters; a dot is unlabelled."""
    rows = [[ID[LETTERS[sign]] if sign != "." else 255 for sign in line] for line in text.split()]
    return np.array(rows, np.uint8)


def item(kind: str, value: dict[str, Any], size: tuple[int, int] = (4, 4), **more: Any) -> dict[str, Any]:
    """A region as the server gives it."""
    region = {
        "id": "r1",
        "from_name": "x",
        "to_name": "image",
        "type": kind,
        "value": value,
        "image_rotation": 0,
    }
    return {**region, "original_height": size[0], "original_width": size[1], **more}


def box(
    label: str, left: float, top: float, right: float, bottom: float, size: tuple[int, int]
) -> dict[str, Any]:
    """A polygon region with these corners in pixels."""
    corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    points = [[x / size[1] * 100, y / size[0] * 100] for x, y in corners]
    return item("polygonlabels", {"points": points, "closed": True, "polygonlabels": [label]}, size)


def stroke(label: str, mask: NDArray[np.bool_]) -> dict[str, Any]:
    return brush_region(mask, label)


def test_what_the_browser_drew() -> None:
    found = class_map(GOLDEN["result"], (800, 1000), CLASSES)
    assert (found.ids == ID["road"]).sum() == 9431
    # corners at 104.352, 83.992 and 500.511, 320.870: pixels whose centres lie between them
    trees = np.zeros((800, 1000), np.bool_)
    trees[84:321, 104:501] = True
    assert ((found.ids == ID["trees"]) == trees).all()
    assert found.unknown == found.problems == ()


def test_overlaps_by_order_not_by_time() -> None:
    size = (4, 4)
    water, trees = box("water", 0, 0, 4, 3, size), box("trees", 1, 1, 3, 4, size)
    light = stroke("street light", np.eye(4, dtype=np.bool_))
    expected = table("lwww wltw wtlw .ttl")
    for result in ([water, trees, light], [light, trees, water], [trees, light, water]):
        assert (class_map(result, size, CLASSES).ids == expected).all()


def test_many_regions_of_one_class_in_an_oblong_image() -> None:
    size = (5, 7)
    dots = np.zeros(size, np.bool_)
    dots[4, 5:] = True
    result = [
        box("sky", 0, 0, 7, 2, size),
        box("sky", 5, 1, 7, 4, size),
        stroke("road", dots),
        stroke("sky", dots),
    ]
    expected = table("sssssss sssssss .....ss .....ss .....rr")
    assert (class_map(result, size, CLASSES).ids == expected).all()
    assert (class_map([], size, CLASSES).ids == 255).all()


def test_rectangles_upright_and_turned() -> None:
    size = (60, 100)  # not square: percent of the width and of the height differ
    value = {"x": 20, "y": 10, "width": 30, "height": 50, "rotation": 0, "rectanglelabels": ["road"]}
    upright = class_map([item("rectanglelabels", value, size)], size, CLASSES).ids == ID["road"]
    expected = np.zeros(size, np.bool_)
    expected[6:36, 20:50] = True
    assert (upright == expected).all()
    # a quarter turn clockwise about its first corner (20, 6): from x -10 to 20, from y 6 to 36
    turned = (
        class_map([item("rectanglelabels", {**value, "rotation": 90}, size)], size, CLASSES).ids == ID["road"]
    )
    expected[:] = False
    expected[6:36, :20] = True
    assert (turned == expected).all()


@given(st.floats(-360, 360), st.floats(5, 60), st.floats(5, 40))
def test_turned_rectangles_against_their_equation(degrees: float, along: float, across: float) -> None:
    size, x0, y0 = (90, 130), 61.3, 42.7
    value = {"x": x0 / 1.3, "y": y0 / 0.9, "width": along / 1.3, "height": across / 0.9, "rotation": degrees}
    region = item("rectanglelabels", {**value, "rectanglelabels": ["road"]}, size)
    mask = class_map([region], size, CLASSES).ids == ID["road"]
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = np.meshgrid(np.arange(130) + 0.5 - x0, np.arange(90) + 0.5 - y0)
    u, v = x * cos + y * sin, y * cos - x * sin
    edge = np.minimum.reduce([np.abs(u), np.abs(u - along), np.abs(v), np.abs(v - across)])
    expected = (u > 0) & (u < along) & (v > 0) & (v < across)
    assert (mask == expected)[edge > 1e-6].all()


def test_ellipses_upright_and_turned() -> None:
    size = (60, 100)
    value = {"x": 50, "y": 50, "radiusX": 30, "radiusY": 20, "rotation": 0, "ellipselabels": ["water"]}
    for degrees in (0, 25, 90, -40):
        region = item("ellipselabels", {**value, "rotation": degrees}, size)
        mask = class_map([region], size, CLASSES).ids == ID["water"]
        x, y = np.meshgrid(np.arange(100) + 0.5 - 50, np.arange(60) + 0.5 - 30)
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        assert (mask == (((x * cos + y * sin) / 30) ** 2 + ((y * cos - x * sin) / 12) ** 2 <= 1)).all()


def test_bare_shapes_take_the_label_of_the_same_id() -> None:
    """A labelling interface with <Labels> beside <Brush> and <Polygon> answers so."""
    size = (5, 7)
    square = box("", 0, 0, 3, 2, size)
    square["value"].pop("polygonlabels")
    corner = np.zeros(size, np.bool_)
    corner[3:, 4:] = True
    brush = {"format": "rle", "rle": encode(corner)}
    result = [
        {**square, "id": "a", "type": "polygon"},
        item("labels", {**square["value"], "labels": ["sky"]}, size, id="a"),
        item("labels", {**brush, "labels": ["road"]}, size, id="b"),
        item("brush", brush, size, id="b"),
        item("brush", brush, size, id="c"),
        item("labels", {**brush, "labels": ["road"]}, size, id="d"),
        item("choices", {"choices": ["good"]}, size, id="b"),
        {"type": "relation", "from_id": "a", "to_id": "b"},
    ]
    found = class_map(result, size, CLASSES)
    assert (found.ids == table("sss.... sss.... ....... ....rrr ....rrr")).all()
    assert found.problems == ("region 'c': a brush without a label", "region 'd': a label without a region")


def test_what_is_left_out_is_told() -> None:
    size = (4, 4)
    good = box("sky", 0, 0, 4, 1, size)
    line = copy.deepcopy(good)
    line["value"]["points"] = line["value"]["points"][:2]
    flat = item("rectanglelabels", {"x": 1, "y": 1, "width": 0, "height": 5, "rectanglelabels": ["road"]})
    dot = item("ellipselabels", {"x": 1, "y": 1, "radiusX": 1e-300, "radiusY": 1, "ellipselabels": ["road"]})
    point = item("keypointlabels", {"x": 1, "y": 1, "keypointlabels": ["road"]}, id="k")
    strange = {**box("moon", 0, 0, 4, 4, size), "id": "m"}
    found = class_map([good, line, flat, dot, point, strange, strange], size, CLASSES)
    assert (found.ids == table("ssss .... .... ....")).all()
    assert found.unknown == ("moon",)
    assert set(found.problems) == {
        "region 'r1': a polygon without an area",
        "region 'r1': a rectangle without an area",
        "region 'r1': a ellipse without an area",
        "region 'k': regions of type 'keypointlabels' are not drawn",
    }


def test_a_mask_has_the_paintings_size_whatever_was_drawn_on() -> None:
    small, size = (60, 100), (241, 401)  # the server's copy, and the painting: scaled and rounded
    y, x = np.mgrid[:60, :100]
    disc = np.hypot(y + 0.5 - 30, x + 0.5 - 50) < 20
    y, x = np.mgrid[:241, :401]
    expected = np.hypot((y + 0.5) / 241 * 60 - 30, (x + 0.5) / 401 * 100 - 50) < 20
    value = {"x": 50, "y": 50, "radiusX": 20, "radiusY": 100 / 3, "ellipselabels": ["sky"]}
    for region in (stroke("sky", disc), item("ellipselabels", value, small)):
        mask = class_map([region], size, CLASSES).ids == ID["sky"]
        assert mask.shape == size
        assert (mask & expected).sum() / (mask | expected).sum() > 0.98
    half = class_map([box("sky", 0, 0, 50, 60, small)], size, CLASSES).ids == ID["sky"]
    assert half[:, :200].all()
    assert not half[:, 201:].any()
    big = (
        class_map([stroke("sky", np.kron(disc, np.ones((2, 2), np.bool_)))], small, CLASSES).ids == ID["sky"]
    )
    assert (big == disc).all()


def polygon(points: Any) -> dict[str, Any]:
    return item("polygonlabels", {"points": points, "polygonlabels": ["sky"]})


def rectangle(**value: Any) -> dict[str, Any]:
    return item(
        "rectanglelabels", {"x": 1, "y": 1, "width": 9, "height": 9, "rectanglelabels": ["sky"], **value}
    )


def brush(rle: Any, **more: Any) -> dict[str, Any]:
    return item("brushlabels", {"format": "rle", "rle": rle, "brushlabels": ["sky"]}, **more)


FULL = encode(np.ones((4, 4), np.bool_))
NAN, INF = float("nan"), float("inf")
FAULTS: dict[str, tuple[Any, str]] = {
    "no list": ({"result": []}, "not a list of regions"),
    "null": (None, "not a list of regions"),
    "a list of numbers": ([1, 2], "not a list of regions"),
    "no value": ([{"id": "r1", "type": "brushlabels"}], "region 'r1': no value"),
    "a number as value": ([{"id": "r1", "type": "brush", "value": 5}], "region 'r1': no value"),
    "a number as label": (
        [brush(FULL) | {"value": {"rle": FULL, "brushlabels": [7]}}],
        "not a list of names",
    ),
    "text as labels": ([brush(FULL) | {"value": {"rle": FULL, "brushlabels": "sky"}}], "not a list of names"),
    "no rle": ([item("brushlabels", {"brushlabels": ["sky"]})], "region 'r1': a brush region without RLE"),
    "another format": (
        [item("brushlabels", {"format": "png", "rle": FULL, "brushlabels": ["sky"]})],
        "without RLE",
    ),
    "rle of another image": (
        [brush(encode(np.ones((5, 7), np.bool_)))],
        "region 'r1': brush: RLE claims 140",
    ),
    "rle of text": ([brush("AAAA")], "region 'r1': brush: RLE is a list"),
    "turned image": ([brush(FULL, image_rotation=90)], "region 'r1': the image was turned"),
    "turned askew": ([brush(FULL, image_rotation="90")], "the image was turned"),
    "image on its side": ([brush(FULL, original_height=2, original_width=8)], "drawn on an image of 2 x 8"),
    "image far larger": ([brush(FULL, original_height=10**5, original_width=10**5)], "drawn on an image of"),
    "image of nothing": ([brush(FULL, original_height=0)], "original size 0 x 4"),
    "image of a fraction": ([brush(FULL, original_height=4.0)], "original size 4.0 x 4"),
    "image of text": ([brush(FULL, original_width="4")], "original size"),
    "no points": ([polygon(None)], "region 'r1': a polygon without points"),
    "text as points": ([polygon("1,2")], "a polygon without points"),
    "triples": ([polygon([[1, 2, 3]] * 3)], "not pairs of numbers"),
    "bare numbers": ([polygon([1, 2, 3, 4])], "not pairs of numbers"),
    "text in points": ([polygon([["1", "2"]] * 3)], "region 'r1': a polygon with a point"),
    "truth in points": ([polygon([[True, False]] * 3)], "a polygon with a point"),
    "lists in points": ([polygon([[[1], [2]]] * 3)], "a polygon with a point"),
    "NaN in points": ([polygon([[1, 2], [3, 4], [NAN, 5]])], "a polygon with a point"),
    "inf in points": ([polygon([[1, 2], [3, 4], [-INF, 5]])], "a polygon with a point"),
    "huge points": ([polygon([[1, 2], [3, 4], [10**400, 5]])], "a polygon with a point"),
    "ten million points": ([polygon([[1, 2]] * 10_000_000)], "of 10000000 points; 100000 are the most"),
    "NaN": ([rectangle(x=NAN)], "region 'r1': x is nan"),
    "inf": ([rectangle(width=INF)], "region 'r1': width is inf"),
    "turned by NaN": ([rectangle(rotation=NAN)], "rotation is nan"),
    "text": ([rectangle(y="1")], "region 'r1': y is 1, not"),
    "truth": ([rectangle(y=True)], "region 'r1': y is True, not"),
    "null in it": ([rectangle(height=None)], "region 'r1': height is None"),
    "half an ellipse": (
        [item("ellipselabels", {"x": 1, "y": 1, "radiusX": 1, "ellipselabels": ["sky"]})],
        "radiusY",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_region_is_one_clear_error(fault: str) -> None:
    result, message = FAULTS[fault]
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message) as caught:
            class_map(result, (4, 4), CLASSES)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()
    assert len(str(caught.value)) < 200


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
KINDS = st.sampled_from(
    ["brushlabels", "polygonlabels", "rectanglelabels", "ellipselabels", "brush", "labels"]
)
KEYS = ["rle", "points", "x", "y", "width", "height", "rotation", "radiusX", "radiusY", "format"]
NUMBERS = st.floats(-200, 200) | st.integers(-10, 110)
VALUES = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(KEYS[2:9], NUMBERS | JUNK),
        "rle": st.lists(st.integers(-1, 256), max_size=30) | st.just(FULL) | JUNK,
        "points": st.lists(st.lists(NUMBERS, min_size=2, max_size=2), max_size=6) | JUNK,
        "format": st.just("rle") | JUNK,
        **{f"{kind}labels": st.just(["sky"]) | JUNK for kind in ("brush", "polygon", "rectangle", "ellipse")},
        "labels": st.just(["road"]) | JUNK,
    },
)
ITEMS = st.fixed_dictionaries(
    {},
    optional={
        "id": st.just("a") | JUNK,
        "type": KINDS | JUNK,
        "value": VALUES | JUNK,
        "original_width": st.just(4) | JUNK,
        "original_height": st.just(4) | JUNK,
        "image_rotation": st.just(0) | JUNK,
    },
)


@settings(max_examples=400, deadline=None)
@given(st.lists(ITEMS, max_size=3) | JUNK)
def test_whatever_a_server_answers_is_drawn_or_refused(result: Any) -> None:
    try:
        found = class_map(result, (4, 4), CLASSES)
    except ValueError:
        return
    assert found.ids.shape == (4, 4)
    assert found.ids.dtype == np.uint8
    assert set(np.unique(found.ids).tolist()) <= {ID["sky"], ID["road"], 255}


@settings(deadline=None)
@given(st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(lambda shape: arrays(np.bool_, shape)))
def test_regions_of_a_mask_give_it_back(mask: NDArray[np.bool_]) -> None:
    size = mask.shape[0], mask.shape[1]
    for regions in ([brush_region(mask, "trees")], polygon_regions(mask, "trees", tolerance=0)):
        assert json.loads(json.dumps(regions)) == regions
        assert ((class_map(regions, size, CLASSES).ids == ID["trees"]) == mask).all()


@pytest.mark.parametrize("form", ["brush", "polygon"])
@settings(deadline=None, max_examples=60)
@given(
    ids=st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(
        lambda shape: arrays(np.uint8, shape, elements=st.sampled_from([*CLASSES.ids[:4], 255]))
    )
)
def test_regions_of_a_class_map_give_it_back(
    form: Literal["brush", "polygon"], ids: NDArray[np.uint8]
) -> None:
    regions = class_map_regions(ids, CLASSES, form, tolerance=0)
    size = ids.shape[0], ids.shape[1]
    assert (class_map(regions, size, CLASSES).ids == ids).all()


def scene() -> NDArray[np.uint8]:
    y, x = np.mgrid[:200, :300]
    ids = np.full((200, 300), ID["sky"], np.uint8)
    ids[y > 110 + 12 * np.sin(x / 25)] = ID["water"]
    ids[np.abs(x - 150) < (y - 90) * 0.6] = ID["road"]
    ids[np.hypot(y - 80, x - 70) < 45] = ID["trees"]
    ids[np.hypot(y - 80, x - 70) < 15] = ID["sky"]  # a hole that a lower class fills
    ids[np.hypot(y - 40, x - 220) < 6] = ID["street light"]  # one that a higher class fills
    return ids


def test_polygons_of_a_scene_stay_within_their_tolerance() -> None:
    ids = scene()
    regions = class_map_regions(ids, CLASSES, "polygon", tolerance=1.0)
    again = class_map(regions, (200, 300), CLASSES).ids
    assert (again != ids).mean() < 0.01
    assert (again == 255).sum() < 20  # no gaps along the edges
    assert 5 <= len(regions) <= 8
    by_label = {region["value"]["polygonlabels"][0]: region["value"]["points"] for region in regions[:1]}
    assert list(by_label) == ["sky"]  # lowest first, and drawn through under the lamp
    assert sum(len(region["value"]["points"]) for region in regions) < 200


def test_a_region_is_as_label_studio_has_it() -> None:
    region = brush_region(np.eye(5, 7, dtype=np.bool_), "street light")
    assert region["from_name"] == "brush"
    assert region["to_name"] == "image"
    assert (region["original_height"], region["original_width"]) == (5, 7)
    assert region["value"]["brushlabels"] == ["street light"]
    assert region["id"] == brush_region(np.eye(5, 7, dtype=np.bool_), "street light")["id"]
    assert region["id"] != brush_region(np.eye(5, 7, dtype=np.bool_), "sky")["id"]
    assert polygon_regions(np.zeros((4, 4), np.bool_), "sky") == []
    edges = polygon_regions(np.ones((40, 70), np.bool_), "sky")[0]["value"]["points"]
    assert np.ptp(edges, axis=0).tolist() == [100, 100]
