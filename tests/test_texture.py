"""The texture loss: strokes may lie anywhere in a window, but must be there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from scipy.stats import wasserstein_distance
from torch import Tensor
from toy_paintings import toy_workspace

from annotate.errors import UserError
from generate.presets import PaintingCodesSettings
from generate.texture import BANDS, DIRECTIONS, WINDOW, texture_loss
from generate.train_codes import PaintingStage, train_painting_codes
from generate.wasserstein import PATCH, laplacian_bands


def strokes(seed: int, side: int = 64, long: int = 6) -> Tensor:
    """(1, 3, side, side): short lines of random colours, in rows and columns."""
    chance = np.random.default_rng(seed)
    canvas = chance.normal(0, 0.1, (3, side, side))
    for _ in range(side * side // 12):
        top, left = chance.integers(0, side - long, 2)
        colour = chance.uniform(-1, 1, (3, 1))
        if chance.integers(2):
            canvas[:, top, left : left + long] = colour
        else:
            canvas[:, top : top + long, left] = colour
    return torch.from_numpy(canvas[None]).float().clamp(-1, 1)


def cost(reconstruction: Tensor, painting: Tensor) -> float:
    torch.manual_seed(0)
    return float(texture_loss(reconstruction, painting))


def test_it_is_scipys_distance_along_each_direction() -> None:
    a, b = strokes(0, WINDOW), strokes(1, WINDOW)  # one window
    torch.manual_seed(3)
    found = float(texture_loss(a, b))
    torch.manual_seed(3)
    total = 0.0
    for level in range(BANDS):
        directions = torch.randn(DIRECTIONS, 3, PATCH, PATCH)
        along = []
        for one in (a, b):
            band = laplacian_bands(one, BANDS + 1)[level]
            padded = F.pad(band, (3, 3, 3, 3), mode="reflect")
            patches = padded[0].unfold(1, PATCH, 1).unfold(2, PATCH, 1).permute(1, 2, 0, 3, 4)
            unit = directions.flatten(1) / directions.flatten(1).norm(dim=1, keepdim=True)
            along.append(patches.flatten(2).flatten(0, 1).numpy() @ unit.T.numpy())  # (pixels, D)
        total += float(
            np.mean([wasserstein_distance(*pair) for pair in zip(along[0].T, along[1].T, strict=True)])
        )
    assert found == pytest.approx(total, rel=1e-4)


def test_strokes_may_lie_elsewhere_but_a_blur_may_not() -> None:
    painting = strokes(0)
    moved, blurred = painting.roll((5, 3), (2, 3)), F.avg_pool2d(painting, 5, 1, 2, count_include_pad=False)
    assert cost(painting, painting) == 0
    assert cost(blurred, painting) > 3 * cost(moved, painting)
    # what plain L1 prefers
    assert (blurred - painting).abs().mean() < 0.75 * (moved - painting).abs().mean()


def test_strokes_belong_to_their_window() -> None:
    half = torch.cat([strokes(0, WINDOW), torch.zeros(1, 3, WINDOW, WINDOW)], 3)
    assert cost(half.flip(3), half) > 5 * cost(torch.cat([strokes(1, WINDOW), half[..., WINDOW:]], 3), half)


@pytest.mark.parametrize("side", [16, 44, 100])
def test_crops_of_any_side(side: int) -> None:
    image = (0.1 * strokes(1, side)).requires_grad_()
    torch.autograd.backward(texture_loss(image, strokes(0, side)))
    assert image.grad is not None
    assert (image.grad != 0).float().mean() > 0.8


def test_its_gradient_sharpens_a_blur() -> None:
    painting = strokes(0)
    start = F.avg_pool2d(painting, 5, 1, 2, count_include_pad=False)
    image = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([image], 0.02)
    torch.manual_seed(0)
    for _ in range(60):
        optimizer.zero_grad()
        torch.autograd.backward(texture_loss(image, painting))
        optimizer.step()
    assert cost(image.detach(), painting) < 0.4 * cost(start, painting)
    edges = [float(one.diff(dim=3).abs().mean()) for one in (start, image.detach(), painting)]
    assert edges[1] > (edges[0] + edges[2]) / 2


def test_it_stays_in_float32_where_training_does_not() -> None:
    a, b = strokes(0), strokes(1)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = cost(a, b)
    assert mixed == cost(a, b)


CODES = PaintingCodesSettings(
    steps=8, start_codebook=2, revive_every=1, texture=1.0, texture_part=0.5, perceptual="none", smallest_side=0,
    channel_multipliers="1,1", z_channels=8, embed_dim=8, codebook_size=16, crop=16, batch=2, precision="float32",
)  # fmt: skip


def test_only_the_decoder_learns_in_its_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_start: dict[str, Tensor] = {}
    whole = PaintingStage.after_step

    def after_step(stage: PaintingStage) -> None:
        whole(stage)
        if stage.done == 4:
            at_start.update({name: one.clone() for name, one in stage.net.state_dict().items()})

    monkeypatch.setattr(PaintingStage, "after_step", after_step)
    workspace = toy_workspace(tmp_path)
    train_painting_codes(workspace, CODES, "cpu")
    end = load_file(workspace.model("painting-codes") / "model.safetensors")
    changed = {name for name, one in end.items() if not torch.equal(one, at_start[name])}
    assert changed == {name for name in end if name.startswith(("decoder.", "post_quant_conv."))}
    assert "texture" in (workspace.report("generate-train-painting") or {})["losses"]


def test_a_codebook_that_would_never_start_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"--texture begins at step 4 of 8, .* and the codebook at 4: raise --steps"
    ):
        replace(CODES, start_codebook=4)
    assert replace(CODES, start_codebook=4, texture=0.0).texture_start == 8


def test_switched_off_it_leaves_trainings_from_before_it_valid(tmp_path: Path) -> None:
    workspace, off = toy_workspace(tmp_path), replace(CODES, texture=0.0)
    assert not {"texture", "texture_part"} & off.deciding().keys()  # they had no such settings
    assert train_painting_codes(workspace, off, "cpu").trained
    assert not train_painting_codes(workspace, replace(off, texture_part=0.25), "cpu").trained
    assert train_painting_codes(workspace, CODES, "cpu").trained
    assert train_painting_codes(workspace, replace(CODES, texture_part=0.25), "cpu").trained


def test_an_unfinished_training_without_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = toy_workspace(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(PaintingStage, "_remember", lambda self: 1 / (6 - self.done))
        with pytest.raises(ZeroDivisionError):
            train_painting_codes(workspace, replace(CODES, save_every=2, texture=0.0), "cpu")
    with pytest.raises(UserError, match=r"had no --texture, now --texture 1.0; give the same .* or --again"):
        train_painting_codes(workspace, replace(CODES, save_every=2), "cpu")
