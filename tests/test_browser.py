"""A person's way: Chromium, real mouse events, the real server; then what was drawn comes back as a mask."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import Painter
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from playwright.sync_api import Page, sync_playwright

from annotate import server
from annotate.config import PullConfig, PushConfig
from annotate.masks import Encoding, read_mask
from annotate.pull import pull
from annotate.push import push
from annotate.studio import connect
from annotate.workspace import Workspace

pytestmark = [pytest.mark.server, pytest.mark.browser]
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SIZE = (400, 600)


class Editor:
    """The labelling editor, open at one task; places are fractions of the painting."""

    def __init__(self, page: Page) -> None:
        self.page = page

    def open(self, project: int, task: int) -> None:
        self.page.goto(f"{self.url}/projects/{project}/data?task={task}")
        self.page.get_by_label("brush-tool").wait_for()
        image = self.page.locator("canvas").first
        image.wait_for()
        self.page.wait_for_timeout(1000)  # the image is drawn, and its place no longer moves
        surface = self.page.locator("canvas").nth(1).bounding_box()
        box = image.bounding_box()
        assert surface is not None
        assert box is not None
        assert box["x"] >= surface["x"], "the editor cuts the painting's edges off"
        assert box["width"] <= surface["width"], "the editor cuts the painting's edges off"
        self.box = box

    def log_in(self, url: str, login: server.Login) -> None:
        self.url = url
        self.page.goto(f"{url}/user/login/")
        self.page.fill("input[name=email]", login.email)
        self.page.fill("input[name=password]", login.password)
        self.page.click("button[type=submit]")
        self.page.wait_for_url(lambda found: "login" not in found, wait_until="commit")

    def at(self, x: float, y: float) -> tuple[float, float]:
        return self.box["x"] + self.box["width"] * x, self.box["y"] + self.box["height"] * y

    def choose(self, tool: str, hotkey: str) -> None:
        self.page.keyboard.press("Escape")  # lets go of the region before
        self.page.get_by_label(tool).click()
        self.page.keyboard.press(hotkey)

    def stroke(self, *places: tuple[float, float]) -> None:
        self.page.mouse.move(*self.at(*places[0]))
        self.page.mouse.down()
        for place in places[1:]:
            self.page.mouse.move(*self.at(*place), steps=12)
        self.page.mouse.up()
        self.page.wait_for_timeout(300)

    def polygon(self, *places: tuple[float, float]) -> None:
        for place in (*places, places[0]):
            self.page.mouse.click(*self.at(*place))
            self.page.wait_for_timeout(150)

    def submit(self) -> None:
        with self.page.expect_response(
            lambda found: "/annotations" in found.url and found.request.method == "POST"
        ):
            self.page.get_by_role("button", name="Submit").click()

    def painting(self) -> NDArray[np.uint8]:
        """What the screen shows where the painting lies. (H, W, 3)"""
        shot = self.page.screenshot(
            clip={
                "x": self.box["x"],
                "y": self.box["y"],
                "width": self.box["width"],
                "height": self.box["height"],
            }
        )
        with Image.open(io.BytesIO(shot)) as image:
            return np.asarray(image.convert("RGB"))


@pytest.fixture
def editor(chromium: str) -> Iterator[Editor]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        try:
            yield Editor(browser.new_page(viewport={"width": 1500, "height": 950}))
        finally:
            browser.close()


def overlap(mask: NDArray[np.bool_], drawn: NDArray[np.bool_]) -> float:
    """Intersection over union."""
    return float((mask & drawn).sum() / (mask | drawn).sum())


def test_what_a_person_draws_comes_back(
    remote: Workspace, embedded: Workspace, editor: Editor, tmp_path: Path, paint: Painter
) -> None:
    pixels = paint(tmp_path / "paintings" / "Été #1.png", SIZE, 4)
    project = push(remote, tmp_path / "paintings", PushConfig(strategy="all")).project
    studio = connect(remote)
    (task,) = studio.tasks(project)
    editor.log_in(studio.url, server.login(embedded))
    studio.close()
    editor.open(project, task.id)
    shown = Image.fromarray(editor.painting()).resize((60, 40), Image.Resampling.BOX)
    there = Image.fromarray(pixels).resize((60, 40), Image.Resampling.BOX)
    apart = np.abs(np.asarray(shown).astype(int) - np.asarray(there))
    assert np.median(apart) < 12, "the painting is not shown, or something lies over it"

    editor.choose("polygon-tool", "3")
    corners = ((0.55, 0.15), (0.9, 0.2), (0.85, 0.8), (0.6, 0.7))
    editor.polygon(*corners)
    editor.choose("brush-tool", "1")
    editor.stroke((0.1, 0.2), (0.4, 0.3))
    editor.stroke((0.4, 0.5), (0.1, 0.6))
    editor.submit()
    assert pull(remote, PullConfig()).problems == ()

    mask = read_mask(remote.mask("hand", "Été #1"), Encoding.RAW)
    assert set(np.unique(mask)) == {148, 168, 255}
    canvas = Image.new("1", (SIZE[1], SIZE[0]))
    ImageDraw.Draw(canvas).polygon([(x * SIZE[1], y * SIZE[0]) for x, y in corners], fill=1)
    assert overlap(mask == 168, np.asarray(canvas)) >= 0.99
    rows, columns = np.nonzero(mask == 148)
    assert 0.1 * SIZE[1] - 20 < columns.min() < 0.1 * SIZE[1]
    assert 0.4 * SIZE[1] < columns.max() < 0.4 * SIZE[1] + 20
    for x, y in ((0.1, 0.2), (0.25, 0.25), (0.4, 0.3), (0.4, 0.5), (0.25, 0.55), (0.1, 0.6)):
        assert mask[round(y * SIZE[0]), round(x * SIZE[1])] == 148
    assert mask[round(0.4 * SIZE[0]), round(0.25 * SIZE[1])] == 255, "between the strokes"
    assert rows.max() < 0.6 * SIZE[0] + 20
