"""Self-training: what the rest holds, which crops a batch gets, and the losses that judge them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from segment_toys import SHORT, toy_workspace
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import default_collate

from annotate.classes import UNLABELLED, ClassTable
from annotate.paintings import read_index
from segment.config import TrainConfig
from segment.crops import Crops
from segment.data import Sample
from segment.learner import Learner, dice_loss
from segment.model import WEIGHTS, Segmenter, build
from segment.rounds import Rest, prepare
from segment.train import train

MIXED = TrainConfig(batch=4, crop=32, steps=6, rounds=1, mix=1.0, colour=0.0, rare=0.0, machine_weight=0.25)


@pytest.fixture
def rest(tmp_path: Path) -> Rest:
    workspace = toy_workspace(tmp_path)
    others = [one for key, one in read_index(workspace).items() if key in ("set/p3", "set/p4")]
    return prepare(workspace, others, tmp_path / "rest", "mark", 30)


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    torch.manual_seed(0)
    net = build("mobilenet_v3_large", 6).eval()
    return Segmenter(net, ClassTable(), 0, "", torch.device("cpu"))


def test_the_rest_is_labelled_at_the_networks_size(rest: Rest, segmenter: Segmenter) -> None:
    assert rest.keys == ("set/p3", "set/p4")
    assert not rest.labelled(1)
    rest.label(segmenter, 1, 0.0)
    assert rest.labelled(1)
    assert not rest.labelled(2)
    one = rest.sample(0, 1)
    assert (one.key, one.pixels.shape, one.labels.shape) == (
        "set/p3",
        (3, 30, 39),
        (30, 39),
    )  # 43 x 56 before
    assert int(one.labels.max()) < 6
    rest.label(segmenter, 2, 1.1)  # nothing is as sure
    assert bool((rest.sample(1, 2).labels == UNLABELLED).all())


def test_labels_that_are_there_stay(rest: Rest, segmenter: Segmenter) -> None:
    rest.label(segmenter, 1, 0.0)
    first = rest.sample(0, 1).labels.clone()
    (rest.folder / "round-1" / "set" / "p4.npy").unlink()  # as if killed between the two
    rest.label(segmenter, 1, 1.1)
    assert torch.equal(rest.sample(0, 1).labels, first)
    assert bool((rest.sample(1, 1).labels == UNLABELLED).all())


def test_another_training_begins_anew(tmp_path: Path, rest: Rest, segmenter: Segmenter) -> None:
    rest.label(segmenter, 1, 0.0)
    workspace = toy_workspace(tmp_path)
    others = [read_index(workspace)[key] for key in rest.keys]
    assert prepare(workspace, others, rest.folder, "mark", 30).labelled(1)
    assert not prepare(workspace, others, rest.folder, "other mark", 30).labelled(1)


def test_an_unreadable_painting_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workspace = toy_workspace(tmp_path)
    others = [read_index(workspace)[key] for key in ("set/p3", "set/p4")]
    others[0].file(workspace).write_bytes(b"no painting")
    assert prepare(workspace, others, tmp_path / "rest", "mark", 0).keys == ("set/p4",)
    assert "left out: " in capsys.readouterr().err


class Plain:
    """Machine-labelled paintings whose pixels are their class times 20 plus 100 a round."""

    def __len__(self) -> int:
        return 3

    def sample(self, n: int, round_: int) -> Sample:
        labels = torch.full((40, 50), n, dtype=torch.uint8)
        return Sample(str(n), (labels * 20 + 100 * round_).expand(3, 40, 50), labels, "")


def by_hand() -> list[Sample]:
    labels = torch.full((40, 50), 5, dtype=torch.uint8)
    return [Sample("hand", torch.zeros(3, 40, 50, dtype=torch.uint8), labels, "")]


def test_machine_crops_fill_the_end_of_a_batch_from_the_first_round_on() -> None:
    crops = Crops(by_hand(), MIXED, Plain())
    weights = [[crops[step * 4 + place]["weight"] for place in range(4)] for step in range(6)]
    assert weights == [[1.0] * 4] * 3 + [[1.0, 1.0, 0.25, 0.25]] * 3
    for n in range(12, 24):
        assert bool((crops[n]["labels"] == 5).any()) == (n % 4 < 2)
        assert crops[n]["machine"] == (n % 4 >= 2)


def test_a_pasted_piece_keeps_its_labels() -> None:
    crops = Crops(by_hand(), MIXED, Plain())
    several = 0
    for n in (14, 15, 18, 19, 22, 23):
        pixels, labels = crops[n]["pixels"], crops[n]["labels"]
        known = labels != UNLABELLED
        assert torch.equal(pixels[:, known], (labels[known] * 20 + 100).to(torch.uint8).expand(3, -1))
        several += len(torch.unique(labels[known])) > 1
    assert several


def test_the_average_labels_the_views_that_a_machine_labelled_crop_was_made_of() -> None:
    """It sees each view whole and in its own colours; what is padding stays unlabelled, and hand labels stay."""

    class Painter(torch.nn.Module):
        """Says of each pixel the class that `Plain` painted it with."""

        def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
            plain = (pixels[:, 0] * 0.229 + 0.485) * 255  # as `normalise` found it
            label = ((plain - 100) / 20).round().long().clamp(0, 5)
            return {"out": 9 * F.one_hot(label, 6).movedim(-1, 1).float()}

    config = replace(MIXED, consistency=True, colour=0.5)
    crops = Crops(by_hand(), config, Plain())
    learner = Learner(torch.nn.Conv2d(1, 1, 1), by_hand(), [], ClassTable(), config, "")
    learner.average.module = Painter()
    batch = default_collate([crops[n] for n in range(12, 16)])
    told = batch["labels"].clone()
    batch["labels"][batch["machine"][:, None, None] & (told != UNLABELLED)] = 4  # a teacher that was wrong
    assert torch.equal(learner._labelled_anew(batch), told)
    assert batch["pixels"][batch["machine"]].ne(batch["views"][batch["machine"], 0]).any()
    learner.config = replace(config, sure=1.0)  # more than any network is
    assert (learner._labelled_anew(batch)[2:] == UNLABELLED).all()


def test_training_with_consistency_learns_something_else_and_ends(tmp_path: Path) -> None:
    found = []
    for consistency in (False, True):
        workspace = toy_workspace(tmp_path / str(consistency))
        train(workspace, replace(SHORT, steps=4, rounds=1, consistency=consistency), "cpu")
        found.append((workspace.model("deeplab") / WEIGHTS).read_bytes())
    assert found[0] != found[1]


def test_rounds_share_out_the_steps() -> None:
    config = replace(SHORT, steps=10, rounds=2, batch=5, machine=0.5)
    assert config.round_ends == (3, 6, 10)
    assert [config.round_of(step) for step in range(10)] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 2]
    assert config.machine_crops == 2  # hand masks have the greater half


def test_dice_loss() -> None:
    labels = torch.tensor([[[0, 0, 1], [UNLABELLED, 0, 1]]])  # (1, 2, 3)
    sure = torch.zeros(1, 3, 2, 3)
    sure[0, 0] = torch.tensor([[20.0, 20, -20], [20, 20, -20]])
    sure[0, 1] = -sure[0, 0]
    sure[0, 2] = -40
    weight = torch.ones(1)
    assert dice_loss(sure, labels, weight) == pytest.approx(0, abs=1e-6)
    even = dice_loss(torch.zeros(1, 3, 2, 3), labels, weight)  # a third everywhere, of 5 known pixels
    expected = 1 - np.mean([2 * 3 / 3 / (5 / 3 + 3), 2 * 2 / 3 / (5 / 3 + 2)])
    assert float(even) == pytest.approx(expected)
    nothing = torch.full((1, 2, 3), UNLABELLED)
    assert float(dice_loss(sure, nothing, weight)) == 0
    assert_ignores(sure, labels)


def assert_ignores(logits: Tensor, labels: Tensor) -> None:
    """A crop of weight 0 changes nothing."""
    two = torch.cat([logits, -logits]), torch.cat([labels, labels])
    assert torch.equal(dice_loss(*two, torch.tensor([1.0, 0.0])), dice_loss(logits, labels, torch.ones(1)))
