"""Which paintings a person annotates: a share that covers the collection, and can grow."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from annotate.errors import UserError

Floats = NDArray[np.float32]

_CELLS = 4  # the composition: mean colours of 4 x 4 places
_RANKS = 16  # the palette: every sixteenth of the sorted values
_MISS = 0.01  # chance that no candidate of a draw is among the best; sets how many are drawn


def share(total: int, fraction: float) -> int:
    """How many of `total` a fraction is: rounded, and at least one where it is above zero."""
    return max(round(total * fraction), 1 if fraction > 0 and total else 0)


def draw_random(keys: Collection[str], count: int, earlier: Collection[str], seed: int) -> set[str]:
    """`count` keys drawn evenly, the earlier ones among them.

    The order in which keys are drawn depends on the seed and the collection alone, so a larger count only adds.
    """
    order = sorted(keys)
    np.random.default_rng(seed).shuffle(order)
    return _fill(order, count, earlier)


def draw_spread(
    thumbnails: Mapping[str, NDArray[np.uint8]], count: int, earlier: Collection[str], seed: int
) -> set[str]:
    """`count` keys such that every painting has a similar one among them, the earlier ones included.

    Greedy facility location: each step adds, of some drawn candidates, the painting that brings the whole
    collection nearest to the chosen ones. Unlike farthest-point sampling it does not run after outliers.

    Args:
        thumbnails: (S, S, 3) uint8 of every painting, by key.
        count: how many to choose altogether.
        earlier: chosen before; they stay, and count.
        seed: of the candidates drawn.

    Source: Mirzasoleiman et al., Lazier Than Lazy Greedy, AAAI 2015, algorithm 1.
    """
    order = sorted(thumbnails)
    chosen = {key for key in earlier if key in thumbnails}
    missing = count - len(chosen)
    if missing <= 0:
        return chosen
    looks = describe([thumbnails[key] for key in order])  # (N, D)
    # distance of each painting to the nearest chosen one; before the first, farther than any can be
    nearest: Floats = np.full(len(order), 2 * np.sqrt((looks**2).sum(1).max()), np.float32)
    is_chosen = np.array([key in chosen for key in order])
    if chosen:
        nearest = _distances(looks, np.flatnonzero(is_chosen)).min(1)
    random = np.random.default_rng(seed)
    drawn = math.ceil((len(order) - len(chosen)) / missing * math.log(1 / _MISS))
    for _ in range(min(missing, len(order) - len(chosen))):
        left = np.flatnonzero(~is_chosen)
        candidates = random.choice(left, min(drawn, len(left)), replace=False)
        reached = np.minimum(nearest[:, None], _distances(looks, candidates))  # (N, candidates)
        best = int(np.argmin(reached.sum(0)))
        nearest = reached[:, best]
        is_chosen[candidates[best]] = True
    return {key for key, taken in zip(order, is_chosen, strict=True) if taken}


def describe(thumbnails: Sequence[NDArray[np.uint8]]) -> Floats:
    """How paintings look, as points: near ones look alike. (N, S, S, 3) uint8 -> (N, D)

    Lightness and two opponent colours of each place (the composition), and their distribution over the
    painting whatever the place (the palette); both weigh the same.
    """
    rgb = np.stack(thumbnails).astype(np.float32) / 255  # (N, S, S, 3)
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    colours = np.stack([rgb.mean(-1), red - green, (red + green) / 2 - blue], -1)  # (N, S, S, 3)
    count, side = len(colours), colours.shape[1]
    step = side // _CELLS
    grid = colours.reshape(count, _CELLS, step, _CELLS, step, 3).mean((2, 4)).reshape(count, -1)
    ranked = np.sort(colours.reshape(count, side * side, 3), axis=1)
    palette = ranked[:, :: side * side // _RANKS].reshape(count, -1)
    parts = [part / max(float(part.std(0).mean()), 1e-6) / np.sqrt(part.shape[1]) for part in (grid, palette)]
    looks: Floats = np.concatenate(parts, 1).astype(np.float32)
    looks -= looks.mean(0)
    return looks


def listed(lines: Sequence[str], keys: Collection[str]) -> set[str]:
    """The keys of a `--keys` file; empty lines and lines that start with `# ` are none.

    Raises:
        UserError: a key that no painting has.
    """
    wanted = {line.strip() for line in lines if line.strip() and not line.startswith("# ")}
    strange = sorted(wanted - set(keys))
    if strange:
        more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
        raise UserError(
            f"--keys: no painting has the key {strange[0]!r}{more}; "
            "a key is the path inside the folder without its suffix, as in paintings.jsonl"
        )
    return wanted


def _fill(order: Sequence[str], count: int, earlier: Collection[str]) -> set[str]:
    chosen = set(earlier) & set(order)
    for key in order:
        if len(chosen) >= count:
            break
        chosen.add(key)
    return chosen


def _distances(looks: Floats, rows: NDArray[np.intp]) -> Floats:
    """Distance of every painting to some of them. (N, D) -> (N, rows)"""
    others = looks[rows]
    squares = (looks**2).sum(1)[:, None] + (others**2).sum(1) - 2 * looks @ others.T
    found: Floats = np.sqrt(np.maximum(squares, 0))
    return found
