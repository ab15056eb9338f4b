"""Label Studio's editor in headless Chromium, driven as a person drives it: keys, and real mouse events."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from annotate import server

Place = tuple[float, float]  # x, y as shares of the painting's width and height

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
BRUSH, ERASER = 15.0, 10.0  # their widths at first, in pixels of the screen
# The chosen annotation has so many regions, its image is there, and every brush region its decoded pixels.
_READY = """count => {
    const chosen = window.Htx?.annotationStore?.selected
    const image = chosen?.names.get("image")
    const regions = chosen?.regionStore.regions ?? []
    return !!image?.imageIsLoaded && regions.length === count && chosen.editable &&
        regions.every(one => one.type !== "brushregion" || one.imageData)
}"""
_STAGE = """() => {
    const image = window.Htx.annotationStore.selected.names.get("image")
    const {stageWidth, stageHeight, stageScale, zoomingPositionX, zoomingPositionY} = image
    return [stageWidth, stageHeight, stageScale, zoomingPositionX, zoomingPositionY]
}"""
_TWO_FRAMES = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))"


@contextmanager
def browser_page(chromium: str, width: int = 1500, height: int = 950) -> Iterator[Page]:
    """A window of a fresh browser."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        try:
            yield browser.new_page(viewport={"width": width, "height": height})
        finally:
            browser.close()


class Editor:
    """The labelling editor; `open` shows one task."""

    def __init__(self, page: Page, url: str) -> None:
        self.page, self.url = page, url
        self.sent = 0  # bytes of the last submission

    def log_in(self, login: server.Login) -> None:
        self.page.goto(f"{self.url}/user/login/")
        self.page.fill("input[name=email]", login.email)
        self.page.fill("input[name=password]", login.password)
        self.page.click("button[type=submit]")
        self.page.wait_for_url(lambda found: "login" not in found, wait_until="commit")

    def open(self, project: int, task: int, regions: int = 0) -> float:
        """Open a task by its address; returns after how many seconds it could be edited.

        That is: its painting and its pre-filled regions are drawn, and the browser takes the next input.

        Args:
            regions: how many are pre-filled.
        """
        began = time.perf_counter()
        self.page.goto(f"{self.url}/projects/{project}/data?task={task}", wait_until="commit")
        self.page.get_by_label("brush-tool").wait_for()
        self.page.wait_for_function(_READY, arg=regions, timeout=120_000)
        self.page.evaluate(_TWO_FRAMES)
        seconds = time.perf_counter() - began
        self._settle()
        return seconds

    def _settle(self) -> None:
        """Wait until the painting no longer moves, and note its place on the screen."""
        places = [None, self._place()]
        while places[-1] != places[-2]:
            self.page.wait_for_timeout(300)
            places.append(self._place())
        assert places[-1] is not None
        self.left, self.top, self.width, self.height = places[-1]

    def _place(self) -> tuple[float, float, float, float] | None:
        box = self.page.locator("canvas").first.bounding_box()
        return (box["x"], box["y"], box["width"], box["height"]) if box else None

    def whole(self) -> bool:
        """Can a person reach all of the painting: on the screen, and nothing of the editor over its corners?"""
        ends = [(x, y) for x in (2, self.width - 2) for y in (2, self.height / 2, self.height - 2)]
        hit = "places => places.every(([x, y]) => document.elementFromPoint(x, y)?.tagName === 'CANVAS')"
        return bool(self.page.evaluate(hit, [(self.left + x, self.top + y) for x, y in ends]))

    def at(self, place: Place) -> Place:
        """The pixel of the screen that is nearest: the editor takes whole ones."""
        return round(self.left + self.width * place[0]), round(self.top + self.height * place[1])

    def _whole_pixel(self, x: float, y: float) -> Place:
        surface = self.page.locator("canvas").nth(1).bounding_box()
        assert surface is not None
        width, height, scale, off_x, off_y = self.page.evaluate(_STAGE)
        return (
            math.floor((x - surface["x"] - off_x) / scale) / width,
            math.floor((y - surface["y"] - off_y) / scale) / height,
        )

    def choose(self, tool: str, hotkey: str) -> None:
        """A tool, and a class for what is drawn next."""
        self.page.keyboard.press("Escape")  # lets go of the region before
        self.page.get_by_label(tool).click()
        self.page.keyboard.press(hotkey)

    def select(self, label: str) -> None:
        """Choose the first region of a class in the list of regions."""
        self.page.locator("[class*=outliner-item__title]", has_text=label).first.click()

    def stroke(self, places: Sequence[Place], pause: int = 300) -> tuple[list[Place], float]:
        """Draw (or erase, where the eraser is chosen) along some places.

        Returns:
            The places that the editor takes for the mouse's, which are whole pixels of its canvas, rounded
            down; and the seconds from pressing to the picture after letting go.
        """
        stops = [self.at(place) for place in places]
        path = [stops[0]]
        for (x, y), (to_x, to_y) in pairwise(stops):
            path += [(round(x + (to_x - x) * k / 12), round(y + (to_y - y) * k / 12)) for k in range(1, 13)]
        self.page.mouse.move(*path[0])
        began = time.perf_counter()
        self.page.mouse.down()
        for x, y in path[1:]:
            self.page.mouse.move(x, y)
        self.page.mouse.up()
        self.page.evaluate(_TWO_FRAMES)
        seconds = time.perf_counter() - began
        self.page.wait_for_timeout(pause)
        return [self._whole_pixel(x, y) for x, y in path], seconds

    def polygon(self, places: Sequence[Place]) -> list[Place]:
        """Click the corners, and the first again; returns where they really lie.

        With Ctrl: else a click on another polygon would choose that one.
        """
        stops = [self.at(place) for place in places]
        self.page.keyboard.down("Control")
        for x, y in (*stops, stops[0]):
            self.page.mouse.click(x, y)
            self.page.wait_for_timeout(150)
        self.page.keyboard.up("Control")
        return [((x - self.left) / self.width, (y - self.top) / self.height) for x, y in stops]

    def submit(self) -> tuple[float, float]:
        """Press Submit; returns the seconds until the server has it, and until the editor has read it back."""
        began = time.perf_counter()
        with self.page.expect_response(
            lambda found: "/annotations" in found.url and found.request.method == "POST", timeout=60_000
        ) as answer:
            self.page.get_by_role("button", name="Submit").click()
        saved = time.perf_counter() - began
        assert answer.value.ok
        self.page.locator("button", has_text="Update").wait_for(timeout=60_000)
        seconds = time.perf_counter() - began
        self.sent = answer.value.request.sizes()["requestBodySize"]  # bytes
        return saved, seconds

    def painting(self) -> NDArray[np.uint8]:
        """What the screen shows where the painting lies. (H, W, 3)"""
        clip = {"x": self.left, "y": self.top, "width": self.width, "height": self.height}
        with Image.open(io.BytesIO(self.page.screenshot(clip=clip))) as image:  # type: ignore[arg-type]
            return np.asarray(image.convert("RGB"))
