"""What a painter's compositions have in common, learnt from the workspace's own masks, and what departs from it.

Nothing here knows a class or a kind of painting: shares, places, neighbours and the horizon are measured on the
masks that the generator learns from. A composition that departs is painted all the same; the words are there
because a generator has little to go by where its painter never went.
"""

from __future__ import annotations

import contextlib
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from annotate.errors import UserError
from annotate.files import whole_file
from annotate.masks import Encoding, read_mask
from annotate.workspace import Workspace

Ids = NDArray[np.uint8]
Floats = NDArray[np.float64]

SIDE = 96  # masks are compared on a grid of this many cells along each side, whatever their size
FEWEST = 3  # masks that a habit can be learnt from
MOST_SAID = 8  # departures in words; the largest ones
_LEAST = 0.01  # share of the canvas from which a class has a place worth speaking of
_SLACK, _SLACK_OF_FEW = (
    0.02,
    0.15,
)  # by how much any figure may differ without a word; the latter over their number
_ALL_HAVE = 10  # paintings that must have a class, each of them, before its absence is strange
_NEVER = 0.005  # what occurs less than this does not occur


@dataclass(frozen=True)
class Checked:
    """How a composition compares with the paintings."""

    departures: tuple[str, ...]  # the largest first
    nearest: str | None  # key of the painting that it is most like; None without masks to compare with


@dataclass(frozen=True)
class _Look:
    """What one mask shows, by class; shares of the canvas's height, width or area."""

    share: Floats  # (K,)
    free: float  # unlabelled
    middle: (
        Floats  # (K,) height of a class's middle above the canvas's lower border; NaN where there is little
    )
    above: Floats  # (K, K) columns in which the one lies above the other
    meets: Floats  # (K, K) length of their common border, in canvas sides
    ends: Floats  # (2, K) share of the uppermost and lowermost rows


