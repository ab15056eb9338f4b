"""The demo's painter: its scenes follow the rules, and its truth is exact."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from annotate.classes import ClassTable
from annotate.masks import Encoding, read_mask
from demo.painter import Scene, paint, paint_folder
from demo.scene import BUILDINGS, LIGHT, ROAD, SKY, TREES, WATER


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [paint(seed) for seed in range(40)]


def shares(scenes: list[Scene], *kinds: int) -> NDArray[np.float64]:
    return np.array([float(np.isin(one.ids, kinds).mean()) for one in scenes])


@pytest.mark.parametrize("size", [(256, 320), (120, 90), (97, 301), (17, 23)])
def test_any_size_and_the_same_again(size: tuple[int, int]) -> None:
    one, same, other = paint(3, size), paint(3, size), paint(4, size)
    assert one.painting.shape == (*size, 3)
    assert one.painting.dtype == np.uint8
    assert one.ids.shape == size
    assert (one.painting == same.painting).all()
    assert (one.ids == same.ids).all()
    assert (one.painting != other.painting).any()


def test_only_the_default_classes_appear(scenes: list[Scene]) -> None:
    seen = {int(one) for scene in scenes for one in np.unique(scene.ids)}
    assert seen == set(ClassTable().ids)


def test_the_ground_takes_about_a_third(scenes: list[Scene]) -> None:
    ground = shares(scenes, ROAD, WATER)
    assert 0.29 < ground.mean() < 0.38
    assert ground.min() > 0.2
    assert ground.max() < 0.46


def test_trees_cover_much_of_the_sky_and_lights_are_symbolic(scenes: list[Scene]) -> None:
    trees, sky, lights = (shares(scenes, kind) for kind in (TREES, SKY, LIGHT))
    assert trees.mean() > 0.28
    assert trees.min() > 0.1
    assert sky.mean() < trees.mean()
    assert 0.005 < lights.mean() < 0.02


def test_compositions_vary(scenes: list[Scene]) -> None:
    for kind in (ROAD, WATER, BUILDINGS):
        present = (shares(scenes, kind) > 0).mean()
        assert 0.4 < present < 0.97, kind


def test_the_sky_is_dark_blue_and_the_lamps_are_bright(scenes: list[Scene]) -> None:
    sky = np.concatenate([one.painting[one.ids == SKY] for one in scenes]).mean(0)
    lamps = np.concatenate([one.painting[one.ids == LIGHT] for one in scenes]).mean(0)
    assert sky[2] > 1.3 * sky[0]
    assert sky.mean() < 110
    assert lamps.mean() > 170


def test_colour_alone_does_not_tell_the_classes_apart(scenes: list[Scene]) -> None:
    """The best guess by colour (4 bits a channel), made from the truth itself, still fails often."""
    colours = np.concatenate([one.painting.reshape(-1, 3) for one in scenes]).astype(int) >> 4
    codes = colours @ np.array([256, 16, 1])
    ids = np.concatenate([one.ids.reshape(-1) for one in scenes])
    counts = np.zeros((4096, 256), int)
    np.add.at(counts, (codes, ids), 1)
    assert 0.5 < counts.max(1).sum() / len(ids) < 0.85


def test_the_folder_holds_paintings_and_their_truth(tmp_path: Path) -> None:
    folder, truth = tmp_path / "paintings", tmp_path / "truth"
    keys = paint_folder(folder, truth, 3, seed=5)
    assert keys == ["scene-005", "scene-006", "scene-007"]
    sizes = set()
    for key in keys:
        ids = read_mask(truth / f"{key}.png", Encoding.RAW)
        with Image.open(folder / f"{key}.png") as image:
            assert image.size == (ids.shape[1], ids.shape[0])
        sizes.add(ids.shape)
    assert len(sizes) > 1


def test_what_is_there_is_not_painted_again(tmp_path: Path) -> None:
    folder, truth = tmp_path / "paintings", tmp_path / "truth"
    paint_folder(folder, truth, 2)
    before = (folder / "scene-000.png").stat().st_mtime_ns
    (truth / "scene-001.png").unlink()  # as after a kill between the two files
    paint_folder(folder, truth, 3)
    assert (folder / "scene-000.png").stat().st_mtime_ns == before
    assert read_mask(truth / "scene-001.png", Encoding.RAW).any()
    assert (folder / "scene-002.png").exists()
