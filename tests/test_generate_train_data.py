"""Crops of paintings and masks, the losses, and the codebook's start and revival."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from toy_paintings import COLOURS, toy_workspace

from annotate.errors import UserError
from annotate.masks import Encoding, read_mask, write_mask
from generate.augment import augment, cut_out, recolour, translate
from generate.codebook import CodebookUse, k_means
from generate.data import Crops, Stretches, held_out_keys, load_masks, load_pictures, scale, scaled_size
from generate.discriminator import PatchDiscriminator, hinge_loss
from generate.losses import (
    HEAVIEST,
    adversarial_sum,
    balanced_weights,
    class_wise_loss,
    detail_loss,
    next_token_loss,
    pixel_loss,
)
from generate.perceptual import PerceptualLoss, find_perceptual


@pytest.mark.parametrize(("size", "side", "wanted"), [((200, 300), 460, (460, 690)), ((7, 5), 0, (7, 5))])
def test_smallest_side(size: tuple[int, int], side: int, wanted: tuple[int, int]) -> None:
    assert scaled_size(size, side) == wanted


def test_masks_are_scaled_by_nearest_and_stay_on_their_painting() -> None:
    ids = np.zeros((6, 10), np.uint8)
    ids[:, 5:] = 178
    larger = scale(ids, (12, 20), smooth=False)
    assert set(np.unique(larger)) == {0, 178}
    assert (larger[:, :10] == 0).all()
    assert (larger[:, 10:] == 178).all()


def test_crops_of_painting_and_mask_lie_on_one_another(tmp_path: Path) -> None:
    workspace = toy_workspace(tmp_path)
    rows = list(zip(load_pictures(workspace, 0, 16), load_masks(workspace, 0, 16, 182), strict=True))
    crops = Crops(rows, crop=16, flip=True, seed=3)
    seen = set()
    for n in range(40):
        painting, mask = crops[n]
        assert painting.shape == (3, 16, 16)
        assert mask.shape == (16, 16)
        seen |= set(np.unique(mask).tolist())
        for raw, colour in COLOURS.items():
            here = painting[:, mask == (raw + 1) % 256]  # (3, n)
            assert {tuple(c) for c in here.T.tolist()} <= {colour, tuple(v // 2 for v in colour)}
    assert seen == {0, 149, 178}


def test_items_depend_on_their_number_alone_and_every_painting_comes_up(tmp_path: Path) -> None:
    workspace = toy_workspace(tmp_path)
    rows = [(one,) for one in load_pictures(workspace, 0, 36)]
    forward = Crops(rows, 36, flip=False, seed=0)
    backward = Crops(rows, 36, flip=False, seed=0)
    first = [forward[n][0] for n in range(8)]
    last = [backward[n][0] for n in reversed(range(8))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(first, last, strict=True))
    borders = [int((crop[2] > 150).any(0).sum()) for crop in first[:4]]
    assert len(set(borders)) > 1


def test_stretches_cover_every_item_once_and_share_it_among_ranks() -> None:
    numbers = []
    for start in (0, 8, 16):
        for rank in range(2):
            sampler = Stretches(22, 8, partial(int, start), rank, ranks=2)
            assert len(sampler) == len(list(sampler))
            numbers += list(sampler)
    assert sorted(numbers) == list(range(22))


def test_held_out_keys(tmp_path: Path) -> None:
    assert held_out_keys(toy_workspace(tmp_path)) == {"toy 3"}


def test_bad_pictures_are_one_line(tmp_path: Path) -> None:
    workspace = toy_workspace(tmp_path)
    with pytest.raises(
        UserError, match=r"36 x 44 is smaller than the crop of 64; use --smallest-side 64 \(scales it up\)$"
    ):
        load_pictures(workspace, 0, 64)
    with pytest.raises(
        UserError,
        match=r"shifted id 178 has no channel with n_labels 150; train the mask codes with `tool generate train mask --n-labels 179`",
    ):
        load_masks(workspace, 0, 16, 150)
    ids = read_mask(workspace.mask("shifted", "toy 1"), Encoding.SHIFTED)
    write_mask(workspace.mask("shifted", "toy 1"), np.ascontiguousarray(ids[:, :-1]), Encoding.SHIFTED)
    with pytest.raises(UserError, match=r"toy 1.png: the mask is 36 x 43, its painting 36 x 44"):
        load_masks(workspace, 0, 16, 182)
    Image.fromarray(ids).save(workspace.mask("shifted", "toy 1"))
    with pytest.raises(
        UserError, match=r"toy 1.png: does not say that it is shifted; run `tool segment convert`"
    ):
        load_masks(workspace, 0, 16, 182)
    write_mask(workspace.mask("shifted", "toy 1"), ids, Encoding.SHIFTED)
    write_mask(workspace.mask("shifted", "stray"), ids, Encoding.SHIFTED)
    with pytest.raises(UserError, match=r"stray.png: no painting has this key"):
        load_masks(workspace, 0, 16, 182)


def test_no_masks_yet_names_the_command(tmp_path: Path) -> None:
    workspace = toy_workspace(tmp_path)
    for key in workspace.keys_with_mask("shifted"):
        workspace.mask("shifted", key).unlink()
    with pytest.raises(UserError, match="run `tool segment convert`"):
        load_masks(workspace, 0, 16, 182)


def test_detail_loss_sees_edges_where_l1_sees_none() -> None:
    painting = torch.zeros(1, 3, 12, 20)
    flat, stripes = painting + 0.5, painting.clone()
    stripes[..., ::2] = 0.5
    stripes[..., 1::2] = -0.5
    assert detail_loss(painting, painting) == 0
    assert detail_loss(flat, painting) < 1e-6  # the mean is plain L1's part
    assert detail_loss(stripes, painting) == pytest.approx(0.5)


def test_class_wise_loss_is_the_mean_over_pixels_and_classes() -> None:
    logits = torch.tensor([2.0, -1.0, 0.5]).view(1, 3, 1, 1)
    each = [math.log1p(math.exp(-2.0)), math.log1p(math.exp(-1.0)), math.log1p(math.exp(0.5))]
    assert float(class_wise_loss(logits, torch.zeros(1, 1, 1, dtype=torch.int64))) == pytest.approx(
        sum(each) / 3, abs=1e-6
    )


def test_balanced_every_class_has_the_same_share_of_the_loss() -> None:
    target = torch.tensor([1] * 60 + [2] * 30 + [3] * 10).view(1, 10, 10)
    weights = balanced_weights(torch.bincount(target.flatten()))
    logits = torch.zeros(1, 4, 10, 10)
    shares = [float(pixel_loss(logits, target, weights * (torch.arange(4) == n))) for n in range(4)]
    assert shares == pytest.approx([0] + 3 * [math.log(4) / 3], abs=1e-6)
    assert float(weights[0]) == 1  # of what never occurs
    assert float(pixel_loss(logits, target, weights)) == pytest.approx(math.log(4))
    assert float(balanced_weights(torch.tensor([10_000, 1]))[1]) == HEAVIEST


def test_position_before_a_painting_token_predicts_it() -> None:
    painting = torch.tensor([[3, 1, 2, 0]])
    logits = torch.zeros(1, 7, 5)  # 4 mask tokens, then the first 3 painting tokens
    for place, token in enumerate([3, 1, 2, 0]):
        logits[0, 3 + place, token] = 50.0
    assert float(next_token_loss(logits, painting)) < 1e-6
    assert float(next_token_loss(logits.roll(1, 1), painting)) > 10


def test_adversarial_sum_has_the_value_and_gradients_of_the_reference() -> None:
    """Against the straightforward way: a gradient of each loss at the last weight, then the sum's everywhere."""
    torch.manual_seed(0)
    body, last = torch.nn.Conv2d(2, 4, 3), torch.nn.Conv2d(4, 3, 3)
    judge = torch.nn.Conv2d(3, 1, 3)
    made = last(torch.tanh(body(torch.randn(2, 2, 9, 11))))
    wanted = torch.randn_like(made)

    def costs(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return (image - wanted).abs().mean(), -judge(image).mean()

    rec, adv = costs(made)
    (a,) = torch.autograd.grad(rec, last.weight, retain_graph=True)
    (b,) = torch.autograd.grad(adv, last.weight, retain_graph=True)
    theirs = rec + 0.8 * (a.norm() / (b.norm() + 1e-4)).detach() * adv
    parameters = [*body.parameters(), *last.parameters()]
    reference = torch.autograd.grad(theirs, parameters, retain_graph=True)
    seen = made.detach().requires_grad_()
    ours = adversarial_sum(made, seen, *costs(seen), 0.8, last.weight)
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-5)
    for one, other in zip(torch.autograd.grad(ours, parameters), reference, strict=True):
        assert torch.allclose(one, other, atol=1e-6, rtol=1e-4)
    assert all(one.grad is None for one in judge.parameters())


