"""Habits are learnt from a workspace's own masks, and what departs is said in words with its figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from annotate.classes import ClassTable
from annotate.masks import Encoding, shift, write_mask
from annotate.workspace import Workspace
from demo.scene import compose
from generate.composition import Habits, check_composition, read_habits, to_grid

Ids = NDArray[np.uint8]
NAMES = {one.id + 1: one.name for one in ClassTable().classes}
ROAD, WATER, TREES, SKY, BUILDINGS, LIGHT = 149, 178, 169, 157, 96, 130  # shifted


def scene(seed: int, size: tuple[int, int] = (120, 160)) -> Ids:
    """A mask that the demo's painter composes by the seed document's rules; shifted ids."""
    return shift(compose(np.random.default_rng([seed, 8191]), size).ids)


def habits(seeds: range) -> Habits:
    return Habits([str(one) for one in seeds], np.stack([to_grid(scene(one)) for one in seeds]), NAMES)


@pytest.fixture(scope="module")
def painter() -> Habits:
    return habits(range(40))


def layers(*shares: tuple[int, float], size: tuple[int, int] = (100, 70)) -> Ids:
    """Horizontal layers from above: (id, share of the height)."""
    ids = np.zeros(size, np.uint8)
    top = 0.0
    for one, share in shares:
        ids[round(top * size[0]) : round((top + share) * size[0])] = one
        top += share
    return ids


def test_the_seeds_rules_follow_from_its_kind_of_paintings(painter: Habits) -> None:
    """A low-angle road (or water) of about a third: nobody told the check so."""
    assert {NAMES[one] for one in painter.ground} == {"road", "water"}
    assert 0.28 < min(painter.horizons()) <= max(painter.horizons()) < 0.45
    bird = to_grid(layers((SKY, 0.05), (TREES, 0.2), (ROAD, 0.75)))
    said = " | ".join(painter.departures(bird))
    assert "the horizon (of road or water) is at 75 % of the height; in your paintings at 3" in said


def test_trees_cover_the_sky(painter: Habits) -> None:
    bare = to_grid(scene(50)).copy()
    bare[:61] = SKY
    said = " | ".join(painter.departures(bare))
    assert "sky covers 64 % of the canvas; in your paintings 14-39 %" in said


def test_a_few_lights_only(painter: Habits) -> None:
    bright = to_grid(scene(51)).copy()
    bright[20:60, 5:90] = LIGHT
    assert any(line.startswith("street light covers") for line in painter.departures(bright))


def test_nothing_lies_where_it_never_lay(painter: Habits) -> None:
    upset = to_grid(scene(52)).copy()
    upset[30:50] = ROAD
    said = painter.departures(upset)
    assert "no painting has road above buildings" in said
    turned = painter.departures(to_grid(scene(52))[::-1])
    assert "no painting has water above sky" in turned
    assert len(turned) <= 8


def test_the_painters_other_scenes_depart_in_nothing(painter: Habits) -> None:
    assert [painter.departures(to_grid(scene(seed))) for seed in range(100, 140)] == [[]] * 40


def test_three_masks_are_enough_and_two_teach_nothing() -> None:
    few = habits(range(8, 11))
    warned = [bool(few.departures(to_grid(scene(seed)))) for seed in range(100, 160)]
    assert np.mean(warned) < 0.35  # three paintings do not show everything, and some words are too many
    assert few.departures(to_grid(scene(100))[::-1])
    assert habits(range(2)).departures(to_grid(scene(100))[::-1]) == []


def test_another_kind_of_paintings_has_other_habits() -> None:
    """Portraits: a face (class 1) before cloth (2); what departs for a street is at home here."""
    masks = []
    for number in range(6):
        ids = layers((2, 1.0))
        ids[20 + number : 70, 20 : 45 + number] = 1
        masks.append(to_grid(ids))
    portraits = Habits([f"p{n}" for n in range(6)], np.stack(masks), {1: "face", 2: "cloth"})
    assert portraits.departures(masks[3]) == []
    small = layers((2, 1.0))
    small[80:90, 20:30] = 1
    said = portraits.departures(to_grid(small))
    assert any(line.startswith("face covers 1 % of the canvas; in your paintings 18-20 %") for line in said)
    assert any(line.startswith("face lies at 15 % of the height; in your paintings at 5") for line in said)
    assert portraits.departures(to_grid(layers((2, 0.5), (7, 0.5))))[0] == "no painting has class 6"


def test_classes_that_never_meet() -> None:
    """Sky, trees and ground in layers: sky beside ground is new."""
    stacks = np.stack([to_grid(layers((SKY, 0.3), (TREES, 0.3 + n / 50), (ROAD, 1.0))) for n in range(12)])
    known = Habits([str(n) for n in range(12)], stacks, NAMES)
    ids = layers((SKY, 0.3), (TREES, 0.4), (ROAD, 1.0))
    ids[71:, :10] = SKY  # a strip of sky beside the road
    assert any("sky and road" in line or "road and sky" in line for line in known.departures(to_grid(ids)))


def test_what_is_free_may_become_anything(painter: Habits) -> None:
    opened = to_grid(scene(60)).copy()
    opened[opened == SKY] = 0
    opened[-40:] = 0
    assert painter.departures(opened) == []


def test_the_nearest_painting_is_found_mirrored_too(painter: Habits) -> None:
    assert painter.nearest(to_grid(scene(17, (240, 180)))) == "17"
    assert painter.nearest(to_grid(scene(23))[:, ::-1]) == "23"
    half = to_grid(scene(31)).copy()
    half[:, :50] = 0
    assert painter.nearest(half) == "31"


def test_a_workspaces_masks_are_looked_at_once(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    assert check_composition(workspace, scene(1)).departures == ()
    assert check_composition(workspace, scene(1)).nearest is None
    for seed in range(6):
        write_mask(workspace.mask("shifted", f"sub/{seed}"), scene(seed), Encoding.SHIFTED)
    first = check_composition(workspace, scene(3))
    assert first.nearest == "sub/3"
    assert first.departures == ()
    cache = workspace.masks("shifted") / "grids.npz"
    before = cache.stat().st_mtime_ns
    assert check_composition(workspace, scene(3)) == first
    assert cache.stat().st_mtime_ns == before
    write_mask(workspace.mask("shifted", "sub/3"), scene(77), Encoding.SHIFTED)  # changed: looked at again
    assert check_composition(workspace, scene(77)).nearest == "sub/3"
    workspace.mask("shifted", "sub/4").write_bytes(b"damaged")
    cache.write_bytes(b"damaged too")
    assert read_habits(workspace).keys == [f"sub/{seed}" for seed in (0, 1, 2, 3, 5)]
    cache.write_bytes(cache.read_bytes()[:-100])
    assert read_habits(workspace).keys == [f"sub/{seed}" for seed in (0, 1, 2, 3, 5)]


def test_an_unlabelled_mask_teaches_no_horizon() -> None:
    grids, names = [to_grid(scene(seed)) for seed in range(8)], {one: str(one) for one in range(256)}
    low = layers((157, 0.98), (149, 0.02))
    said = Habits([str(n) for n in range(8)], np.stack(grids), names).departures(to_grid(low))
    assert any(line.startswith("the horizon") for line in said)
    blank = Habits([str(n) for n in range(9)], np.stack([*grids, np.zeros_like(grids[0])]), names)
    assert blank.departures(to_grid(low)) == said
