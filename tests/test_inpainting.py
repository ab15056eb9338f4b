"""An existing painting is kept but for a part."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_models import painting_codes
from PIL import Image, PngImagePlugin
from small_painter import SIZE, painted, pixels, sample, small_painter

from annotate.masks import Encoding, write_mask
from annotate.workspace import Workspace
from generate.data import to_image
from generate.inpainting import FEATHER, Repaint
from generate.tiles import encode_tiled


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return small_painter(tmp_path_factory.mktemp("painter"))


def test_a_part_is_painted_anew_and_the_rest_is_kept(workspace: Workspace, tmp_path: Path) -> None:
    words = ("--from", "p0", "--repaint", "0,32,40,64", "--temperature", "2", "--save-tokens")
    new = painted(workspace, tmp_path, *words)
    old = pixels(workspace.root / "paintings" / "p0.png")
    inside = np.zeros(SIZE, np.bool_)
    inside[:40, 32:64] = True
    near = np.zeros(SIZE, np.bool_)
    near[: 40 + FEATHER, 32 - FEATHER : 64 + FEATHER] = True
    assert np.array_equal(pixels(new)[~near], old[~near])
    assert not np.array_equal(pixels(new)[inside], old[inside])
    # the tokens of kept cells are the painting's own; row 2 (pixels 32-47) has to go, for its upper half does
    region = Repaint(new, old, inside)
    given = region.given(painting_codes(), (16, 16), "cpu")  # type: ignore[arg-type]
    tokens = np.load(new.with_suffix(".npy"))
    where = given.where.numpy()
    assert not where[:3, 2:4].any()
    assert where.sum() == 256 - 6
    assert np.array_equal(tokens[where], given.tokens.numpy()[where])
    again = painted(workspace, tmp_path / "again", "--recipe", str(new))
    assert again.read_bytes() == new.read_bytes()


def test_what_a_new_mask_changes_is_painted_anew(workspace: Workspace, tmp_path: Path) -> None:
    """The trees of p0 stand 16 pixels further left than those of p1: only there anything is painted."""
    new = pixels(painted(workspace, tmp_path, "--from", "p0", "--mask", "p1", "--temperature", "2"))
    old = pixels(workspace.root / "paintings" / "p0.png")
    assert np.array_equal(new[32 + FEATHER :], old[32 + FEATHER :])
    assert not np.array_equal(new[16:32, :16], old[16:32, :16])
    first = painted(workspace, tmp_path / "b", "--mask", "p0")
    second = pixels(
        painted(workspace, tmp_path / "b", "--from", str(first), "--repaint", "road", "--seed", "3")
    )
    assert np.array_equal(
        second[: 48 - FEATHER], pixels(first)[: 48 - FEATHER]
    )  # the mask came with the painting


def test_inpainting_that_cannot_be_is_one_line(workspace: Workspace, tmp_path: Path) -> None:
    small = tmp_path / "small.png"
    Image.new("RGB", (20, 30)).save(small)
    gone = tmp_path / "gone.png"
    shutil.copy(workspace.root / "paintings" / "p1.png", gone)
    kept = painted(workspace, tmp_path, "--from", str(gone), "--mask", "p1", "--repaint", "sky")
    Image.fromarray(pixels(gone)[::-1]).save(gone)
    for words, line in (
        (("--from", "nobody", "--repaint", "sky"), "neither a file nor the key of a painting"),
        (("--from", str(small), "--repaint", "sky"), "its mask is not known; give --mask"),
        (
            ("--from", str(small), "--mask", "p0", "--repaint", "sky"),
            "30 x 20 (H x W), but the mask has 72 x 88",
        ),
        (("--from", "p0"), "nothing to repaint; add --repaint"),
        (("--from", "p0", "--repaint", "clouds"), "'clouds': no region"),
        (("--recipe", str(kept)), "is not the painting any more that the recipe repaints"),
    ):
        result = sample(workspace, *words, "--out", str(tmp_path / "never"))
        assert result.exit_code == 1, (words, result.output)
        assert line in result.stderr
    assert sample(workspace, "--mask", "p0", "--repaint", "sky").exit_code == 2
    assert not (tmp_path / "never").exists()


def test_a_class_that_the_new_mask_lacks_is_painted_anew(workspace: Workspace, tmp_path: Path) -> None:
    mask = tmp_path / "no-trees.png"
    ids = np.full(SIZE, 156, np.uint8)
    ids[48:] = 148
    write_mask(mask, ids, Encoding.RAW)
    file = str(workspace.root / "paintings" / "p0.png")  # whose mask the workspace knows
    words = ("--from", file, "--mask", str(mask), "--repaint", "trees", "--temperature", "2")
    new, old = pixels(painted(workspace, tmp_path, *words)), pixels(Path(file))
    assert not np.array_equal(new[16:32, :32], old[16:32, :32])
    assert np.array_equal(new[32 + FEATHER :], old[32 + FEATHER :])
    assert sample(workspace, "--from", file, "--repaint", "sky", "--out", str(tmp_path)).exit_code == 0


def test_a_picture_with_a_strange_recipe_is_repainted(workspace: Workspace, tmp_path: Path) -> None:
    for number, text in enumerate(("of a cake", "[1]", '{"mask_png": "AAAA", "mask_name": "x"}')):
        info = PngImagePlugin.PngInfo()
        info.add_text("recipe", text)
        path = tmp_path / f"{number}.png"
        Image.fromarray(pixels(workspace.root / "paintings" / "p0.png")).save(path, pnginfo=info)
        words = ("--from", str(path), "--repaint", "sky", "--out", str(tmp_path / "new"))
        assert "its mask is not known; give --mask" in sample(workspace, *words).stderr
        assert sample(workspace, *words, "--mask", "p0").exit_code == 0


def test_the_new_gives_way_to_the_old_gradually() -> None:
    region = np.zeros((24, 60), np.bool_)
    region[:, 30:] = True
    blended = Repaint(Path(), np.zeros((24, 60, 3), np.uint8), region).blend(
        np.full((24, 60, 3), 200, np.uint8)
    )
    row = blended[5, :, 0].astype(int)
    assert (row[30:] == 200).all()
    assert (row[: 30 - FEATHER] == 0).all()
    assert (np.diff(row[30 - FEATHER : 31]) > 0).all()


def test_a_large_painting_is_encoded_in_tiles() -> None:
    """Far from the cuts the tokens are those of the whole; a small one goes through whole."""
    codes = painting_codes()
    patches = Image.fromarray(np.random.default_rng(1).integers(0, 256, (10, 24, 3), np.uint8))
    image = to_image(torch.from_numpy(np.array(patches.resize((384, 160))).transpose(2, 0, 1).copy()))[None]
    with torch.inference_mode():
        whole = codes.encode(image).indices
    assert torch.equal(encode_tiled(codes, image), whole)
    tiled = encode_tiled(codes, image, tile=16, overlap=4)
    assert tiled.shape == whole.shape == (1, 10, 24)
    assert (tiled == whole).float().mean() > 0.5  # the group norms see another tile than the whole
