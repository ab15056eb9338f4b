"""A painting's recipe paints it again, wherever it lies and whatever is left of it."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_painter import SIZE, painted, pixels, sample, small_painter

from annotate.masks import Encoding, write_mask
from annotate.workspace import Workspace
from generate.recipe import digest, free_path, pack, unpack


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return small_painter(tmp_path_factory.mktemp("painter"))


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_the_same_recipe_gives_the_same_painting(
    workspace: Workspace, tmp_path: Path, precision: str
) -> None:
    """From the PNG alone or the JSON alone, without the mask it was painted from."""
    mask = tmp_path / "mine.png"
    ids = np.full(SIZE, 148, np.uint8)
    ids[:40] = 168
    write_mask(mask, ids, Encoding.RAW)
    words: tuple[str, ...] = ("--seed", "7", "--temperature", "1.3", "--top-k", "30", "--guidance", "1.5")
    words = (*words, "--count", "2", "--precision", precision)
    first = painted(workspace, tmp_path / "a", "--mask", str(mask), *words)
    second = first.with_name("mine-seed7-01.png")
    mask.unlink()
    for number, path in enumerate((second, second.with_suffix(".json"))):
        again = painted(workspace, tmp_path / f"again{number}", "--recipe", str(path))
        assert again.name == second.name
        assert np.array_equal(pixels(again), pixels(second))
        assert again.read_bytes() == second.read_bytes()
    assert not np.array_equal(pixels(first), pixels(second))
    stamp = second.stat().st_mtime_ns  # at its own place it is there already
    assert painted(workspace, tmp_path / "a", "--recipe", str(second)) == second
    assert second.stat().st_mtime_ns == stamp


def test_speed_counts_the_paintings_that_had_to_be_painted_along(
    workspace: Workspace, tmp_path: Path
) -> None:
    painted(workspace, tmp_path / "two", "--mask", "p0", "--count", "2")
    words = ("--recipe", str(tmp_path / "two" / "p0-seed0-01.png"), "--out", str(tmp_path / "one"), "--json")
    result = json.loads(sample(workspace, *words).stdout)
    assert len(result["samples"]) == 1
    assert result["tokens_a_second"] * result["seconds"] == pytest.approx(2 * result["tokens"])


def test_a_recipe_that_cannot_be_painted_is_one_line(workspace: Workspace, tmp_path: Path) -> None:
    good = painted(workspace, tmp_path / "good", "--mask", "p0")
    recipe = json.loads(good.with_suffix(".json").read_text())
    plain = tmp_path / "plain.png"
    Image.new("RGB", (4, 4)).save(plain)

    def changed(name: str, **values: Any) -> str:
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({key: value for key, value in (recipe | values).items() if value != ""}))
        return str(path)

    other = {**recipe["models"], "transformer": "0123"}
    for path, line in (
        (str(tmp_path / "none.json"), "no such file"),
        (str(plain), "has no recipe in it"),
        (changed("old", mask_png=""), "a recipe without mask_png; it was made by an earlier version"),
        (changed("torn", mask_png="AAAA"), "a damaged mask"),
        (changed("alone", together=[1, 2]), "painted together with [1, 2]"),
        (changed("many", together=list(range(99))), "painted together with"),
        (changed("swapped", mask_sha256="0"), "its mask is another than it says"),
        (changed("other", models=other), "painted with another transformer (0123)"),
        (changed("words", seed="many"), "not a recipe that can be painted (seed 'many')"),
        (changed("cold", temperature=-1), "not a recipe that can be painted (temperature -1)"),
        (changed("long", seed=2**64), f"not a recipe that can be painted (seed {2**64})"),
        (changed("far", guidance=1e9), "not a recipe that can be painted (guidance 1000000000.0)"),
        (changed("text", together="0"), "painted together with '0'"),
        (changed("twice", together=[0, 0]), "painted together with [0, 0]"),
        (changed("below", number=-1, together=[-1]), "-1, painted together with [-1]"),
        (changed("hollow", temperature=math.nan), "not a recipe that can be painted (temperature nan"),
    ):
        result = sample(workspace, "--recipe", path, "--out", str(tmp_path / "never"))
        assert result.exit_code == 1, (path, result.output)
        assert line in result.stderr
        assert len(result.stderr.splitlines()) == 1
    for words in (("--seed", "3"), ("--mask", "p0"), ("--from", "p0"), ("--count", "2")):
        result = sample(workspace, "--recipe", str(good), *words)
        assert result.exit_code == 1
        assert f"the recipe decides this already; leave out {words[0]}" in result.stderr
    assert not (tmp_path / "never").exists()


def test_a_recipe_whose_region_was_changed_is_one_line(workspace: Workspace, tmp_path: Path) -> None:
    recipe = json.loads(
        painted(workspace, tmp_path, "--from", "p0", "--repaint", "sky").with_suffix(".json").read_text()
    )
    for region, line in (
        (np.zeros(SIZE, np.uint8), "its region is another than it says"),
        (np.full(SIZE, 255, np.uint8), "its region is another than it says"),
        (np.full((9, 9), 255, np.uint8), "its region has another size than the painting"),
    ):
        about = {**recipe["from"], "mask_png": pack(region)}
        about |= {"region_sha256": digest(region)} if region.shape == (9, 9) else {}
        path = tmp_path / "changed.json"
        path.write_text(json.dumps({**recipe, "from": about}))
        result = sample(workspace, "--recipe", str(path), "--out", str(tmp_path / "never"))
        assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1)
        assert line in result.stderr


def test_a_recipe_moves_with_its_workspace(workspace: Workspace, tmp_path: Path) -> None:
    """What it repaints is found by its name and digest."""
    first = painted(workspace, tmp_path / "first", "--from", "p0", "--repaint", "sky")
    moved = Workspace(tmp_path / "moved")
    shutil.copytree(workspace.root, moved.root)
    recipe = json.loads(first.with_suffix(".json").read_text())
    recipe["from"]["path"] = str(tmp_path / "before" / "p0.png")
    first.with_suffix(".json").write_text(json.dumps(recipe))
    again = painted(moved, tmp_path / "second", "--recipe", str(first.with_suffix(".json")))
    assert np.array_equal(pixels(again), pixels(first))


def test_a_painting_without_its_json_is_there_all_the_same(workspace: Workspace, tmp_path: Path) -> None:
    """The PNG has the recipe, too; the JSON is written anew."""
    first = painted(workspace, tmp_path, "--mask", "p0")
    beside, stamp = first.with_suffix(".json"), first.stat().st_mtime_ns
    recipe = json.loads(beside.read_text())
    for damage in (beside.unlink, lambda: beside.write_text("[1]"), lambda: beside.write_text("{")):
        damage()
        result = sample(workspace, "--mask", "p0", "--out", str(tmp_path))
        assert result.stdout.splitlines() == [f"{first}  72 x 88  there already"]
        assert first.stat().st_mtime_ns == stamp
        assert json.loads(beside.read_text()) == recipe


def test_masks_are_packed_without_loss() -> None:
    ids = np.random.default_rng(0).integers(0, 256, (5, 7), np.uint8)
    assert np.array_equal(unpack(pack(ids)), ids)
    assert digest(ids) != digest(ids.T)
    assert digest(ids) != digest(ids.reshape(7, 5))


def test_a_name_that_is_taken_gets_the_recipes_digest(tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes(b"")
    (tmp_path / "one.json").write_text(json.dumps({"seed": 1, "mask_png": "a"}))
    assert free_path(tmp_path, "one", {"seed": 1, "mask_png": "packed otherwise"}).name == "one.png"
    assert free_path(tmp_path, "one", {"seed": 2}).name.startswith("one-")
    assert free_path(tmp_path, "two", {"seed": 2}).name == "two.png"