class Habits:
    """Masks of a painter's paintings, and the range of what they show.

    Args:
        keys: of N paintings.
        grids: (N, SIDE, SIDE) shifted ids, of `to_grid`; 0 = unlabelled.
        names: of the shifted ids.
    """

    def __init__(self, keys: Sequence[str], grids: Ids, names: dict[int, str]) -> None:
        self.keys, self.grids, self.names = keys, grids, names
        self.ids = [int(one) for one in np.unique(grids) if one]
        self.labelled = [grid for grid in grids if np.count_nonzero(grid) > 0.2 * grid.size]
        self.looks = [_look(grid, self.ids) for grid in self.labelled]

    @property
    def ground(self) -> list[int]:
        """Ids that lie along the lower border of the paintings and not along the upper one."""
        if not self.looks:
            return []
        ends = np.sum([look.ends for look in self.looks], axis=0)  # (2, K)
        share = np.sum([look.share for look in self.looks], axis=0)
        lies_below = (ends[1] > 4 * ends[0]) & (ends[1] > share)
        return [one for one, below in zip(self.ids, lies_below, strict=True) if below]

    def horizons(self) -> list[float]:
        """How high the ground reaches in each painting."""
        return [_horizon(grid, self.ground) for grid in self.labelled]

    def departures(self, grid: Ids) -> list[str]:
        """In words, what this grid shows that the paintings do not; the largest departure first."""
        if len(self.looks) < FEWEST:
            return []
        strange = [one for one in np.unique(grid).tolist() if one and one not in self.ids]
        look = _look(grid, self.ids)
        said = [(9.0, f"no painting has {self._name(one)}") for one in strange]
        said += self._shares(look) + self._middles(look) + self._relations(look)
        said += self._horizon(grid, look.free)
        return [text for _, text in sorted(said, reverse=True)][:MOST_SAID]

    def nearest(self, grid: Ids) -> str | None:
        """The painting, or mirrored painting, whose classes lie most as this grid's do; None where it has none."""
        if not len(self.grids) or not grid.any():
            return None
        differ = [
            (self.grids[..., ::turn] != grid).mean(axis=(1, 2), where=grid != 0, dtype=np.float64)
            for turn in (1, -1)
        ]
        return self.keys[int(np.minimum(*differ).argmin())]

    def _shares(self, look: _Look) -> list[tuple[float, str]]:
        said = []
        for k, one in enumerate(self.ids):
            known = _Range([each.share[k] / (1 - each.free) for each in self.looks])
            least, most = float(look.share[k]), float(look.share[k] + look.free)  # the free may become it
            far = known.outside(least, most)
            if most == 0 and len(known.values) < _ALL_HAVE:
                continue
            here = f"{_verb(self._name(one), 'cover')} {_percent(least)} % of the canvas"
            if far > 0:
                said.append((far, f"{here}; in your paintings {known} %"))
        return said

    def _middles(self, look: _Look) -> list[tuple[float, str]]:
        said = []
        for k, one in enumerate(self.ids):
            values = [each.middle[k] for each in self.looks if not np.isnan(each.middle[k])]
            if np.isnan(look.middle[k]) or len(values) < FEWEST or look.free > look.share[k]:
                continue
            known = _Range(values)
            far = known.outside(look.middle[k], look.middle[k])
            if far > 0:
                where = f"{_verb(self._name(one), 'lie')} at {_percent(look.middle[k])} % of the height"
                said.append((far, f"{where}; in your paintings at {known} %"))
        return said

    def _relations(self, look: _Look) -> list[tuple[float, str]]:
        """Which classes lie above which, and which meet at all."""
        said = []
        for a, upper in enumerate(self.ids):
            for b, lower in enumerate(self.ids):
                together = [each for each in self.looks if each.share[a] > 0 and each.share[b] > 0]
                if len(together) < FEWEST:
                    continue  # too few paintings have both for a rule
                known = _Range([each.above[a, b] for each in together])
                far = known.outside(look.above[a, b], look.above[a, b]) - 1 / len(together)
                pair = f"{self._name(upper)} above {self._name(lower)}"
                if look.above[a, b] > known.most and far > 0:
                    text = f"{pair} in {_percent(look.above[a, b])} % of the columns; in your paintings {known} %"
                    said.append((far, f"no painting has {pair}" if known.most < _NEVER else text))
                    continue
                never = max(each.meets[a, b] for each in together) < _NEVER
                if a < b and never and look.meets[a, b] > 1 / len(together):
                    text = f"in no painting do {self._name(upper)} and {self._name(lower)} meet"
                    said.append((float(look.meets[a, b]), text))
        return said

    def _horizon(self, grid: Ids, free: float) -> list[tuple[float, str]]:
        ground = self.ground
        if not ground or free > 0.25:
            return []
        known, here = _Range(self.horizons()), _horizon(grid, ground)
        far = known.outside(here, here)
        if far <= 0:
            return []
        of = " or ".join(self._name(one) for one in ground)
        text = f"the horizon (of {of}) is at {_percent(here)} % of the height"
        return [(far, f"{text}; in your paintings at {known} %")]

    def _name(self, one: int) -> str:
        return self.names.get(one, f"class {one - 1}")


@dataclass(frozen=True)
class _Range:
    """What a figure is in the paintings, and how far a composition lies outside."""

    values: Sequence[float]

    @property
    def most(self) -> float:
        return max(self.values)

    def outside(self, least: float, most: float) -> float:
        """How far a figure known to lie in least..most is from the paintings', 0 or less where it is within.

        The next painting of the same hand may lie a little outside what the others show, the more so the fewer
        they are: the range is widened by a share of itself that shrinks with their number.
        """
        smallest, largest = min(self.values), max(self.values)
        slack = (largest - smallest) * (0.2 + 3 / len(self.values))
        slack += _SLACK + _SLACK_OF_FEW / len(self.values)
        return float(max(least - largest, smallest - most) - slack)

    def __str__(self) -> str:
        ends = _percent(min(self.values)), _percent(max(self.values))
        return ends[0] if ends[0] == ends[1] else "-".join(ends)


def check_composition(workspace: Workspace, ids: Ids) -> Checked:
    """Compare a composition with the masks of the workspace's own paintings.

    Args:
        ids: (H, W) shifted ids.
    """
    habits = read_habits(workspace)
    grid = to_grid(ids)
    return Checked(tuple(habits.departures(grid)), habits.nearest(grid))


def read_habits(workspace: Workspace) -> Habits:
    """Learn from `masks/shifted`, what the generator learns from. A damaged mask teaches nothing."""
    keys, grids = _read_grids(workspace)
    names = {one.id + 1: one.name for one in workspace.settings().classes.classes}
    return Habits(keys, grids, names)


