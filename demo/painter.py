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
from demo.palette import Underpainting
from demo.scene import BUILDINGS, LIGHT, ROAD, SKY, TREES, TRUNK, WATER, Composition, Floats, compose

OVERSAMPLE = 2  # strokes are drawn at twice the size and averaged down, so their edges are smooth
# broad strokes first, then smaller ones: length in pixels of a canvas 256 high, and strokes a pixel
LAYERS = ((24.0, 0.012), (15.0, 0.022), (9.0, 0.034))


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
        for number in range(seed, seed + count):
            key = f"scene-{number:03d}"
            keys.append(key)
            if not ((folder / f"{key}.png").exists() and (truth / f"{key}.png").exists()):
                rng = np.random.default_rng([number, 4099])
                size = (int(rng.integers(30, 35)) * 8, int(rng.integers(38, 43)) * 8)
                scene = paint(number, size)
                write_mask(truth / f"{key}.png", scene.ids, Encoding.RAW)
                with whole_file(folder / f"{key}.png") as temporary:
                    Image.fromarray(scene.painting).save(temporary, format="PNG")
            advance()
    return keys


def render(rng: np.random.Generator, scene: Composition) -> NDArray[np.uint8]:
    """Cover a composition with knife strokes, lamps last; (H, W, 3) uint8."""
    ids = scene.ids
    height, width = ids.shape
    unit = height / 256
    colours = Underpainting(rng, scene)
    ground = Image.fromarray(colours.picture().astype(np.uint8))
    canvas = ground.resize((width * OVERSAMPLE, height * OVERSAMPLE), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(canvas)
    for length, share in LAYERS:
        count = int(height * width * share / unit**2)
        ys, xs = rng.uniform(0, height, count), rng.uniform(0, width, count)
        _lay(rng, draw, scene, colours, ys, xs, length * unit)
    lamps = np.argwhere(ids == LIGHT).astype(float) + 0.5
    lamps = lamps[rng.random(len(lamps)) < 0.5 / unit]
    _lay(rng, draw, scene, colours, lamps[:, 0], lamps[:, 1], 4.0 * unit)
    painted = canvas.resize((width, height), Image.Resampling.BOX)
    weave = rng.normal(0, 2.5, (height, width, 1))  # of the canvas
    return np.asarray((np.asarray(painted, float) + weave).round().clip(0, 255), np.uint8)


def _lay(
    rng: np.random.Generator,
    draw: ImageDraw.ImageDraw,
    scene: Composition,
    colours: Underpainting,
    ys: Floats,
    xs: Floats,
    length: float,
) -> None:
    """Lay one stroke at each place, in the direction and shape of the class beneath it."""
    ids = scene.ids
    height, width = ids.shape
    at = ys.astype(int).clip(0, height - 1), xs.astype(int).clip(0, width - 1)
    kinds = ids[at]
    corners = _corners(rng, kinds, _angles(rng, scene, kinds, ys, xs), ys, xs, length)
    lift = rng.normal(0, 0.07, len(ys))
    windows = (kinds == BUILDINGS) & (rng.random(len(ys)) < 0.1) & (length < height / 20)
    lift[windows] = 0.75
    paint = colours.colours(ys, xs, lift) + rng.normal(0, 6, (len(ys), 3))
    kept = _stays_inside(ids, kinds, corners)
    faces = (corners[kept] * OVERSAMPLE).reshape(-1, 8).tolist()
    fills = paint[kept].clip(0, 255).astype(int)
    # the knife leaves a ridge along one long side, which catches the light, and a groove along the other
    relief = np.where(kinds[kept] == LIGHT, 0.05, 0.25)[:, None]
    ridges = (fills + (255 - fills) * relief).astype(int).tolist()
    grooves = (fills * (1 - relief)).astype(int).tolist()
    for face, fill, ridge, groove in zip(faces, fills.tolist(), ridges, grooves, strict=True):
        draw.polygon(face, fill=tuple(fill))
        draw.line(face[:4], fill=tuple(ridge))
        draw.line(face[4:], fill=tuple(groove))


def _corners(
    rng: np.random.Generator, kinds: NDArray[np.uint8], angles: Floats, ys: Floats, xs: Floats, length: float
) -> Floats:
    """(N, 4, 2) corners (x, y) of N strokes: skewed lozenges, the first two along the upper long side."""
    count = len(ys)
    long = (
        length * rng.uniform(0.6, 1.2, count) * np.select([kinds == LIGHT, kinds == TREES], [0.7, 0.8], 1.0)
    )
    broad = long * rng.uniform(0.28, 0.5, count)
    flip = np.where(np.cos(angles) < 0, -1.0, 1.0)  # so that the light comes from above everywhere
    along = np.stack([np.cos(angles), np.sin(angles)], 1) * (flip * long)[:, None] / 2  # (N, 2)
    across = np.stack([-np.sin(angles), np.cos(angles)], 1) * (flip * broad)[:, None] / 2
    centre = np.stack([xs, ys], 1)
    skew = rng.uniform(-0.35, 0.35, (count, 1))
    edges = (
        centre - along * (1 + skew) - across,
        centre + along - across,
        centre + along * (1 + skew) + across,
        centre - along + across,
    )
    return np.stack(edges, 1)


def _stays_inside(ids: NDArray[np.uint8], kinds: NDArray[np.uint8], corners: Floats) -> NDArray[np.bool_]:
    """A knife respects the drawing: strokes whose corners leave their class by much are not laid."""
    height, width = ids.shape
    pulled = corners * 0.75 + corners.mean(1, keepdims=True) * 0.25
    x = pulled[..., 0].astype(int).clip(0, width - 1)
    y = pulled[..., 1].astype(int).clip(0, height - 1)
    return np.asarray((ids[y, x] == kinds[:, None]).all(1))


def _angles(
    rng: np.random.Generator, scene: Composition, kinds: NDArray[np.uint8], ys: Floats, xs: Floats
) -> Floats:
    """(N,) radians: the road runs to the vanishing point, reflections hang, water lies, leaves radiate."""
    height, width = scene.ids.shape
    x, y = scene.vanishing
    count = len(ys)
    things = scene.things[ys.astype(int).clip(0, height - 1), xs.astype(int).clip(0, width - 1)]
    centres = np.array([(x, y), *scene.crowns, *[(x, y)] * (TRUNK - len(scene.crowns))])
    leaves = np.arctan2(ys - centres[things, 1], xs - centres[things, 0])
    upright = np.full(count, np.pi / 2)
    towards = np.arctan2(ys - y, xs - x)
    round_the_glow = np.arctan2(ys - y, xs - x) + np.pi / 2
    chance = rng.random(count)
    mean = np.select(
        [kinds == ROAD, kinds == WATER, (kinds == TREES) & (things != TRUNK), kinds == SKY],
        [
            np.select([chance < 0.45, chance < 0.8], [towards, upright * 0.0], upright),
            np.where(chance < 0.8, 0.0, upright),
            leaves,
            round_the_glow,
        ],
        upright,
    )
    spread = np.select([kinds == TREES, kinds == SKY], [0.6, 0.3], 0.12)
    return np.asarray(mean + rng.normal(0, 1, count) * spread)
