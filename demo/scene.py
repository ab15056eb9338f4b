"""What the demo paints: scenes composed by the seed document's rules.

A low viewpoint, so the ground takes about a third of the canvas; a street, a canal, or both; trees that cover
much of a dark blue sky; houses behind them; a few symbolic street lights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

ROAD, WATER, TREES, SKY, BUILDINGS, LIGHT = 148, 177, 168, 156, 95, 129  # raw COCO-Stuff ids
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Lamp:
    """A street light: its head's centre, foot and radius, in pixels."""

    x: float
    y: float
    foot: float
    radius: float
    colour: Floats


@dataclass(frozen=True)
class Composition:
    """Where everything stands."""

    ids: NDArray[np.uint8]  # (H, W) raw COCO-Stuff ids
    lamps: tuple[Lamp, ...]
    vanishing: tuple[float, float]  # the point (x, y) in pixels that the road runs to; y is the horizon


def compose(rng: np.random.Generator, size: tuple[int, int]) -> Composition:
    """Lay out the classes: sky behind, buildings, ground, trees over the sky, a few lamps in front.

    Args:
        rng: the scene's own random numbers.
        size: (H, W) in pixels.
    """
    height, width = size
    canvas = Image.new("L", (width, height), SKY)
    draw = ImageDraw.Draw(canvas)
    horizon = height * rng.uniform(0.56, 0.68)  # a low viewpoint: the ground takes about a third
    vanishing = (width * rng.uniform(0.3, 0.7), horizon)
    if rng.random() < 0.8:
        _buildings(rng, draw, size, vanishing)
    _ground(rng, draw, size, vanishing)
    _trees(rng, draw, size, vanishing)
    lamps = _lamps(rng, draw, size, vanishing)
    return Composition(np.asarray(canvas).copy(), tuple(lamps), vanishing)


def _buildings(
    rng: np.random.Generator, draw: ImageDraw.ImageDraw, size: tuple[int, int], at: tuple[float, float]
) -> None:
    height, width = size
    x, end = sorted(rng.uniform(-0.1, 1.1, 2) * width)
    end = max(end, x + width * 0.35)
    while x < end:
        wide = width * rng.uniform(0.08, 0.2)
        top = at[1] - height * rng.uniform(0.12, 0.4)
        draw.rectangle((x, top, x + wide, at[1] + 1), fill=BUILDINGS)
        if rng.random() < 0.5:  # a gable
            draw.polygon(
                [(x, top), (x + wide / 2, top - wide * rng.uniform(0.3, 0.7)), (x + wide, top)],
                fill=BUILDINGS,
            )
        x += wide * rng.uniform(0.9, 1.2)


def _ground(
    rng: np.random.Generator, draw: ImageDraw.ImageDraw, size: tuple[int, int], at: tuple[float, float]
) -> None:
    height, width = size
    kind = rng.choice(["road", "water", "both"], p=[0.45, 0.25, 0.3])
    draw.rectangle((0, at[1], width, height), fill=WATER if kind == "water" else ROAD)
    if kind == "both":  # the road runs beside a canal
        left, right = (at[0], at[0] + width * rng.uniform(0.02, 0.06)), width * rng.uniform(0.35, 0.75)
        shore = [(left[0], at[1]), (width + 1, at[1]), (width + 1, height), (right, height)]
        if rng.random() < 0.5:
            shore = [(left[0], at[1]), (-1, at[1]), (-1, height), (width - right, height)]
        draw.polygon(shore, fill=WATER)


def _trees(
    rng: np.random.Generator, draw: ImageDraw.ImageDraw, size: tuple[int, int], at: tuple[float, float]
) -> None:
    height, width = size
    sides = [foot for foot in (rng.uniform(-0.05, 0.2), rng.uniform(0.8, 1.05)) if rng.random() < 0.9]
    for foot in [*sides, *rng.uniform(0.05, 0.95, rng.integers(2, 5))]:
        near = (
            abs(foot * width - at[0]) / width
        )  # the farther from the vanishing point, the nearer and larger
        scale = height * (0.2 + 0.62 * near) * rng.uniform(0.85, 1.2)
        x, ground = foot * width, at[1] + height * 0.25 * near
        crown = ground - scale * rng.uniform(0.95, 1.15)
        trunk = scale * rng.uniform(0.03, 0.05)
        stem = [(x - trunk, ground), (x + trunk, ground), (x + trunk / 2, crown), (x - trunk / 2, crown)]
        draw.polygon(stem, fill=TREES)
        for _ in range(rng.integers(16, 26)):
            blob = scale * rng.uniform(0.12, 0.27)
            cx, cy = x + rng.normal(0, scale * 0.3), crown + rng.normal(0, scale * 0.2)
            draw.ellipse((cx - blob, cy - blob * 0.8, cx + blob, cy + blob * 0.8), fill=TREES)


def _lamps(
    rng: np.random.Generator, draw: ImageDraw.ImageDraw, size: tuple[int, int], at: tuple[float, float]
) -> list[Lamp]:
    height, width = size
    lamps = []
    side = rng.choice([-1.0, 1.0])
    for k in range(rng.integers(2, 5)):
        near = rng.uniform(0.75, 1.0) * 0.62**k  # a row that shrinks towards the vanishing point
        x = at[0] + side * near * width * 0.42
        side = -side if rng.random() < 0.5 else side
        foot, radius = at[1] + near * height * 0.22, max(height * 0.035 * near, 2.2)
        y = at[1] - near * height * 0.34
        pole = max(radius * 0.22, 0.8)
        draw.rectangle((x - pole, y, x + pole, foot), fill=LIGHT)
        draw.ellipse((x - radius, y - radius * 1.25, x + radius, y + radius * 1.25), fill=LIGHT)
        warm = np.array([255.0, rng.uniform(205, 240), rng.uniform(110, 190)])
        lamps.append(Lamp(x, y, foot, radius, warm))
    return lamps