def test_discriminator_learns_to_tell_two_textures_apart() -> None:
    torch.manual_seed(0)
    net = PatchDiscriminator(channels=8)
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(30):
        painted, smooth = torch.randn(4, 3, 40, 56), torch.randn(4, 3, 5, 7)
        loss = hinge_loss(net(painted), net(F.interpolate(smooth, (40, 56))))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert loss.item() < 0.5
    assert (
        net(torch.randn(1, 3, 40, 56)).mean() > net(F.interpolate(torch.randn(1, 3, 5, 7), (40, 56))).mean()
    )


@pytest.mark.parametrize("change", [recolour, translate, cut_out, augment])
def test_augmentation_is_random_keeps_the_shape_and_lets_gradients_through(
    change: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    torch.manual_seed(0)
    images = torch.rand(3, 3, 24, 40) * 2 - 1
    images[2] = images[1]
    images.requires_grad_()
    changed = change(images)
    assert changed.shape == images.shape
    assert not torch.equal(changed[1], changed[2])
    (gradient,) = torch.autograd.grad(changed.sum(), images)
    assert gradient.abs().sum() > 0


def test_a_shift_and_a_hole_leave_the_rest_as_it_was() -> None:
    torch.manual_seed(1)
    image = torch.arange(1.0, 1 + 3 * 16 * 24).view(1, 3, 16, 24)
    shifted = translate(image)[0, 0]
    rows, columns = torch.nonzero(shifted, as_tuple=True)
    first = image[0, 0] == shifted[rows.min(), columns.min()]
    top, left = (int(one) for one in torch.nonzero(first)[0])
    height, width = int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1
    assert torch.equal(
        shifted[rows.min() : rows.min() + height, columns.min() : columns.min() + width],
        image[0, 0, top : top + height, left : left + width],
    )
    holed = cut_out(image)
    same = holed == image
    assert (holed[~same] == 0).all()
    assert 0 < int((~same[0, 0]).sum()) <= 9 * 13


def test_k_means_finds_the_centres() -> None:
    torch.manual_seed(1)
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    vectors = centres.repeat_interleave(50, 0) + 0.1 * torch.randn(150, 2)
    found = k_means(vectors, 3)
    assert float(torch.cdist(centres, found).min(1).values.max()) < 0.1
    assert k_means(vectors[:2], 4).shape == (4, 2)


def test_dead_rows_are_revived_and_only_those() -> None:
    use = CodebookUse(4)
    for _ in range(50):
        use.count(torch.tensor([0, 1, 1, 2, 2, 2]))
    assert use.used() == 3
    assert 1 < use.perplexity() < 3
    rows = torch.zeros(4, 2)
    assert use.revive(rows, torch.full((6, 2), 7.0)) == 1
    assert rows.tolist() == [[0, 0], [0, 0], [0, 0], [7, 7]]
    assert use.revive(rows, torch.zeros(6, 2)) == 0


def test_perplexity_of_even_use_is_the_number_of_rows() -> None:
    use = CodebookUse(5)
    use.count(torch.arange(5).view(1, 5))
    assert use.perplexity() == pytest.approx(5)


def test_perceptual_weights_are_optional(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert find_perceptual("none") is None
    assert find_perceptual("auto") is None
    assert "trained without the perceptual loss" in capsys.readouterr().err
    with pytest.raises(UserError, match="no such file"):
        find_perceptual(str(tmp_path / "vgg.pth"))
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "vgg.pth")
    with pytest.raises(UserError, match=r"not the state dict of torchvision's vgg16 \(Missing key"):
        find_perceptual(str(tmp_path / "vgg.pth"))


@pytest.mark.parametrize("name", ["vgg.pth", "vgg.safetensors"])
@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "not a readable checkpoint"),
        (b"weights", "not a readable checkpoint"),
        (
            b"\x80\x02cposix\nsystem\nX\x01\x00\x00\x00a\x85R.",
            "not a readable checkpoint|wants to call posix",
        ),
    ],
)
def test_perceptual_weights_of_any_damage_are_one_line(
    tmp_path: Path, name: str, content: bytes, line: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"^--perceptual .*{name}: .*({line})") as caught:
        find_perceptual(str(tmp_path / name))
    assert "\n" not in caught.value.message


def test_perceptual_weights_that_cannot_be_fetched_say_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", offline)
    with pytest.raises(UserError, match=r"--perceptual fetch: https://.*no network.*give --perceptual FILE"):
        find_perceptual("fetch")


def test_perceptual_loss_from_a_file(tmp_path: Path) -> None:
    from torchvision.models.vgg import cfgs, make_layers

    torch.manual_seed(0)
    state = {f"features.{name}": value for name, value in make_layers(cfgs["D"]).state_dict().items()}
    torch.save(state | {"classifier.0.bias": torch.zeros(3)}, tmp_path / "vgg.pth")
    loss = find_perceptual(str(tmp_path / "vgg.pth"))
    assert isinstance(loss, PerceptualLoss)
    image = torch.rand(1, 3, 32, 48) * 2 - 1
    assert float(loss(image, image)) == 0
    near, far = image + 0.05 * torch.randn_like(image), torch.rand(1, 3, 32, 48) * 2 - 1
    assert 0 < float(loss(near, image)) < float(loss(far, image))
    assert not any(one.requires_grad for one in loss.parameters())
