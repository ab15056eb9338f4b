"""What the demo paints: scenes composed by the seed document's rules.

A low viewpoint, so the ground takes about a third of the canvas; a street, a canal, or both; trees that cover
much of a dark blue sky; houses behind them; a few symbolic street lights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

ROAD, WATER, TREES, SKY, BUILDINGS, LIGHT = 148, 177, 168, 156, 95, 129  # raw COCO-Stuff ids
Floats = NDArray[np.float64]
Point = tuple[float, float]  # (x, y) in pixels


@dataclass(frozen=True)
class Lamp:
    """A street light: its head's centre, foot and radius, in pixels."""

    x: float
    y: float
    foot: float
    radius: float


@dataclass(frozen=True)
class Composition:
    """Where everything stands."""

    ids: NDArray[np.uint8]  # (H, W) raw COCO-Stuff ids
    things: NDArray[np.uint8]  # (H, W) which house or tree crown: its number, from 1; trunks are TRUNK
    crowns: tuple[Point, ...]  # each crown's centre: thing n is crowns[n - 1]; houses stand at (0, 0)
    lamps: tuple[Lamp, ...]
    vanishing: Point  # the point that the road runs to; its y is the horizon


TRUNK = 255


class _Canvas:
    """The class map and the map of things, drawn together."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.height, self.width = size
        self._maps = [Image.new("L", (self.width, self.height), fill) for fill in (SKY, 0)]
        self._draws = [ImageDraw.Draw(one) for one in self._maps]
        self.crowns: list[Point] = []

    def polygon(self, corners: Sequence[Point], kind: int, thing: int = 0) -> None:
        for draw, fill in zip(self._draws, (kind, thing), strict=True):
            draw.polygon(corners, fill=fill)

    def ellipse(self, centre: Point, radii: Point, kind: int, thing: int = 0) -> None:
        box = (centre[0] - radii[0], centre[1] - radii[1], centre[0] + radii[0], centre[1] + radii[1])
        for draw, fill in zip(self._draws, (kind, thing), strict=True):
            draw.ellipse(box, fill=fill)

    def new_thing(self, centre: Point = (0.0, 0.0)) -> int:
        self.crowns.append(centre)
        return min(len(self.crowns), TRUNK - 1)

    def maps(self) -> list[NDArray[np.uint8]]:
        return [np.asarray(one).copy() for one in self._maps]


def compose(rng: np.random.Generator, size: tuple[int, int]) -> Composition:
    """Lay out the classes: sky behind, buildings, ground, trees over the sky, a few lamps in front.

    Args:
        rng: the scene's own random numbers.
        size: (H, W) in pixels.
    """
    height, width = size
    canvas = _Canvas(size)
    horizon = height * rng.uniform(0.58, 0.7)  # a low viewpoint: the ground takes about a third
    vanishing = (width * rng.uniform(0.3, 0.7), horizon)
    if rng.random() < 0.8:
        _buildings(rng, canvas, vanishing)
    _ground(rng, canvas, vanishing)
    _trees(rng, canvas, vanishing)
    lamps = _lamps(rng, canvas, vanishing)
    ids, things = canvas.maps()
    return Composition(ids, things, tuple(canvas.crowns), tuple(lamps), vanishing)


def _buildings(rng: np.random.Generator, canvas: _Canvas, at: Point) -> None:
    """One row of houses, which gets lower towards the vanishing point."""
    width, height = canvas.width, canvas.height
    x, end = sorted(rng.uniform(-0.1, 1.1, 2) * width)
    end = max(end, x + width * 0.4)
    while x < end:
        wide = width * rng.uniform(0.08, 0.2)
        near = min(abs(x + wide / 2 - at[0]) / width, 0.7)
        top = at[1] - height * (0.1 + 0.35 * near) * rng.uniform(0.8, 1.3)
        house = canvas.new_thing()
        canvas.polygon([(x, top), (x + wide, top), (x + wide, at[1] + 1), (x, at[1] + 1)], BUILDINGS, house)
        if rng.random() < 0.6:  # a gable
            peak = (x + wide / 2, top - wide * rng.uniform(0.3, 0.7))
            canvas.polygon([(x, top), peak, (x + wide, top)], BUILDINGS, house)
        x += wide * rng.uniform(0.9, 1.2)


def _ground(rng: np.random.Generator, canvas: _Canvas, at: Point) -> None:
    width, height = canvas.width, canvas.height
    kind = rng.choice(["road", "water", "canal", "quay"], p=[0.4, 0.22, 0.26, 0.12])
    below = [(0, at[1]), (width, at[1]), (width, height), (0, height)]
    canvas.polygon(below, WATER if kind == "water" else ROAD)
    if kind == "canal":  # the road runs beside it
        left, right = at[0] + width * rng.uniform(0.02, 0.06), width * rng.uniform(0.35, 0.75)
        shore = [(left, at[1]), (width + 1, at[1]), (width + 1, height), (right, height)]
        if rng.random() < 0.5:
            shore = [(left, at[1]), (-1, at[1]), (-1, height), (width - right, height)]
        canvas.polygon(shore, WATER)
    elif kind == "quay":  # the water lies behind the road
        near = at[1] + (height - at[1]) * rng.uniform(0.3, 0.5)
        tilt = height * rng.uniform(-0.04, 0.04)
        canvas.polygon([(0, at[1]), (width, at[1]), (width, near + tilt), (0, near - tilt)], WATER)


def _trees(rng: np.random.Generator, canvas: _Canvas, at: Point) -> None:
    """Far trees first; the farther from the vanishing point a tree stands, the nearer and larger it is."""
    width, height = canvas.width, canvas.height
    sides = [foot for foot in (rng.uniform(-0.05, 0.18), rng.uniform(0.82, 1.05)) if rng.random() < 0.92]
    feet = [*sides, *rng.uniform(0.05, 0.95, rng.integers(2, 5))]
    for foot in sorted(feet, key=lambda foot: abs(foot * width - at[0])):
        near = abs(foot * width - at[0]) / width
        scale = height * (0.22 + 0.72 * near) * rng.uniform(0.85, 1.15)
        x, ground = foot * width, at[1] + height * 0.22 * near
        top = ground - scale * rng.uniform(0.85, 1.0)
        lean = scale * rng.uniform(-0.12, 0.12)
        trunk = max(scale * rng.uniform(0.025, 0.045), 1.0)
        stem = [
            (x - trunk, ground),
            (x + trunk, ground),
            (x + lean + trunk / 2, top),
            (x + lean - trunk / 2, top),
        ]
        canvas.polygon(stem, TREES, TRUNK)
        crown = canvas.new_thing((x + lean, top))
        for _ in range(rng.integers(45, 60)):  # leaves: broad in the middle, ragged at the rim
            across, up = rng.normal(0, 1, 2).clip(-2, 2)
            blob = scale * rng.uniform(0.1, 0.26) / (1 + 0.45 * np.hypot(across, up) ** 2)
            centre = (x + lean + across * scale * 0.33, top + up * scale * 0.22)
            canvas.ellipse(centre, (blob, blob * 0.8), TREES, crown)


def _lamps(rng: np.random.Generator, canvas: _Canvas, at: Point) -> list[Lamp]:
    """A row that shrinks towards the vanishing point."""
    width, height = canvas.width, canvas.height
    lamps = []
    side = rng.choice([-1.0, 1.0])
    for k in range(rng.integers(1, 5)):
        near = rng.uniform(0.75, 1.0) * 0.65**k
        x = at[0] + side * near * width * 0.4
        side = -side if rng.random() < 0.5 else side
        foot, radius = at[1] + near * height * 0.2, max(height * 0.038 * near, 2.4)
        y = at[1] - near * height * 0.34
        pole = max(radius * 0.24, 0.9)
        canvas.polygon([(x - pole, y), (x + pole, y), (x + pole, foot), (x - pole, foot)], LIGHT)
        canvas.ellipse((x, y), (radius, radius * 1.25), LIGHT)
        lamps.append(Lamp(x, y, foot, radius))
    return lamps
