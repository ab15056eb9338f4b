"""Hand masks as training data: what is refused, what is left out, and crops that stay aligned."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from segment_toys import SHORT, SIZE, toy, toy_workspace
from torch import Tensor

from annotate.classes import UNLABELLED, ClassTable
from annotate.errors import UserError
from annotate.masks import Encoding, read_mask, write_mask
from annotate.paintings import MAX_PIXELS
from annotate.workspace import Workspace
from segment.config import TrainConfig
from segment.crops import Crops, Stretches
from segment.data import Sample, class_counts, class_weights, load_samples, scaled_size

CLASSES = ClassTable()


def coded(size: tuple[int, int] = (50, 70), seed: int = 0) -> Sample:
    """A sample whose red channel says which class the pixel has, in patches."""
    rng = np.random.default_rng(seed)
    labels = np.kron(rng.integers(0, 3, (size[0] // 10, size[1] // 10)), np.ones((10, 10))).astype(np.uint8)
    pixels = np.stack([labels * 100, labels * 0, labels * 0])
    return Sample("coded", torch.from_numpy(pixels), torch.from_numpy(labels), "digest")


def test_loads_at_the_networks_size(tmp_path: Path) -> None:
    workspace = toy_workspace(tmp_path)
    samples = load_samples(workspace, CLASSES, 20)
    assert [one.key for one in samples] == ["set/p0", "set/p1", "set/p2"]
    assert samples[0].pixels.shape == (3, 20, 28)
    assert samples[0].labels.shape == (20, 28)
    assert set(torch.unique(samples[0].labels).tolist()) <= {0, 1, 2, UNLABELLED}
    assert load_samples(workspace, CLASSES, 0)[1].labels.shape == (SIZE[0] + 1, SIZE[1])


def test_no_masks(tmp_path: Path) -> None:
    workspace = toy_workspace(tmp_path, hand=0)
    with pytest.raises(UserError, match=r"no hand masks; .*annotate pull"):
        load_samples(workspace, CLASSES, 0)


def test_one_mask_works_with_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(load_samples(toy_workspace(tmp_path, hand=1), CLASSES, 0)) == 1
    assert "only one hand mask" in capsys.readouterr().err


def test_an_unlabelled_mask_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workspace = toy_workspace(tmp_path)
    _overwrite(workspace, np.full(SIZE, UNLABELLED, np.uint8))
    assert len(load_samples(workspace, CLASSES, 0)) == 2
    assert "p0.png: nothing in it is labelled" in capsys.readouterr().err


def test_only_unlabelled_masks(tmp_path: Path) -> None:
    workspace = toy_workspace(tmp_path, hand=1)
    _overwrite(workspace, np.full(SIZE, UNLABELLED, np.uint8))
    with pytest.raises(UserError, match="no mask has a labelled pixel"):
        load_samples(workspace, CLASSES, 0)


def test_one_class_only(tmp_path: Path) -> None:
    workspace = toy_workspace(tmp_path, hand=1)
    _overwrite(workspace, np.full(SIZE, 156, np.uint8))
    with pytest.raises(UserError, match="every labelled pixel is 'sky'"):
        load_samples(workspace, CLASSES, 0)


def test_a_class_in_one_painting_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workspace = toy_workspace(tmp_path)
    mask = read_mask(workspace.mask("hand", "set/p1"), Encoding.RAW)
    mask[2:5, 3:8] = 129
    write_mask(workspace.mask("hand", "set/p1"), mask, Encoding.RAW)
    samples = load_samples(workspace, workspace.settings().classes, 0)
    assert len(samples) == 3
    assert "street light is annotated in one painting only (set/p1)" in capsys.readouterr().err


def test_another_size(tmp_path: Path) -> None:
    workspace = toy_workspace(tmp_path)
    _overwrite(workspace, np.full((7, 5), 156, np.uint8))
    with pytest.raises(UserError, match=r"p0\.png: the mask is 7 x 5, its painting 40 x 56"):
        load_samples(workspace, CLASSES, 0)


def test_an_id_outside_the_classes(tmp_path: Path) -> None:
    workspace = toy_workspace(tmp_path)
    _overwrite(workspace, np.full(SIZE, 3, np.uint8))
    with pytest.raises(UserError, match=r"p0\.png: mask ids \[3\] are not in tool.toml"):
        load_samples(workspace, CLASSES, 0)


def test_a_mask_without_painting(tmp_path: Path) -> None:
    workspace = toy_workspace(tmp_path)
    write_mask(workspace.mask("hand", "stray"), toy(0)[1], Encoding.RAW)
    with pytest.raises(UserError, match=r"stray\.png: no painting has this key"):
        load_samples(workspace, CLASSES, 0)


def _overwrite(workspace: Workspace, ids: np.ndarray) -> None:  # type: ignore[type-arg]
    write_mask(workspace.mask("hand", "set/p0"), ids, Encoding.RAW)


def test_crops_keep_painting_and_mask_aligned() -> None:
    config = TrainConfig(crop=48, colour=0.0, scale_low=0.5, scale_high=2.0)
    crops = Crops([coded(seed=1), coded((70, 30), seed=2)], config)
    padded = 0
    for n in range(40):
        pixels, labels = crops[n]["pixels"], crops[n]["labels"]
        assert pixels.shape == (3, 48, 48)
        assert labels.shape == (48, 48)
        inside = labels != UNLABELLED
        assert inside.any()
        padded += int((~inside).sum())
        assert (pixels[:, ~inside] == 116).all()
        right = (pixels[0].long() - labels * 100).abs()[inside] < 60  # blurred only where patches meet
        assert right.float().mean() > 0.8
    assert padded > 0


def test_a_crop_depends_on_its_number_alone() -> None:
    crops = Crops([coded(seed=1), coded(seed=2)], SHORT)
    forward = [crops[n] for n in range(5)]
    backward = [Crops([coded(seed=1), coded(seed=2)], SHORT)[n] for n in reversed(range(5))]
    for one, two in zip(forward, reversed(backward), strict=True):
        assert torch.equal(one["pixels"], two["pixels"])
        assert torch.equal(one["labels"], two["labels"])
    other = Crops([coded(seed=1)], replace(SHORT, seed=9))[0]
    assert not torch.equal(forward[0]["pixels"], other["pixels"])


def test_rare_classes_are_drawn_more_often() -> None:
    labels = torch.zeros(60, 80, dtype=torch.uint8)
    labels[3:5, 70:72] = 1
    sample = Sample("rare", labels.expand(3, 60, 80).contiguous(), labels, "digest")

    def seen(rare: float) -> int:
        crops = Crops([sample], TrainConfig(crop=32, rare=rare, colour=0.0, scale_low=1.0, scale_high=1.0))
        return sum(bool((crops[n]["labels"] == 1).any()) for n in range(40))

    assert seen(1.0) > seen(0.0) + 5


@dataclass
class Done:
    global_step: int = 0
    global_rank: int = 0


def test_stretches_cover_every_crop_once() -> None:
    config = TrainConfig(steps=8, batch=3, save_every=3, rounds=1)
    done = Done()
    sampler = Stretches(config, done)
    numbers: list[int] = []
    lengths = []
    while len(sampler):
        assert len(list(sampler)) == len(sampler)
        assert len(sampler) % config.batch == 0
        lengths.append(len(sampler) // config.batch)
        numbers += list(sampler)
        done.global_step = len(numbers) // config.batch
    assert numbers == list(range(24))
    assert lengths == [3, 1, 3, 1]  # steps; a stretch ends where a round does


def test_processes_share_each_batch() -> None:
    config = TrainConfig(steps=5, batch=6, save_every=2, rounds=0, devices=3)
    shares = [list(Stretches(config, Done(2, rank))) for rank in range(3)]
    assert sorted(n for share in shares for n in share) == list(range(12, 24))
    assert {len(share) for share in shares} == {4}
    assert [n // 6 for n in shares[1]] == [2, 2, 3, 3]


def test_class_weights() -> None:
    sample = coded()
    counts = class_counts([sample], 4)
    assert counts.sum() == sample.labels.numel()
    flat: Tensor = class_weights(counts, 0.0)
    assert flat.tolist() == [1, 1, 1, 0]
    weights = class_weights(np.array([900, 100, 0]), 0.5)
    assert float(weights[1] / weights[0]) == pytest.approx(3.0)
    assert float(weights[0] * 0.9 + weights[1] * 0.1) == pytest.approx(1.0)


def test_scaled_size() -> None:
    assert scaled_size((300, 500), 150) == (150, 250)
    assert scaled_size((500, 300), 600) == (1000, 600)
    assert scaled_size((7, 5), 0) == (7, 5)
    assert scaled_size((7, 5), 1) == (2, 2)  # not 1 x 1, which torchvision cannot make
    height, width = scaled_size((3, 30_000), 512)
    assert height * width <= MAX_PIXELS + width


@pytest.mark.parametrize(("size", "scale"), [((1, 1), 0.1), ((2, 2), 0.5), ((1, 40), 0.1), ((50, 70), 1e6)])
def test_crops_of_any_painting_at_any_scale(size: tuple[int, int], scale: float) -> None:
    labels = torch.zeros(size, dtype=torch.uint8)
    sample = Sample("tiny", labels.expand(3, *size).contiguous(), labels, "digest")
    crops = Crops([sample], TrainConfig(crop=32, scale_low=scale, scale_high=scale))
    for n in range(8):
        assert crops[n]["pixels"].shape == (3, 32, 32)
        assert (crops[n]["labels"] == 0).any()
