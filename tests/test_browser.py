"""A person's way: Chromium, real mouse events, the real server; then what was drawn comes back as a mask."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from conftest import Painter
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from annotate import server
from annotate.access import connect
from annotate.config import PullConfig, PushConfig
from annotate.masks import Encoding, read_mask, write_mask
from annotate.pull import pull
from annotate.push import push
from annotate.workspace import Workspace
from bench.browser import BRUSH, ERASER, Editor, Place, browser_page

pytestmark = [pytest.mark.server, pytest.mark.browser]
SIZE = (400, 600)
ROAD, WATER, TREES, SKY, BUILDINGS = 148, 177, 168, 156, 95


@pytest.fixture
def editor(chromium: str, remote: Workspace, embedded: Workspace) -> Iterator[Editor]:
    """The editor on the shared server, logged in."""
    running = server.running(embedded)
    assert running is not None
    with browser_page(chromium) as page:
        editor = Editor(page, running.url)
        editor.log_in(server.login(embedded))
        yield editor


def overlap(mask: NDArray[np.bool_], drawn: NDArray[np.bool_]) -> float:
    """Intersection over union."""
    return float((mask & drawn).sum() / (mask | drawn).sum())


def along(
    paths: Sequence[Sequence[Place]], editor: Editor, size: tuple[int, int], width: float = BRUSH
) -> NDArray[np.bool_]:
    """The pixels of a painting (H, W) that lie within half a width, in pixels of the screen, of the paths."""
    scale = np.array(
        [size[1] / editor.width, size[0] / editor.height]
    )  # pixels of the painting for one of the screen
    points = (
        np.stack(np.meshgrid(np.arange(size[1]) + 0.5, np.arange(size[0]) + 0.5), -1) / scale
    )  # (H, W, 2)
    nearest = np.full(size, np.inf)
    for path in paths:
        stops = np.array(path) * (editor.width, editor.height)
        for a, b in pairwise(stops):
            length = max(float(((b - a) ** 2).sum()), 1e-9)
            share = np.clip(((points - a) @ (b - a)) / length, 0, 1)[..., None]
            nearest = np.minimum(nearest, np.linalg.norm(points - a - share * (b - a), axis=-1))
    found: NDArray[np.bool_] = nearest <= width / 2
    return found


def inside(corners: Sequence[Place], size: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels of a painting (H, W) inside a polygon, drawn four times as large and by another hand."""
    canvas = Image.new("L", (size[1] * 4, size[0] * 4))
    ImageDraw.Draw(canvas).polygon([(x * canvas.width, y * canvas.height) for x, y in corners], fill=255)
    return np.asarray(canvas.resize((size[1], size[0]), Image.Resampling.BOX)) > 127


def apart(shown: NDArray[np.uint8], pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """How much the screen and a painting differ, place by place. (40, 60, 3)"""
    small, there = (
        np.asarray(Image.fromarray(one).resize((60, 40), Image.Resampling.BOX)).astype(np.int64)
        for one in (shown, pixels)
    )
    found: NDArray[np.int64] = np.abs(small - there)
    return found


def test_what_a_person_draws_comes_back(
    remote: Workspace, editor: Editor, tmp_path: Path, paint: Painter
) -> None:
    pixels = paint(tmp_path / "paintings" / "Été #1.png", SIZE, 4)
    project = push(remote, tmp_path / "paintings", PushConfig(strategy="all")).project
    editor.open(project, only_task(remote, project))
    assert np.median(apart(editor.painting(), pixels)) < 12, "the painting is not shown, or not alone"
    assert editor.whole()

    editor.choose("polygon-tool", "3")
    corners = editor.polygon(((0.55, 0.15), (0.9, 0.2), (0.85, 0.8), (0.6, 0.7)))
    editor.choose("brush-tool", "1")
    strokes = [editor.stroke(ends)[0] for ends in (((0.1, 0.2), (0.4, 0.3)), ((0.4, 0.5), (0.1, 0.6)))]
    editor.submit()
    assert pull(remote, PullConfig()).problems == ()

    mask = read_mask(remote.mask("hand", "Été #1"), Encoding.RAW)
    assert set(np.unique(mask)) == {ROAD, TREES, 255}
    assert overlap(mask == TREES, inside(corners, SIZE)) >= 0.99
    assert overlap(mask == ROAD, along(strokes, editor, SIZE)) >= 0.98


@pytest.mark.parametrize(("form", "max_side"), [("brush", 0), ("polygon", 0), ("brush", 300)])
def test_a_pre_annotation_is_shown_corrected_and_comes_back(
    remote: Workspace, editor: Editor, tmp_path: Path, paint: Painter, form: str, max_side: int
) -> None:
    pixels = paint(tmp_path / "paintings" / "one.png", SIZE, 5)
    guess = np.full(SIZE, SKY, np.uint8)
    guess[250:, :] = WATER
    guess[250:, :230] = ROAD
    write_mask(remote.mask("pseudo", "one"), guess, Encoding.RAW)
    config = PushConfig(strategy="all", predictions=True, regions=form, max_side=max_side)
    project = push(remote, tmp_path / "paintings", config).project
    editor.open(project, only_task(remote, project), regions=3)
    covered = apart(editor.painting(), pixels)
    for part in (covered[:24], covered[27:, :21], covered[27:, 25:]):  # sky, road and water
        assert np.median(part) > 12, "the pre-annotation is not shown"

    expected = guess.copy()
    if form == "brush":
        editor.select("sky")
        editor.page.get_by_label("eraser").first.click()
        erased = along([editor.stroke(((0.1, 0.1), (0.4, 0.3)))[0]], editor, SIZE, ERASER)
        expected[erased] = 255
    editor.choose("polygon-tool", "5")
    drawn = inside(editor.polygon(((0.6, 0.1), (0.95, 0.15), (0.9, 0.5), (0.65, 0.4))), SIZE)
    editor.choose("brush-tool", "3")
    painted = along([editor.stroke(((0.1, 0.4), (0.5, 0.8)))[0]], editor, SIZE)
    expected[drawn], expected[painted] = BUILDINGS, TREES
    editor.submit()
    assert pull(remote, PullConfig()).problems == ()
    mask = read_mask(remote.mask("hand", "one"), Encoding.RAW)
    assert set(np.unique(mask)) == set(np.unique(expected))
    assert overlap(mask == BUILDINGS, drawn) >= 0.99
    assert overlap(mask == TREES, painted) >= (0.95 if max_side else 0.98)
    if form == "brush":
        assert overlap(mask == 255, erased) >= (0.94 if max_side else 0.97)
    assert (mask == expected).mean() > 0.995


def only_task(workspace: Workspace, project: int) -> int:
    studio = connect(workspace)
    try:
        (task,) = studio.tasks(project)
    finally:
        studio.close()
    return task.id
