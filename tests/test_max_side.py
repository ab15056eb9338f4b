"""Paintings scaled for the browser: whatever is drawn there, its mask has the painting's own size and place."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Painter
from numpy.typing import NDArray
from PIL import Image

from annotate.access import connect
from annotate.classes import UNLABELLED
from annotate.config import PullConfig, PushConfig
from annotate.masks import Encoding, read_mask
from annotate.paintings import browser_bytes, load_painting
from annotate.pull import pull
from annotate.push import push
from annotate.regions import brush_region
from annotate.workspace import Workspace

SIZE, SIDE, SHOWN = (97, 150), 40, (26, 40)  # both sides are rounded: 3.73 and 3.75 pixels for one
TREES = 168


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.webp"])
def test_a_painting_is_scaled_down_and_looks_the_same(tmp_path: Path, paint: Painter, name: str) -> None:
    paint(tmp_path / name, SIZE, 3)
    sent = browser_bytes(tmp_path / name, SIDE)
    assert (sent.size, sent.suffix) == (SHOWN, ".jpg")
    with Image.open(io.BytesIO(sent.content)) as image:
        assert (image.height, image.width, image.format) == (*SHOWN, "JPEG")
        shown = np.asarray(image).astype(int)
    with Image.fromarray(load_painting(tmp_path / name)) as whole:
        expected = np.asarray(whole.resize((SHOWN[1], SHOWN[0]), Image.Resampling.BOX)).astype(int)
    assert np.abs(shown - expected).mean() < 4


def test_what_is_small_enough_goes_as_it_is(tmp_path: Path, paint: Painter) -> None:
    paint(tmp_path / "a.png", SIZE)
    for side in (0, 150, 4000):
        sent = browser_bytes(tmp_path / "a.png", side)
        assert (sent.content, sent.size) == ((tmp_path / "a.png").read_bytes(), SIZE)


def test_a_turned_photograph_is_scaled_upright(tmp_path: Path, paint: Painter) -> None:
    pixels = paint(tmp_path / "b.png", SIZE, 5)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=turned, quality=95)
    sent = browser_bytes(tmp_path / "a.jpg", SIDE)
    assert sent.size == (40, 26)
    with Image.open(io.BytesIO(sent.content)) as image:
        assert image.getexif().get(0x0112, 1) == 1
        shown = np.asarray(image).astype(int)
    upright = Image.fromarray(np.rot90(pixels, -1)).resize((26, 40), Image.Resampling.BOX)
    assert np.abs(shown - np.asarray(upright).astype(int)).mean() < 4


def test_a_line_and_a_point_keep_a_pixel(tmp_path: Path) -> None:
    Image.new("RGB", (900, 2)).save(tmp_path / "a.png")
    assert browser_bytes(tmp_path / "a.png", 30).size == (1, 30)


def centres() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where the painting's pixel centres lie in the image that the browser shows. (H, W) each"""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    return columns * SHOWN[1] / SIZE[1], rows * SHOWN[0] / SIZE[0]


def turned(x: float, y: float, degrees: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The pixel centres seen from (x, y), in axes that are turned clockwise."""
    across, down = centres()
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return (across - x) * cos + (down - y) * sin, (down - y) * cos - (across - x) * sin


def percent(x: float, y: float) -> tuple[float, float]:
    return 100 * x / SHOWN[1], 100 * y / SHOWN[0]


def rectangle() -> tuple[dict[str, Any], NDArray[np.bool_]]:
    """12 x 7 pixels of the shown image at (14, 5), turned by 35 degrees about its corner."""
    along, across = turned(14, 5, 35)
    left, top = percent(14, 5)
    width, height = percent(12, 7)
    value = {"x": left, "y": top, "width": width, "height": height, "rotation": 35}
    return value, (along >= 0) & (along < 12) & (across >= 0) & (across < 7)


def ellipse() -> tuple[dict[str, Any], NDArray[np.bool_]]:
    """Radii 11 and 5 about (20, 12), turned by 200 degrees."""
    along, across = turned(20, 12, 200)
    left, top = percent(20, 12)
    width, height = percent(11, 5)
    value = {"x": left, "y": top, "radiusX": width, "radiusY": height, "rotation": 200}
    return value, (along / 11) ** 2 + (across / 5) ** 2 <= 1


def polygon() -> tuple[dict[str, Any], NDArray[np.bool_]]:
    """A triangle, by the sides that its pixels lie on."""
    corners = [(4.3, 3.1), (33.7, 8.2), (12.4, 22.9)]
    across, down = centres()
    inside = np.ones(SIZE, bool)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        inside &= (bx - ax) * (down - ay) - (by - ay) * (across - ax) >= 0
    return {"points": [percent(*corner) for corner in corners], "closed": True}, inside


def brush() -> tuple[dict[str, Any], NDArray[np.bool_]]:
    """A disc of radius 8 about (22, 13), in whole pixels of the shown image."""
    rows, columns = np.mgrid[: SHOWN[0], : SHOWN[1]] + 0.5
    value = brush_region((rows - 13) ** 2 + (columns - 22) ** 2 < 64, "trees")["value"]
    across, down = centres()
    return {name: value[name] for name in ("format", "rle")}, (across - 22) ** 2 + (down - 13) ** 2 < 64


@pytest.mark.server
def test_every_shape_drawn_on_a_scaled_painting_comes_back_in_its_place(
    remote: Workspace, tmp_path: Path, paint: Painter
) -> None:
    shapes = {"rectangle": rectangle(), "ellipse": ellipse(), "polygon": polygon(), "brush": brush()}
    for seed, name in enumerate(shapes):
        paint(tmp_path / "paintings" / f"{name}.png", SIZE, seed)
    push(remote, tmp_path / "paintings", PushConfig(strategy="all", max_side=SIDE))
    assert remote.settings().max_side == SIDE
    paint(tmp_path / "paintings" / "later.png", SIZE, 9)
    project = push(remote, tmp_path / "paintings", PushConfig(strategy="all")).project
    studio = connect(remote)
    tasks = {task.key: task for task in studio.tasks(project)}
    assert {task.size for task in tasks.values()} == {SHOWN}, "a later push scales as the first did"
    # a person's own interface may have the tags that draw rectangles and ellipses
    config = str(studio.connection.get(f"api/projects/{project}/")["label_config"])
    more = '<Rectangle name="rectangle" toName="image"/><Ellipse name="ellipse" toName="image"/></View>'
    config = config.replace("</View>", more)
    studio.connection.send("PATCH", f"api/projects/{project}/", repeat=True, json={"label_config": config})
    common = {"id": "r", "to_name": "image", "original_width": 40, "original_height": 26, "image_rotation": 0}
    for name, (value, _) in shapes.items():
        shape = {**common, "from_name": name, "type": name, "value": value}
        label = {**common, "from_name": "label", "type": "labels", "value": {**value, "labels": ["trees"]}}
        body = {"result": [shape, label]}
        studio.connection.send("POST", f"api/tasks/{tasks[name].id}/annotations/", repeat=False, json=body)
    studio.close()
    assert pull(remote, PullConfig()).problems == ()
    for name, (_, expected) in shapes.items():
        mask = read_mask(remote.mask("hand", name), Encoding.RAW)
        assert mask.shape == SIZE
        assert set(np.unique(mask)) == {TREES, UNLABELLED}
        drawn = mask == TREES
        if name != "brush":
            assert (drawn != expected).sum() <= 2, name  # centres that lie on the edge itself
        else:  # steps of 3.7 pixels, smoothed
            assert (drawn & expected).sum() / (drawn | expected).sum() > 0.95
