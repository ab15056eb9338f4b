"""The painter's colours: what each place of a scene would be before the knife breaks it up.

Each class has ramps from its deepest shade to its brightest; light moves a place up its ramp, so that bright
paint stays vivid instead of fading to white. Wet ground shows what stands above it upside down, which is why
colour alone does not tell the classes apart.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from demo.scene import BUILDINGS, LIGHT, ROAD, SKY, TREES, TRUNK, WATER, Composition, Floats

# From dark to bright. A scene draws some of them for its trees and houses, and one for each other class.
RAMPS: dict[int, list[list[tuple[int, int, int]]]] = {
    SKY: [
        [(10, 14, 56), (18, 32, 100), (30, 62, 156), (62, 104, 196), (132, 130, 200), (226, 170, 150)],
        [(8, 24, 60), (12, 50, 104), (20, 88, 150), (52, 130, 186), (130, 160, 180), (236, 190, 140)],
        [(22, 10, 62), (44, 24, 110), (72, 44, 156), (110, 80, 190), (176, 110, 180), (240, 160, 140)],
    ],
    BUILDINGS: [
        [(34, 22, 62), (72, 40, 92), (126, 58, 98), (184, 88, 84), (232, 150, 84), (255, 220, 140)],
        [(30, 30, 60), (64, 58, 84), (116, 84, 84), (170, 118, 86), (222, 166, 96), (255, 226, 150)],
        [(20, 34, 72), (38, 66, 110), (76, 98, 136), (146, 122, 124), (222, 160, 110), (255, 222, 150)],
    ],
    TREES: [
        [(60, 18, 44), (124, 24, 36), (206, 48, 24), (246, 112, 18), (255, 186, 44), (255, 238, 150)],
        [(14, 46, 58), (18, 88, 60), (62, 146, 46), (152, 196, 40), (242, 214, 60), (255, 244, 160)],
        [(52, 16, 70), (124, 24, 92), (212, 40, 92), (246, 96, 82), (255, 172, 84), (255, 234, 160)],
        [(66, 36, 30), (130, 70, 20), (200, 120, 20), (244, 172, 30), (255, 214, 70), (255, 244, 170)],
    ],
    ROAD: [
        [(28, 20, 60), (62, 42, 96), (108, 70, 116), (160, 104, 108), (220, 150, 90), (255, 226, 150)],
        [(36, 28, 48), (76, 56, 76), (124, 84, 84), (176, 118, 84), (226, 162, 84), (255, 228, 150)],
    ],
    WATER: [
        [(6, 20, 64), (10, 48, 108), (18, 92, 150), (44, 142, 176), (130, 186, 176), (246, 232, 170)],
        [(8, 30, 56), (10, 66, 92), (16, 112, 124), (56, 156, 146), (150, 196, 150), (250, 236, 160)],
    ],
    LIGHT: [
        [(96, 66, 70), (170, 110, 60), (236, 170, 70), (255, 214, 110), (255, 238, 170), (255, 250, 220)]
    ],
}
TRUNK_RAMP = [(24, 12, 40), (48, 24, 52), (84, 40, 50), (136, 66, 44), (196, 110, 50), (246, 180, 90)]
_SHADES = 64


class Underpainting:
    """Colour of every place; `shade` tells how far up its ramp a place is."""

    def __init__(self, rng: np.random.Generator, scene: Composition) -> None:
        self._ramps, which = _ramps(rng, scene)
        size = scene.ids.shape
        self.shade = _base_shade(scene) + 0.2 * smooth_noise(rng, size, size[0] / 14) + _light(scene)
        self.shade += 0.12 * smooth_noise(rng, size, size[0] / 40)
        self.which = which
        self._reflect(rng, scene)

    def colours(self, ys: Floats, xs: Floats, lift: Floats) -> Floats:
        """(N, 3) at N places, each `lift` further up its ramp."""
        height, width = self.shade.shape
        at = ys.astype(int).clip(0, height - 1), xs.astype(int).clip(0, width - 1)
        step = ((self.shade[at] + lift).clip(0, 0.999) * _SHADES).astype(int)
        return np.asarray(self._ramps[self.which[at], step])

    def picture(self) -> Floats:
        """(H, W, 3) all of it, a little darker: what shows between the strokes."""
        step = ((self.shade - 0.12).clip(0, 0.999) * _SHADES).astype(int)
        return np.asarray(self._ramps[self.which, step])

    def _reflect(self, rng: np.random.Generator, scene: Composition) -> None:
        """Give wet ground, in upright streaks, the paint of what stands above it."""
        height, width = scene.ids.shape
        horizon = scene.vanishing[1]
        ys, xs = np.nonzero((scene.ids == ROAD) | (scene.ids == WATER))
        stretch = rng.uniform(1.3, 1.9)  # seen from low down, reflections reach all the way to the viewer
        ripple = 4.0 * smooth_noise(rng, scene.ids.shape, height / 30)[ys, xs] * (ys - horizon) / height
        above = (horizon - 1 - stretch * (ys - horizon)).clip(0, height - 1).astype(int)
        beside = (xs + ripple * width / 30).clip(0, width - 1).astype(int)
        streaks = np.interp(xs + ripple, *_knots(rng, width))  # (N,) how wet each column is
        depth = (ys - horizon) / (height - horizon)
        wetness = streaks + np.where(scene.ids[ys, xs] == WATER, 0.25, 0.0) - 0.2 * depth
        bands = smooth_noise(rng, scene.ids.shape, height / 60)[ys, xs] * 0.35
        wet = (wetness + bands > 0.5) & (scene.ids[above, beside] != SKY)
        ys, xs, above, beside = ys[wet], xs[wet], above[wet], beside[wet]
        self.shade[ys, xs] = 0.85 * self.shade[above, beside] + 0.15 * self.shade[ys, xs]
        self.which[ys, xs] = self.which[above, beside]


def smooth_noise(rng: np.random.Generator, size: tuple[int, ...], grain: float) -> Floats:
    """(H, W) noise between -1 and 1 whose patches are about `grain` pixels wide."""
    height, width = size[0], size[1]
    coarse = rng.uniform(-1, 1, (int(height / grain) + 2, int(width / grain) + 2)).astype(np.float32)
    picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(picture, float)


def _ramps(rng: np.random.Generator, scene: Composition) -> tuple[Floats, NDArray[np.intp]]:
    """The scene's ramps, (R, _SHADES, 3), and which of them each place has, (H, W)."""
    table: list[Floats] = []
    which = np.zeros(scene.ids.shape, np.intp)
    for kind, ramps in RAMPS.items():
        here = scene.ids == kind
        drawn = rng.permutation(len(ramps))[: 2 if kind in (TREES, BUILDINGS) else 1]
        of_thing = rng.integers(len(drawn), size=256)  # every tree and house takes one of the scene's two
        which[here] = len(table) + of_thing[scene.things[here]] if len(drawn) > 1 else len(table)
        table += [_interpolated(ramps[k]) for k in drawn]
    which[(scene.ids == TREES) & (scene.things == TRUNK)] = len(table)
    return np.stack([*table, _interpolated(TRUNK_RAMP)]), which


