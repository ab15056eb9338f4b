"""The demo's painter: composes scenes by the seed document's rules, in palette-knife strokes.

Real paintings carry rights, so the demo paints its own. What it composed is known exactly, which makes the
painter the project's reproducible benchmark too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from annotate.files import whole_file
from annotate.masks import Encoding, write_mask
from annotate.progress import progress
from demo.scene import BUILDINGS, LIGHT, ROAD, SKY, TREES, WATER, Composition, Floats, compose

OVERSAMPLE = 2  # strokes are drawn at twice the size and averaged down, so their edges are smooth


@dataclass(frozen=True)
class Scene:
    """One painting and the truth about it."""

    painting: NDArray[np.uint8]  # (H, W, 3)
    ids: NDArray[np.uint8]  # (H, W) raw COCO-Stuff ids


def paint(seed: int, size: tuple[int, int] = (256, 320)) -> Scene:
    """Compose and paint one scene.

    Args:
        seed: the same seed and size give the same scene.
        size: (H, W) in pixels.
    """
    rng = np.random.default_rng([seed, 8191])
    composition = compose(rng, size)
    return Scene(render(rng, composition), composition.ids)


def paint_folder(folder: Path, truth: Path, count: int, seed: int = 0) -> list[str]:
    """Paint `count` scenes of about 256 x 320 pixels, each with its own seed and size.

    Args:
        folder: gets `scene-NNN.png`; what is there already is not painted again.
        truth: gets the raw mask `scene-NNN.png` of each.
        count: how many.
        seed: the first scene's; scene n has seed + n.

    Returns:
        The keys.
    """
    keys = []
    with progress("Painting scenes", count) as advance:
        for number in range(count):
            key = f"scene-{seed + number:03d}"
            keys.append(key)
            if not ((folder / f"{key}.png").exists() and (truth / f"{key}.png").exists()):
                rng = np.random.default_rng([seed + number, 4099])
                size = (int(rng.integers(30, 35)) * 8, int(rng.integers(38, 43)) * 8)
                scene = paint(seed + number, size)
                write_mask(truth / f"{key}.png", scene.ids, Encoding.RAW)
                with whole_file(folder / f"{key}.png") as temporary:
                    Image.fromarray(scene.painting).save(temporary, format="PNG")
            advance()
    return keys


# Each class's own colours. Trees and what they throw on wet ground share theirs, so colour alone does not tell.
PALETTES: dict[int, list[list[tuple[int, int, int]]]] = {
    SKY: [
        [(18, 28, 84), (28, 46, 120), (44, 70, 150), (70, 60, 140)],
        [(12, 40, 90), (24, 74, 130), (52, 110, 160)],
    ],
    BUILDINGS: [
        [(70, 44, 90), (110, 60, 96), (150, 86, 80), (56, 50, 110)],
        [(96, 64, 60), (140, 92, 66), (72, 52, 76)],
    ],
    TREES: [
        [(214, 72, 28), (240, 130, 30), (250, 190, 60), (160, 40, 40), (90, 110, 40)],
        [(60, 130, 50), (120, 170, 50), (220, 190, 60), (40, 90, 70), (230, 120, 50)],
        [(190, 50, 90), (230, 90, 70), (250, 170, 70), (120, 40, 90)],
    ],
    ROAD: [
        [(86, 66, 110), (130, 84, 100), (180, 110, 80), (60, 60, 100)],
        [(110, 86, 84), (160, 120, 90), (74, 70, 96)],
    ],
    WATER: [
        [(20, 60, 110), (34, 96, 150), (24, 120, 140), (60, 80, 150)],
        [(16, 76, 100), (40, 120, 150), (30, 60, 120)],
    ],
    LIGHT: [[(255, 236, 170), (255, 214, 120)]],
}


def render(rng: np.random.Generator, scene: Composition) -> NDArray[np.uint8]:
    """Cover every class with knife strokes: broad ones first, then smaller ones, lamps last; (H, W, 3) uint8."""
    ids = scene.ids
    height, width = ids.shape
    palettes = {k: np.array(v[rng.integers(len(v))], float) for k, v in PALETTES.items()}
    unit = height / 256
    canvas = Image.new("RGB", (width * OVERSAMPLE, height * OVERSAMPLE), (30, 30, 60))
    draw = ImageDraw.Draw(canvas)
    for length, share in ((26.0, 0.012), (15.0, 0.022), (9.5, 0.026)):
        count = int(height * width * share / unit**2)
        ys, xs = rng.uniform(0, height, count), rng.uniform(0, width, count)
        _strokes(rng, draw, scene, palettes, ys, xs, length * unit)
    small = np.argwhere(ids == LIGHT).astype(np.float64)
    if len(small):
        _strokes(rng, draw, scene, palettes, small[:, 0] + 0.5, small[:, 1] + 0.5, 3.0 * unit)
    painted = canvas.resize((width, height), Image.Resampling.BOX)
    return _knife_relief(rng, np.asarray(painted, float))


def _strokes(
    rng: np.random.Generator,
    draw: ImageDraw.ImageDraw,
    scene: Composition,
    palettes: dict[int, Floats],
    ys: Floats,
    xs: Floats,
    length: float,
) -> None:
    """Lay one stroke at each point, in the colour, direction and shape of the class beneath it."""
    ids = scene.ids
    height, width = ids.shape
    kinds = ids[ys.astype(int).clip(0, height - 1), xs.astype(int).clip(0, width - 1)]
    colours = _colours(rng, scene, kinds, palettes, ys, xs)
    angles = _angles(rng, kinds, scene.vanishing, ys, xs)
    long = (
        length
        * rng.uniform(0.6, 1.2, len(ys))
        * np.select([kinds == LIGHT, kinds == TREES], [0.5, 0.75], 1.0)
    )
    broad = long * rng.uniform(0.28, 0.5, len(ys))
    along = np.stack([np.cos(angles), np.sin(angles)], 1) * long[:, None] / 2  # (N, 2) as x, y
    across = np.stack([-np.sin(angles), np.cos(angles)], 1) * broad[:, None] / 2
    centre = np.stack([xs, ys], 1)
    skew = rng.uniform(-0.35, 0.35, (len(ys), 1))
    corners = np.stack(
        [
            centre - along - across,
            centre + along * (1 + skew) - across,
            centre + along + across,
            centre - along * (1 - skew) + across,
        ],
        1,
    )  # (N, 4, 2)
    inside = _stays_inside(ids, kinds, corners)
    for corner, colour in zip(
        (corners[inside] * OVERSAMPLE).reshape(-1, 8).tolist(), colours[inside].tolist(), strict=True
    ):
        draw.polygon(corner, fill=tuple(int(c) for c in colour))


def _stays_inside(ids: NDArray[np.uint8], kinds: NDArray[np.uint8], corners: Floats) -> NDArray[np.bool_]:
    """A knife respects the drawing: strokes whose corners leave their class by much are not laid."""
    height, width = ids.shape
    pulled = corners * 0.75 + corners.mean(1, keepdims=True) * 0.25
    x = pulled[..., 0].astype(int).clip(0, width - 1)
    y = pulled[..., 1].astype(int).clip(0, height - 1)
    same: NDArray[np.bool_] = (ids[y, x] == kinds[:, None]).sum(1) >= 4
    return same


def _angles(
    rng: np.random.Generator, kinds: NDArray[np.uint8], vanishing: tuple[float, float], ys: Floats, xs: Floats
) -> Floats:
    """Direction of each stroke, in radians: the road runs to the vanishing point, reflections hang, leaves swirl."""
    towards = np.arctan2(ys - vanishing[1], xs - vanishing[0])
    swirl = np.arctan2(ys - vanishing[1] * 0.6, xs - vanishing[0]) + np.pi / 2
    mean = np.select(
        [kinds == ROAD, kinds == WATER, kinds == TREES, kinds == SKY, kinds == BUILDINGS],
        [
            np.where(rng.random(len(ys)) < 0.55, towards, np.pi / 2),
            np.where(rng.random(len(ys)) < 0.75, 0.0, np.pi / 2),
            swirl,
            0.5,
            np.pi / 2,
        ],
        np.pi / 2,
    )
    spread = np.select([kinds == TREES, kinds == SKY, kinds == WATER], [0.8, 0.35, 0.1], 0.15)
    return np.asarray(mean + rng.normal(0, 1, len(ys)) * spread)


def _colours(
    rng: np.random.Generator,
    scene: Composition,
    kinds: NDArray[np.uint8],
    palettes: dict[int, Floats],
    ys: Floats,
    xs: Floats,
) -> Floats:
    """(N, 3) colour of each stroke: its class's palette, lit by the lamps, with reflections on wet ground."""
    height, horizon = scene.ids.shape[0], scene.vanishing[1]
    colours = np.zeros((len(ys), 3))
    for kind, palette in palettes.items():
        chosen = kinds == kind
        colours[chosen] = palette[rng.integers(len(palette), size=int(chosen.sum()))]
    ground = (kinds == ROAD) | (kinds == WATER)
    above = (horizon - 1.3 * (ys - horizon)).clip(0, height - 1).astype(int)
    mirrored = scene.ids[above, xs.astype(int).clip(0, scene.ids.shape[1] - 1)]
    for kind in (TREES, BUILDINGS, LIGHT):  # what stands above lies upside down in the wet
        wet = ground & (mirrored == kind) & (rng.random(len(ys)) < 0.5)
        colours[wet] = (
            0.3 * colours[wet] + 0.7 * palettes[kind][rng.integers(len(palettes[kind]), size=int(wet.sum()))]
        )
    glow = np.zeros((len(ys), 1))
    light = np.zeros((len(ys), 3))
    for lamp in scene.lamps:
        near = np.exp(-(((xs - lamp.x) ** 2 + (ys - lamp.y) ** 2) / (2 * (lamp.radius * 4.5) ** 2)))
        below = (
            np.exp(-(((xs - lamp.x) / (lamp.radius * 1.6)) ** 2))
            * ground
            * np.exp(-(ys - horizon) / (height * 0.25))
        )
        weight = np.maximum(near * 0.8, below * 0.9)[:, None]
        light += weight * lamp.colour
        glow += weight
    mixed = colours + glow.clip(0, 1) * 0.75 * (light / np.maximum(glow, 1e-6) - colours)
    windows = (kinds == BUILDINGS) & (rng.random(len(ys)) < 0.12)
    mixed[windows] = (250, 205, 110)
    mixed[kinds == LIGHT] = 0.3 * mixed[kinds == LIGHT] + 0.7 * np.array([255, 240, 190])
    return np.asarray(
        (mixed * rng.normal(1, 0.09, (len(ys), 1)) + rng.normal(0, 7, (len(ys), 3))).clip(0, 255)
    )


def _knife_relief(rng: np.random.Generator, painted: Floats) -> NDArray[np.uint8]:
    """Light from the upper left on the ridges of the paint."""
    grey = painted.mean(2)
    ridge = np.zeros_like(grey)
    ridge[1:, 1:] = grey[1:, 1:] - grey[:-1, :-1]
    canvas = rng.normal(0, 2.0, grey.shape)
    lit = painted + (0.18 * ridge + canvas)[..., None]
    return np.asarray(lit.round().clip(0, 255), np.uint8)
