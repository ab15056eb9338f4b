"""A painting's recipe paints it again; an existing painting is kept but for a part; nothing half is left."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from golden_models import painting_codes, save_models
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from annotate.errors import UserError
from annotate.masks import Encoding, shift, write_mask
from annotate.paintings import scan, write_index
from annotate.workspace import Workspace
from cli import main
from generate.data import to_image
from generate.inpainting import FEATHER, Repaint
from generate.live import BLANK, Live
from generate.recipe import digest, free_path, pack, read_recipe, unpack, write_painting
from generate.tiles import encode_tiled

Pixels = NDArray[np.uint8]
SIZE = (72, 88)  # 5 x 6 tokens, padded to a window of 16 x 16
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Models, and two paintings with masks that share a horizon."""
    made = Workspace(tmp_path_factory.mktemp("painter"))
    save_models(made)
    random = np.random.default_rng(5)
    (made.root / "paintings").mkdir()
    for number in range(2):
        ids = np.full(SIZE, 156, np.uint8)
        ids[48:] = 148
        ids[16:32, 16 * number : 16 * number + 32] = 168
        write_mask(made.mask("shifted", f"p{number}"), shift(ids), Encoding.SHIFTED)
        patches = Image.fromarray(random.integers(0, 256, (5, 6, 3), np.uint8))
        patches.resize((SIZE[1], SIZE[0])).save(made.root / "paintings" / f"p{number}.png")
    write_index(made, scan(made.root / "paintings", made).paintings)
    return made


def sample(workspace: Workspace, *words: str) -> Result:
    return CliRunner().invoke(
        main, ["generate", "sample", "-w", str(workspace.root), "--device", "cpu", *words]
    )


def painted(workspace: Workspace, out: Path, *words: str) -> Path:
    result = sample(workspace, *words, "--json", "--out", str(out))
    assert result.exit_code == 0, result.output
    (one, *_) = json.loads(result.stdout)["samples"]
    return Path(one["path"])


def pixels(path: Path) -> Pixels:
    with Image.open(path) as image:
        return np.asarray(image)


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


def test_a_folder_that_takes_no_paintings_is_said_before_any_is_painted(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file.png").write_text("in the way")
    monkeypatch.setattr("generate.sample.paint_tokens", None)  # is not reached
    for folder in (tmp_path / "file.png", tmp_path / "file.png" / "below", Path("/proc/self/new")):
        result = sample(workspace, "--mask", "p0", "--out", str(folder))
        assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1)
        assert f"error: {folder}: paintings cannot be written there" in result.stderr
        assert "choose another --out" in result.stderr


def test_ctrl_c_while_paintings_are_written_loses_none(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real signal, when the first of them is about to be written; an unfinished one goes when its painting comes."""
    left = tmp_path / "p0-seed0-01-unfinished.png"
    left.write_bytes(b"of an earlier run")

    def write(path: Path, *rest: Any) -> None:
        if path.name == "p0-seed0-00.png":
            os.kill(os.getpid(), signal.SIGINT)
        write_painting(path, *rest)

    monkeypatch.setattr("generate.sample.write_painting", write)
    result = sample(workspace, "--mask", "p0", "--count", "3", "--out", str(tmp_path))
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-2:] == [
        "writing what is painted; then it stops",
        "error: interrupted; what was painted is written, and the same command paints the rest",
    ]
    assert sorted(path.name for path in tmp_path.glob("*.png")) == [f"p0-seed0-0{n}.png" for n in range(3)]


def test_the_canvas_so_far_has_the_colours_of_the_painting(tmp_path: Path) -> None:
    """What is not painted must not colour what is: here the decoder is a mean of all that it is given."""
    tokens, cells = torch.zeros(1, 4, 4, dtype=torch.long), torch.zeros(4, 4, dtype=torch.bool)
    live = Live(lambda *of: None, 1, lambda t: np.full((4, 4, 3), int(t.float().mean()), np.uint8), 1)
    named = [(tmp_path / "one.png", {"seed": 1})]
    with pytest.raises(UserError, match="interrupted at 8 of 16 tokens"), live.painting(named):
        live.follow(tokens, cells)
        tokens[0, :2], cells[:2] = 90, True
        raise KeyboardInterrupt
    canvas = pixels(tmp_path / "one-unfinished.png")
    assert (canvas[:2] == 90).all()
    assert (canvas[2:] == BLANK).all()


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


def test_the_check_is_said_and_can_be_left_out(workspace: Workspace, tmp_path: Path) -> None:
    third = workspace.mask("shifted", "p2")
    write_mask(third, shift(np.full(SIZE, 148, np.uint8)), Encoding.SHIFTED)
    try:
        mask = tmp_path / "all-trees.png"
        write_mask(mask, np.full(SIZE, 168, np.uint8), Encoding.RAW)
        words = ("--mask", str(mask), "--out", str(tmp_path))
        said = sample(workspace, *words, "--json")
        assert said.exit_code == 0
        assert "composition: trees cover 100 % of the canvas; in your paintings 0-8 %" in said.stderr
        value = json.loads(said.stdout)
        assert any("trees cover 100 %" in line for line in value["departures"])
        assert value["nearest"] in {"p0", "p1", "p2"}
        assert "composition" not in sample(workspace, *words, "--no-check").stderr
    finally:
        third.unlink()


def test_ctrl_c_leaves_the_canvas_so_far(workspace: Workspace, tmp_path: Path) -> None:
    """A real SIGINT to the real command, while a preview lies there."""
    words = [
        "generate",
        "sample",
        "-w",
        str(workspace.root),
        "--mask",
        "p0",
        "--size",
        "1024x1024",
        "--seed",
        "1",
    ]
    command = [
        sys.executable,
        "-m",
        "cli",
        *words,
        "--stride",
        "1",
        "--preview",
        "64",
        "--out",
        str(tmp_path),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    running = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what it puts in the background deaf to SIGINT, and these tests may be such.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    preview = tmp_path / "p0-seed1-00-preview.png"
    patience = time.monotonic() + 240
    while not preview.exists() and time.monotonic() < patience:
        assert running.poll() is None
        time.sleep(0.05)
    assert pixels(preview).shape == (1024, 1024, 3)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=240)
    assert running.returncode == 1
    last = said.strip().splitlines()[-1]
    left = tmp_path / "p0-seed1-00-unfinished.png"
    assert f"the canvas so far: {left}" in last
    assert sorted(path.name for path in tmp_path.iterdir()) == [left.name]
    assert pixels(left).shape == (1024, 1024, 3)
    assert (pixels(left)[-16:] == 236).all()  # nothing is painted there yet
    assert (pixels(left)[:16, :16] != 236).any()
    with Image.open(left) as image:
        assert json.loads(image.info["recipe"])["unfinished"] >= 64
    assert read_recipe(left)["seed"] == 1


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
