"""What `tool generate evaluate` measures, and how it tells a copy."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image
from test_generate_train import MASK, PAINTING, TOKENS
from torchvision.models.vgg import cfgs, make_layers
from toy_paintings import toy_workspace

from annotate.masks import Encoding, read_mask, unshift
from annotate.workspace import Workspace
from generate.checkpoint import load_gpt, load_vqgan
from generate.commands import generate
from generate.likelihood import even_windows, nats_a_token
from generate.originality import Crop, Neighbour, copy_threshold, cut, grid_crops, nearest_crops
from generate.perceptual import PerceptualLoss, channel_weights
from generate.train_codes import train_mask_codes, train_painting_codes
from generate.train_transformer import train_transformer
from generate.wasserstein import laplacian_bands, sliced_wasserstein
from segment.device import has_fast_bfloat16
from segment.model import build, load, save
from segment.predict import predict_map
from segment.scores import confusion, score

Pixels = NDArray[np.uint8]


def texture(seed: int, size: tuple[int, int] = (48, 64), blur: int = 1) -> Pixels:
    """Coloured noise of patches `blur` pixels wide."""
    rng = np.random.default_rng(seed)
    height, width = size
    coarse = rng.integers(0, 256, (-(-height // blur), -(-width // blur), 3), dtype=np.uint8)
    return coarse.repeat(blur, 0).repeat(blur, 1)[:height, :width]


def test_lpips_equals_torchmetrics() -> None:
    from torchmetrics.functional.image.lpips import _LPIPS

    torch.manual_seed(0)
    reference = _LPIPS(pretrained=True, net="vgg", pnet_rand=True).eval()
    state = {}
    for part in range(1, 6):
        for name, value in getattr(reference.net, f"slice{part}").state_dict().items():
            state[f"features.{name}"] = value
    assert state.keys() == {f"features.{name}" for name in make_layers(cfgs["D"][:-1]).state_dict()}
    ours = PerceptualLoss(state, channel_weights())
    a, b = torch.rand(2, 3, 40, 56) * 2 - 1, torch.rand(2, 3, 40, 56) * 2 - 1
    assert float(ours(a, b)) == pytest.approx(float(reference(a, b).mean()), rel=1e-4)


def test_gradient_of_lpips_is_that_of_both_images_in_the_graph() -> None:
    torch.manual_seed(0)
    state = {f"features.{name}": value for name, value in make_layers(cfgs["D"]).state_dict().items()}
    loss = PerceptualLoss(state, channel_weights())
    image = (torch.rand(1, 3, 32, 32) * 2 - 1).requires_grad_()
    loss(image, torch.zeros(1, 3, 32, 32)).backward()
    assert image.grad is not None
    step = 1e-2 * image.grad / image.grad.norm()
    before, after = (float(loss(one.detach(), torch.zeros_like(one))) for one in (image, image - step))
    assert before - after == pytest.approx(float((step * image.grad).sum()), rel=0.1)


def test_pyramid_bands_add_up_to_the_picture() -> None:
    image = torch.rand(1, 3, 21, 34)
    bands = laplacian_bands(image, 3)
    rebuilt = bands[-1]
    for band in reversed(bands[:-1]):
        rebuilt = band + F.interpolate(rebuilt, band.shape[-2:])
    assert torch.allclose(rebuilt, image, atol=1e-6)


def test_wasserstein_is_small_between_like_and_grows_with_difference() -> None:
    paintings = [texture(n) for n in range(4)]
    same = sliced_wasserstein(paintings, [texture(n) for n in range(4, 8)], patches=2048)
    blurred = sliced_wasserstein(paintings, [texture(n, blur=2) for n in range(4, 8)], patches=2048)
    dark = sliced_wasserstein(paintings, [texture(n) // 2 for n in range(4, 8)], patches=2048)
    assert len(same) == 2  # bands of 48 and 24 pixels
    assert max(same) < 0.1
    assert blurred[0] > 5 * same[0]
    assert min(dark) > 5 * max(same)
    again = [sliced_wasserstein(paintings, paintings[:2], patches=64, seed=3) for _ in range(2)]
    assert again[0] == again[1]


def test_wasserstein_of_a_set_and_itself_is_nothing_and_of_its_like_what_the_draw_makes() -> None:
    paintings, alike = ([texture(n) for n in numbers] for numbers in (range(4), range(4, 8)))
    assert sliced_wasserstein(paintings, [one.copy() for one in paintings]) == [0, 0]
    assert 0.015 < min(sliced_wasserstein(paintings, alike)) < 0.05


def test_a_planted_copy_is_found_where_it_was_taken_and_others_are_not_copies() -> None:
    side = 16
    learnt = {f"painting {n}": texture(n, (40, 64), blur=4) for n in range(4)}
    source = learnt["painting 2"]
    planted = Crop("copy", 8, 20, mirrored=True)
    fresh = texture(9, (40, 64), blur=4)
    queries = [(planted, cut(source, planted, side))]
    queries += [(spot, cut(fresh, spot, side)) for spot in grid_crops("fresh", fresh, side)]
    found = nearest_crops(queries, learnt.items(), side)
    assert found[0].nearest == Crop("painting 2", 8, 20, mirrored=True)
    assert found[0].distance < 0.01
    assert min(one.distance for one in found[1:]) > 0.3
    limit = copy_threshold(found[:1], found[1:])
    assert found[0].distance < limit.value < min(one.distance for one in found[1:])
    assert limit.tells_apart


@pytest.mark.parametrize("offset", [(0, 0), (4, 4), (4, 0), (3, 5)])
def test_a_copy_from_between_thumbnail_pixels_is_a_copy(offset: tuple[int, int]) -> None:
    """A thumbnail pixel is 8 pixels of a crop of 128."""
    side = 128
    source, fresh = (texture(n, (301, 333), blur=9) for n in (0, 1))
    spot = Crop("copy", 152 + offset[0], 160 + offset[1])
    queries = [(spot, cut(source, spot, side)), (Crop("fresh", 0, 0), cut(fresh, Crop("", 0, 0), side))]
    copy, other = nearest_crops(queries, [("one", source)], side)
    assert copy.nearest.key == "one"
    assert abs(copy.nearest.top - spot.top) <= 2
    assert abs(copy.nearest.left - spot.left) <= 2
    assert copy.distance < other.distance / 3
    assert (copy.distance < 1e-2) == (offset != (3, 5))


def test_a_painting_no_larger_than_a_crop_has_one_place() -> None:
    pixels = texture(0, (128, 131), blur=8)
    (found,) = nearest_crops([(Crop("a", 0, 0), pixels[:, :128])], [("b", pixels)], 128)
    assert found.nearest == Crop("b", 0, 0)
    assert found.distance < 1e-2


@pytest.mark.parametrize("distance", [0.0, 1e-6, 0.1])
def test_exact_copies_are_copies_too(distance: float) -> None:
    """Whether they lie at 0 or a little off it is how a processor rounds."""
    spot = Crop("one", 0, 0)
    limit = copy_threshold([Neighbour(spot, spot, distance)], [Neighbour(spot, spot, 0.9)])
    assert distance < limit.value < 0.9


def test_a_flat_crop_is_no_copy_of_another_flat_crop_of_other_colour() -> None:
    sky, other = np.full((20, 20, 3), (20, 30, 90), np.uint8), np.full((20, 20, 3), (60, 30, 90), np.uint8)
    (found,) = nearest_crops([(Crop("a", 0, 0), sky[:16, :16])], [("b", other)], 16)
    assert found.distance > 1


def test_crops_cover_a_painting_evenly() -> None:
    spots = grid_crops("one", np.zeros((40, 33, 3), np.uint8), 16)
    assert sorted({one.top for one in spots}) == [0, 12, 24]
    assert sorted({one.left for one in spots}) == [0, 8, 17]


def test_even_windows_hold_every_token() -> None:
    grid = torch.arange(5 * 7).view(1, 5, 7)
    windows = even_windows([grid], 4)
    assert windows.shape == (4, 1, 16)
    assert set(windows.flatten().tolist()) == set(range(35))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    torch.set_num_threads(1)
    workspace = toy_workspace(tmp_path_factory.mktemp("toy") / "workspace", count=5)
    (workspace.masks("shifted") / "val.txt").write_text("toy 3.png\ntoy 4.png\n")
    train_painting_codes(workspace, replace(PAINTING, steps=40, save_every=40), "cpu")
    train_mask_codes(workspace, replace(MASK, steps=20, save_every=20), "cpu")
    train_transformer(workspace, replace(TOKENS, steps=12, save_every=12), "cpu")
    classes = workspace.settings().classes
    torch.manual_seed(0)
    about = {"architecture": "mobilenet_v3_large", "smallest_side": 0, "classes": classes.as_list()}
    save(workspace, build("mobilenet_v3_large", len(classes)), about)
    return workspace


def test_the_command_measures_and_writes_its_page(trained: Workspace) -> None:
    words = ["evaluate", "-w", str(trained.root), "--device", "cpu", "--perceptual", "none"]
    result = CliRunner().invoke(generate, [*words, "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["samples"] == 2
    assert 0 < found["likelihood"]["bits_per_token"] < 16
    assert found["reconstruction"]["paintings"] == 2
    assert found["reconstruction"]["lpips"] is None
    assert found["mask_codebook"]["rows"] == 16
    page = (trained.reports / "generate-evaluate.html").read_text()
    assert page.count("<img") == 2 * 4 + 2 * 2 + 2 * 2
    assert "toy 3-seed0-00" in page
    saved = json.loads((trained.reports / "generate-evaluate.json").read_text())
    assert saved["fidelity"]["samples"] == found["fidelity"]["samples"]
    samples = {path: path.stat().st_mtime_ns for path in (trained.samples / "evaluate").glob("*.png")}
    again = CliRunner().invoke(generate, words)
    assert "bits a token" in again.stdout, again.output
    assert samples == {path: path.stat().st_mtime_ns for path in samples}


def test_figures_are_those_of_the_pictures_on_disk(trained: Workspace) -> None:
    """Composition and likelihood, computed again from what the command left behind."""
    found = trained.report("generate-evaluate")
    assert found is not None
    segmenter = load(trained, torch.device("cpu"))
    names = segmenter.classes.names
    matrix = np.zeros((len(names), len(names) + 1), np.int64)
    for key in ("toy 3", "toy 4"):
        pixels = np.asarray(Image.open(trained.samples / "evaluate" / f"{key}-seed0-00.png").convert("RGB"))
        asked = unshift(read_mask(trained.mask("shifted", key), Encoding.SHIFTED))
        matrix += confusion(segmenter.classes.to_index(asked), predict_map(segmenter, pixels)[0], len(names))
    assert found["fidelity"]["samples"]["miou"] == pytest.approx(score(matrix, names).miou)
    assert found["fidelity"]["labelled_by_it"] == 0


def test_what_the_mask_codes_keep_is_what_they_draw_again(trained: Workspace) -> None:
    found, codes = trained.report("generate-evaluate"), load_vqgan(trained.model("mask-codes"), "")[0]
    assert found is not None
    classes = trained.settings().classes
    matrix = np.zeros((len(classes), len(classes) + 1), np.int64)
    for key in ("toy 3", "toy 4"):
        ids = read_mask(trained.mask("shifted", key), Encoding.SHIFTED)
        with torch.no_grad():
            half = has_fast_bfloat16(torch.device("cpu"))  # what paintings and masks are cut to tokens in
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                tokens = codes.encode_mask(torch.from_numpy(ids)[None]).indices
            again = codes.decode_indices(tokens)[0].argmax(0).numpy().astype(np.uint8)
        asked, drawn = (classes.to_index(unshift(one)) for one in (ids, again))
        matrix += confusion(asked, drawn, len(classes))
    assert found["masks"]["miou"] == pytest.approx(score(matrix, classes.names).miou)


def test_likelihood_of_a_model_without_opinion_is_that_of_chance(trained: Workspace) -> None:
    gpt = load_gpt(trained.model("transformer"), "")[0]
    torch.nn.init.zeros_(gpt.head.weight)
    tokens = torch.randint(16, (11, 16))
    assert nats_a_token(gpt, tokens, tokens) == pytest.approx(math.log(16), abs=1e-5)


def test_true_masks_are_read_in_either_encoding_and_checked(trained: Workspace, tmp_path: Path) -> None:
    words = ["evaluate", "-w", str(trained.root), "--device", "cpu", "--perceptual", "none"]
    for number in (3, 4):
        raw = unshift(read_mask(trained.mask("shifted", f"toy {number}"), Encoding.SHIFTED))
        Image.fromarray(raw).save(tmp_path / f"toy {number}.png")
    result = CliRunner().invoke(generate, [*words, "--truth", str(tmp_path), "--encoding", "raw", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["fidelity"]["samples"]["coverage"] == 1
    Image.fromarray(raw[:-4]).save(tmp_path / "toy 4.png")
    result = CliRunner().invoke(generate, [*words, "--truth", str(tmp_path)])
    assert result.exit_code == 1
    assert "toy 4.png: the mask is 32 x 44, its painting 36 x 44" in result.output


def test_without_held_out_paintings_it_says_what_to_do(trained: Workspace, tmp_path: Path) -> None:
    import shutil

    workspace = Workspace(Path(shutil.copytree(trained.root, tmp_path / "w")))
    (workspace.masks("shifted") / "val.txt").write_text("")
    result = CliRunner().invoke(generate, ["evaluate", "-w", str(workspace.root), "--device", "cpu"])
    assert result.exit_code == 1
    assert "run `tool segment convert --held-out 0.1`" in result.output


def test_weights_for_lpips_are_looked_at_before_anything_is_painted(
    trained: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["evaluate", "-w", str(trained.root), "--device", "cpu", "--seed", "7"]
    result = CliRunner().invoke(generate, [*words, "--perceptual", str(tmp_path / "gone.pth")])
    assert result.exit_code == 1
    assert "gone.pth: no such file" in result.output
    assert not list(trained.samples.rglob("*seed7*"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "empty").mkdir()
    result = CliRunner().invoke(generate, ["evaluate", "-w", str(tmp_path / "empty"), "--device", "cpu"])
    assert "no VGG16 weights here: LPIPS is not measured" in result.output
