"""`tool generate sample`: masks of any size become paintings with a recipe."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from golden_models import mask_codes, painting_codes, save_models
from PIL import Image

from annotate.masks import Encoding, shift, write_mask
from annotate.workspace import Workspace
from cli import main
from generate.checkpoint import save_model
from generate.config import GPTConfig
from generate.gpt import GPT


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = Workspace(tmp_path_factory.mktemp("painter"))
    save_models(made)
    write_mask(made.mask("shifted", "sub/one"), shift(composition(260, 330)), Encoding.SHIFTED)
    return made


def composition(height: int, width: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    ids = np.full((height, width), 156, np.uint8)
    ids[height * 2 // 3 :] = 148
    ids[: height // 3, width // 2 :] = 168
    ids[:5, :5] = 255
    return ids


def sample(workspace: Workspace, *words: str) -> Result:
    return CliRunner().invoke(main, ["generate", "sample", "-w", str(workspace.root), *words])


def painted(path: str | Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    with Image.open(path) as image:
        return np.asarray(image)


def test_a_key_becomes_paintings_of_the_masks_size(workspace: Workspace, tmp_path: Path) -> None:
    result = sample(
        workspace, "--mask", "sub/one", "--count", "2", "--json", "--save-tokens", "--out", str(tmp_path)
    )
    assert result.exit_code == 0, result.stderr
    value = json.loads(result.stdout)
    first, second = (painted(one["path"]) for one in value["samples"])
    assert first.shape == second.shape == (260, 330, 3)
    assert not np.array_equal(first, second)
    tokens = np.load(Path(value["samples"][0]["path"]).with_suffix(".npy"))
    assert tokens.shape == (17, 21)
    assert workspace.report("generate-sample") is not None


def test_the_same_recipe_gives_the_same_painting(workspace: Workspace, tmp_path: Path) -> None:
    mask = tmp_path / "mine.png"
    write_mask(mask, composition(256, 272), Encoding.RAW)
    words = ("--mask", str(mask), "--seed", "9")
    for folder in ("a", "b"):
        assert sample(workspace, *words, "--out", str(tmp_path / folder)).exit_code == 0
    a, b = (tmp_path / folder / "mine-seed9-00.png" for folder in ("a", "b"))
    assert np.array_equal(painted(a), painted(b))
    with Image.open(a) as image:
        recipe = json.loads(image.info["recipe"])
    assert recipe == json.loads(a.with_suffix(".json").read_text())
    assert recipe["seed"] == 9
    assert set(recipe["models"]) == {"painting-codes", "mask-codes", "transformer"}
    assert sample(workspace, "--mask", str(mask), "--seed", "10", "--out", str(tmp_path / "a")).exit_code == 0
    assert not np.array_equal(painted(a), painted(tmp_path / "a" / "mine-seed10-00.png"))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (97, 301), (256, 256), (300, 100)])
def test_any_canvas(workspace: Workspace, tmp_path: Path, height: int, width: int) -> None:
    mask = tmp_path / "any.png"
    write_mask(mask, composition(height, width), Encoding.RAW)
    assert sample(workspace, "--mask", str(mask), "--out", str(tmp_path)).exit_code == 0
    assert painted(tmp_path / "any-seed0-00.png").shape == (height, width, 3)


def test_size_extends_the_canvas_and_never_scales(workspace: Workspace, tmp_path: Path) -> None:
    result = sample(workspace, "--mask", "sub/one", "--size", "272x400", "--out", str(tmp_path))
    assert result.exit_code == 0, result.stderr
    assert painted(tmp_path / "one-seed0-00.png").shape == (272, 400, 3)


def foreign(path: Path, value: int) -> Path:
    Image.fromarray(np.full((20, 30), value, np.uint8)).save(path)
    return path


def test_bad_input_is_one_line(workspace: Workspace, tmp_path: Path) -> None:
    plain, wood = str(foreign(tmp_path / "plain.png", 3)), str(foreign(tmp_path / "wood.png", 181))
    for words, line in (
        (
            ("--mask", "nobody"),
            "neither a PNG, nor a composition, nor a key with a mask in masks/shifted (such as sub/one)",
        ),
        (("--mask", plain), "add --encoding raw or shifted"),
        (
            ("--mask", wood, "--encoding", "raw"),
            "n_labels 182; use another class there, or train with n_labels 183",
        ),
        (("--mask", "sub/one", "--size", "wide"), "--size wide: give height and width"),
        (("--mask", "sub/one", "--size", "0x16"), "--size 0x16: give height and width"),
        (("--mask", "sub/one", "--size", "99999x99999"), "more than 100 megapixels"),
    ):
        result = sample(workspace, *words, "--out", str(tmp_path / "none"))
        assert result.exit_code == 1
        assert line in result.stderr
        assert len(result.stderr.splitlines()) == 1
    for wrong in (("--stride", "3"), ("--seed", str(2**64)), ("--temperature", "nan")):
        assert sample(workspace, "--mask", "sub/one", *wrong).exit_code == 2
    assert not (tmp_path / "none").exists()


def test_no_model_yet_names_the_command(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    write_mask(workspace.mask("shifted", "one"), np.ones((4, 4), np.uint8), Encoding.SHIFTED)
    result = sample(workspace, "--mask", "one")
    assert result.exit_code == 1
    assert "run `tool generate train painting`" in result.stderr


def test_a_damaged_model_is_one_line(workspace: Workspace, tmp_path: Path) -> None:
    damaged = Workspace(tmp_path)
    write_mask(damaged.mask("shifted", "one"), np.ones((4, 4), np.uint8), Encoding.SHIFTED)
    for name in ("painting-codes", "mask-codes", "transformer"):
        damaged.model(name).mkdir(parents=True)
        content = (workspace.model(name) / "model.safetensors").read_bytes()
        (damaged.model(name) / "model.safetensors").write_bytes(content[:-1000])
    result = sample(damaged, "--mask", "one")
    assert result.exit_code == 1
    assert "damaged" in result.stderr


def test_what_is_painted_is_not_painted_again(workspace: Workspace, tmp_path: Path) -> None:
    words = ("--mask", "sub/one", "--size", "64x80", "--json", "--out", str(tmp_path))
    first = json.loads(sample(workspace, *words, "--count", "2").stdout)["samples"]
    stamp = Path(first[0]["path"]).stat().st_mtime_ns
    Path(first[1]["path"]).unlink()  # as if killed between the two
    lost = painted(first[0]["path"])
    again = json.loads(sample(workspace, *words, "--count", "3").stdout)["samples"]
    assert [one["path"] for one in again[:2]] == [one["path"] for one in first]
    assert [one["log_likelihood"] is None for one in again] == [True, False, False]
    assert again[1]["log_likelihood"] == pytest.approx(first[1]["log_likelihood"], abs=1e-5)
    assert Path(first[0]["path"]).stat().st_mtime_ns == stamp
    assert np.array_equal(painted(first[0]["path"]), lost)


def test_a_painting_of_another_recipe_is_left_alone(workspace: Workspace, tmp_path: Path) -> None:
    words = ("--mask", "sub/one", "--size", "64x80", "--json", "--out", str(tmp_path))
    (first,) = json.loads(sample(workspace, *words).stdout)["samples"]
    before = Path(first["path"]).read_bytes()
    (hotter,) = json.loads(sample(workspace, *words, "--temperature", "2.0").stdout)["samples"]
    assert hotter["path"] != first["path"]
    assert Path(first["path"]).read_bytes() == before


def test_more_paintings_than_go_together(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--mask", "sub/one", "--size", "64x80", "--count", "3", "--json", "--save-tokens", "--out")
    grids = []
    for together in (8, 2):
        monkeypatch.setattr("generate.sample.MOST_TOGETHER", together)
        made = json.loads(sample(workspace, *words, str(tmp_path / str(together))).stdout)["samples"]
        grids.append([np.load(Path(one["path"]).with_suffix(".npy")) for one in made])
    assert np.array_equal(grids[0], grids[1])


@pytest.mark.parametrize("fast", [True, False])
def test_slow_bfloat16_is_said(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast: bool
) -> None:
    monkeypatch.setattr("generate.sample.has_fast_bfloat16", lambda device: fast)
    words = ("--mask", "sub/one", "--precision", "bfloat16", "--out", str(tmp_path))
    result = sample(workspace, *words)
    assert result.exit_code == 0, result.stderr
    assert ("--precision int8 or float32 is quicker" in result.stderr) is not fast


def test_tokens_beyond_the_codebook_are_never_drawn(workspace: Workspace, tmp_path: Path) -> None:
    """A vocabulary may be larger than the painting's codebook, as the mask's tokens share it."""
    other = Workspace(tmp_path)
    save_model(other.model("painting-codes"), painting_codes(), {})
    save_model(other.model("mask-codes"), mask_codes(), {})
    sizes = GPTConfig(vocab_size=4096, block_size=512, layers=1, heads=2, width=32)
    save_model(other.model("transformer"), GPT(sizes), {})
    write_mask(other.mask("shifted", "one"), np.ones((64, 80), np.uint8), Encoding.SHIFTED)
    words = ("--mask", "one", "--top-k", "4096", "--save-tokens", "--json")
    result = sample(other, *words)
    assert result.exit_code == 0, result.output
    (one,) = json.loads(result.stdout)["samples"]
    assert np.load(Path(one["path"]).with_suffix(".npy")).max() < 64