def _interpolated(ramp: list[tuple[int, int, int]]) -> Floats:
    at = np.linspace(0, len(ramp) - 1, _SHADES)
    return np.stack([np.interp(at, np.arange(len(ramp)), [c[k] for c in ramp]) for k in range(3)], 1)


def _base_shade(scene: Composition) -> Floats:
    """(H, W) without any lamp: crowns are lit from above, the sky is darkest at the top."""
    height, width = scene.ids.shape
    rows = np.broadcast_to(np.arange(height, dtype=float)[:, None], (height, width))
    horizon = scene.vanishing[1]
    up = (horizon - rows) / horizon  # 1 at the top edge, 0 at the horizon
    shade = np.select(
        [scene.ids == kind for kind in (SKY, BUILDINGS, ROAD, WATER, LIGHT)],
        [0.36 - 0.24 * up, 0.3 + 0.1 * up, 0.34 + 0.1 * up, 0.28 + 0.1 * up, 0.35],
        0.42,
    )
    for number, (_, y) in enumerate(scene.crowns, 1):
        here = (scene.things == number) & (scene.ids == TREES)
        shade[here] += (0.004 * (y - rows[here]) * 256 / height).clip(-0.2, 0.15)
    shade[scene.things == TRUNK] = 0.2
    return np.asarray(shade)


def _light(scene: Composition) -> Floats:
    """(H, W) how far lamps, and the glow at the end of the street, move each place up its ramp."""
    height, width = scene.ids.shape
    rows, columns = np.mgrid[0:height, 0:width].astype(float)
    x, y = scene.vanishing
    reach = height * 0.3
    light = 0.38 * np.exp(-(((columns - x) / (1.3 * reach)) ** 2) - ((rows - y) / reach) ** 2)
    for lamp in scene.lamps:
        away = np.hypot(columns - lamp.x, rows - lamp.y) / lamp.radius
        light += 0.5 * np.exp(-((away / 4.5) ** 2)) + 0.45 * np.exp(-((away / 1.6) ** 2))
        below = np.exp(-(((columns - lamp.x) / (1.8 * lamp.radius)) ** 2)) * (rows > y)
        light += 0.5 * below * np.exp(-(rows - y).clip(0) / (height * 0.3))
    return np.asarray(light)


def _knots(rng: np.random.Generator, width: int) -> tuple[Floats, Floats]:
    """Places along the ground and how wet each is, to interpolate between."""
    at = np.sort(rng.uniform(0, width, 14))
    return at, rng.uniform(0.25, 1.1, len(at))