def to_grid(ids: Ids) -> Ids:
    """(H, W) ids of any size to (SIDE, SIDE), each cell the id at its middle."""
    rows, columns = (((np.arange(SIDE) + 0.5) / SIDE * length).astype(int) for length in ids.shape)
    grid: Ids = ids[np.ix_(rows, columns)]
    return grid


def _read_grids(workspace: Workspace) -> tuple[list[str], Ids]:
    """Grids of all shifted masks; those that were looked at before come from `masks/shifted/grids.npz`."""
    cache = workspace.masks("shifted") / "grids.npz"
    before = _read_cache(cache)
    found: dict[str, tuple[str, Ids]] = {}
    for key in workspace.keys_with_mask("shifted"):
        path = workspace.mask("shifted", key)
        state = path.stat()
        stamp = f"{state.st_mtime_ns} {state.st_size}"
        if key in before and before[key][0] == stamp:
            found[key] = before[key]
            continue
        with contextlib.suppress(UserError):
            found[key] = (stamp, to_grid(read_mask(path, Encoding.SHIFTED)))
    grids = np.stack([grid for _, grid in found.values()]) if found else np.zeros((0, SIDE, SIDE), np.uint8)
    stamps = {key: stamp for key, (stamp, _) in found.items()}
    if stamps != {key: stamp for key, (stamp, _) in before.items()}:
        with contextlib.suppress(UserError), whole_file(cache) as temporary, temporary.open("wb") as stream:
            np.savez_compressed(stream, keys=list(stamps), stamps=list(stamps.values()), grids=grids)
    return list(found), grids


def _read_cache(path: Path) -> dict[str, tuple[str, Ids]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            keys, stamps, grids = file["keys"].tolist(), file["stamps"].tolist(), file["grids"]
        found = {key: (stamp, grid) for key, stamp, grid in zip(keys, stamps, grids, strict=True)}
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return {}  # none yet, or damaged: made anew
    return found if grids.shape[1:] == (SIDE, SIDE) else {}


def _look(grid: Ids, ids: Sequence[int]) -> _Look:
    """Measure one grid."""
    shown = (
        np.stack([grid == one for one in ids]) if ids else np.zeros((0, SIDE, SIDE), np.bool_)
    )  # (K, h, w)
    share = shown.mean(axis=(1, 2))
    height = 1 - (np.arange(SIDE) + 0.5) / SIDE  # of each row above the lower border
    count = shown.sum(axis=1)  # (K, w)
    with np.errstate(invalid="ignore"):
        column = np.einsum("khw,h->kw", shown, height) / count  # NaN where a column has none
        middle = np.einsum("khw,h->k", shown, height) / count.sum(axis=1)
        above = (column[:, None] > column[None]).mean(axis=2)  # (K, K); NaN compares as False
    meets = np.zeros((len(ids), len(ids)))
    for a, b in ((shown[:, :-1], shown[:, 1:]), (shown[:, :, :-1], shown[:, :, 1:])):
        both = np.einsum("ahw,bhw->ab", a.astype(np.float32), b.astype(np.float32)) / SIDE
        meets += both + both.T
    ends = np.stack([shown[:, : SIDE // 16].mean(axis=(1, 2)), shown[:, -SIDE // 16 :].mean(axis=(1, 2))])
    middle = np.where(share >= _LEAST, middle, np.nan)
    return _Look(share, float((grid == 0).mean()), middle, above, meets, ends)


def _horizon(grid: Ids, ground: Sequence[int]) -> float:
    """The height, as a share of the canvas, that best divides what is ground below from what is not above."""
    rows = np.isin(grid, ground).mean(axis=1)[::-1]  # (h,) from below
    gain = np.concatenate([[0.0], np.cumsum(rows - 0.5)])
    return float(gain.argmax() / len(rows))


def _percent(share: float) -> str:
    return f"{100 * share:.0f}" if share >= 0.0095 or share < 0.0005 else f"{100 * share:.1f}"


def _verb(name: str, verb: str) -> str:
    """The name and what it does: `sky covers`, `trees cover`."""
    plural = name.endswith("s") and not name.endswith("ss")
    return f"{name} {verb}" if plural else f"{name} {verb}s"
