"""Labelling: the shape and meaning of what comes out, tiles, and a run that carries on."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from segment_toys import SIZE, index, toy, toy_workspace
from torch import Tensor, nn

from annotate.classes import UNLABELLED, ClassTable
from annotate.errors import UserError
from annotate.masks import Encoding, read_mask, write_mask
from annotate.workspace import Workspace
from segment import predict
from segment.config import LabelConfig
from segment.data import normalise, to_tensor
from segment.label import pseudo_label
from segment.model import Segmenter, build, save
from segment.predict import predict_map
from segment.thresholds import save_thresholds

CPU = torch.device("cpu")


def untrained(workspace: Workspace, seed: int = 0, fingerprint: str = "") -> None:
    torch.manual_seed(seed)
    net = build("mobilenet_v3_large", 6)
    about: dict[str, Any] = {
        "architecture": "mobilenet_v3_large",
        "smallest_side": 0,
        "classes": ClassTable().as_list(),
    }
    about["fingerprint"] = fingerprint
    save(workspace, net, about)


class ByColour(nn.Module):
    """Logits from each pixel's own colour: exact, whatever the tile. Stands in for a network where place matters."""

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        table = torch.from_numpy(ClassTable().colours()[ClassTable().ids])  # (K, 3)
        wanted = normalise(table.view(-1, 3, 1, 1))[None]  # (1, K, 3, 1, 1)
        return {"out": -((pixels[:, None] - wanted) ** 2).sum(2)}  # (B, K, H, W)


def by_colour(smallest_side: int = 0) -> Segmenter:
    return Segmenter(ByColour(), ClassTable(), smallest_side, "digest", CPU)


@pytest.mark.parametrize("config", [LabelConfig(), LabelConfig(flip=False), LabelConfig(scales="0.75,1,1.5")])
def test_every_pixel_gets_its_class(config: LabelConfig) -> None:
    painting, raw = toy(3)
    indices, confidence = predict_map(by_colour(), painting, config)
    assert indices.shape == confidence.shape == SIZE
    assert (str(indices.dtype), str(confidence.dtype)) == ("uint8", "float32")
    known = raw != UNLABELLED
    assert (ClassTable().to_raw(indices) == raw)[known].mean() > 0.97
    assert 1 / 6 <= confidence.min() <= confidence.max() <= 1


def test_at_another_size_than_the_paintings() -> None:
    painting, raw = toy(4, (60, 90))
    indices, _ = predict_map(by_colour(smallest_side=30), painting)
    assert indices.shape == (60, 90)
    assert (ClassTable().to_raw(indices) == raw).mean() > 0.95


@pytest.mark.parametrize("size", [(300, 421), (129, 500), (128, 128)])
def test_tiles_join_without_a_seam(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    painting, _ = toy(5, size)
    whole = predict._tiled(by_colour(), to_tensor(painting), LabelConfig(tile=1024))
    asked: list[tuple[int, int]] = []
    inner = predict._probabilities

    def spy(segmenter: Segmenter, pixels: Tensor, flip: bool) -> Tensor:
        asked.append((pixels.shape[1], pixels.shape[2]))
        return inner(segmenter, pixels, flip)

    monkeypatch.setattr(predict, "_probabilities", spy)
    tiled = predict._tiled(by_colour(), to_tensor(painting), LabelConfig(tile=128))
    assert all(max(one) <= 128 for one in asked)
    torch.testing.assert_close(tiled, whole)


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (1, 30)])
def test_tiny_paintings_at_any_scale(size: tuple[int, int]) -> None:
    image = np.zeros((*size, 3), np.uint8)
    labels, confidence = predict_map(by_colour(), image, LabelConfig(scales="0.1,4"))
    assert labels.shape == confidence.shape == size


def test_flip_makes_it_symmetric() -> None:
    torch.manual_seed(0)
    net = build("mobilenet_v3_large", 6).eval()
    segmenter = Segmenter(net, ClassTable(), 0, "digest", CPU)
    painting = toy(6, (48, 64))[0]
    one = predict_map(segmenter, painting)[1]
    two = predict_map(segmenter, np.ascontiguousarray(painting[:, ::-1]))[1]
    np.testing.assert_allclose(one, two[:, ::-1], atol=0.01)


def test_labels_all_but_the_hand_masks_and_carries_on(tmp_path: Path) -> None:
    workspace = toy_workspace(tmp_path)
    untrained(workspace)
    hand = workspace.mask("hand", "set/p0").read_bytes()
    result = pseudo_label(workspace, LabelConfig(), "cpu")
    assert (result.labelled, result.there, result.hand) == (2, 0, 3)
    assert 0 < result.mean_confidence <= 1
    assert workspace.keys_with_mask("pseudo") == ["set/p3", "set/p4"]
    assert workspace.mask("hand", "set/p0").read_bytes() == hand
    mask = read_mask(workspace.mask("pseudo", "set/p3"), Encoding.RAW)
    assert mask.shape == (SIZE[0] + 3, SIZE[1])
    assert set(np.unique(mask)) <= set(ClassTable().ids)
    with Image.open(workspace.mask("confidence", "set/p3")) as image:
        assert (image.mode, image.info["encoding"]) == ("L", "confidence")
        assert np.asarray(image).shape == mask.shape
    workspace.mask("pseudo", "set/p4").unlink()  # as if the run had been killed before it
    again = pseudo_label(workspace, LabelConfig(), "cpu")
    assert (again.labelled, again.there) == (1, 1)
    assert again.mean_confidence == pytest.approx(result.mean_confidence, abs=1e-5)


def test_what_is_labelled_again(tmp_path: Path) -> None:
    workspace = toy_workspace(tmp_path)
    untrained(workspace)
    pseudo_label(workspace, LabelConfig(), "cpu")
    assert pseudo_label(workspace, LabelConfig(), "cpu").labelled == 0
    assert pseudo_label(workspace, LabelConfig(flip=False), "cpu").labelled == 2  # other settings
    Image.fromarray(toy(9, (43, 56))[0]).save(tmp_path / "paintings" / "set" / "p3.png")
    index(workspace)
    assert pseudo_label(workspace, LabelConfig(flip=False), "cpu").labelled == 1  # another painting
    untrained(workspace, seed=1)
    assert pseudo_label(workspace, LabelConfig(flip=False), "cpu").labelled == 2  # another model


def test_threshold(tmp_path: Path) -> None:
    workspace = toy_workspace(tmp_path)
    untrained(workspace)
    result = pseudo_label(workspace, LabelConfig(threshold=1.0), "cpu")
    assert result.unlabelled == 1.0
    assert (read_mask(workspace.mask("pseudo", "set/p3"), Encoding.RAW) == UNLABELLED).all()
    filled = pseudo_label(workspace, LabelConfig(threshold=1.0, fill=True), "cpu")
    assert (filled.labelled, filled.unlabelled) == (2, 0.0)
    assert (read_mask(workspace.mask("pseudo", "set/p3"), Encoding.RAW) != UNLABELLED).all()


def test_thresholds_of_each_class_that_were_learnt(tmp_path: Path) -> None:
    workspace, classes = toy_workspace(tmp_path), ClassTable()
    untrained(workspace, fingerprint="this one")
    bare = pseudo_label(workspace, LabelConfig(), "cpu")
    assert set(bare.thresholds.values()) == {0.0}
    levels = np.zeros(6, np.int64)
    said = classes.to_index(read_mask(workspace.mask("pseudo", "set/p3"), Encoding.RAW))
    most = int(np.bincount(said.ravel()).argmax())
    levels[most] = 255
    save_thresholds(workspace, "an earlier one", levels, classes)
    assert pseudo_label(workspace, LabelConfig(), "cpu").labelled == 0
    save_thresholds(workspace, "this one", levels, classes)
    learnt = pseudo_label(workspace, LabelConfig(), "cpu")
    assert learnt.labelled == 2
    assert learnt.thresholds[classes.names[most]] == 1.0
    now = classes.to_index(read_mask(workspace.mask("pseudo", "set/p3"), Encoding.RAW))
    assert (now[said == most] == UNLABELLED).all()
    assert (now[said != most] == said[said != most]).all()


@pytest.mark.parametrize("kind", ["pseudo", "confidence"])
@pytest.mark.parametrize("left", [0, 7, 120, -4])
def test_a_damaged_file_is_made_again(tmp_path: Path, kind: str, left: int) -> None:
    workspace = toy_workspace(tmp_path)
    untrained(workspace)
    pseudo_label(workspace, LabelConfig(), "cpu")
    path = workspace.mask(kind, "set/p3")
    whole = path.read_bytes()
    path.write_bytes(whole[:left])
    assert pseudo_label(workspace, LabelConfig(), "cpu").labelled == 1
    assert path.read_bytes() == whole


def test_the_ranking_begins_with_the_least_sure(tmp_path: Path) -> None:
    workspace = toy_workspace(tmp_path, paintings=7)
    untrained(workspace)
    ranking = pseudo_label(workspace, LabelConfig(), "cpu").ranking
    means = []
    for key in ranking:
        with Image.open(workspace.mask("confidence", key)) as image:
            means.append(float(np.asarray(image).mean()))
    assert len(means) == 4
    assert means == sorted(means)


def test_one_bad_painting_is_reported_and_the_rest_goes_on(tmp_path: Path) -> None:
    workspace = toy_workspace(tmp_path)
    untrained(workspace)
    (tmp_path / "paintings" / "set" / "p3.png").write_bytes(b"")
    Image.fromarray(toy(1, (20, 20))[0]).save(tmp_path / "paintings" / "set" / "p4.png")
    write_mask(workspace.mask("hand", "set/p5"), toy(1)[1], Encoding.RAW)
    result = pseudo_label(workspace, LabelConfig(), "cpu")
    assert result.labelled == 0
    assert "p3.png: empty file" in result.problems[0]
    assert "p4.png: was changed since it was pushed" in result.problems[1]


def test_a_painting_that_was_changed_without_a_push_is_reported(tmp_path: Path) -> None:
    workspace = toy_workspace(tmp_path)
    untrained(workspace)
    pseudo_label(workspace, LabelConfig(), "cpu")
    path = tmp_path / "paintings" / "set" / "p3.png"
    newer = workspace.mask("pseudo", "set/p3").stat().st_mtime + 10
    os.utime(path, (newer, newer))
    assert pseudo_label(workspace, LabelConfig(), "cpu").there == 2  # touched only
    Image.fromarray(toy(9, (43, 56))[0]).save(path)
    os.utime(path, (newer, newer))
    for _ in range(2):
        result = pseudo_label(workspace, LabelConfig(), "cpu")
        assert result.there == 1
        assert "p3.png: was changed since it was pushed; push the folder again" in result.problems[0]
    index(workspace)
    assert pseudo_label(workspace, LabelConfig(), "cpu").labelled == 1


def test_a_painting_that_needs_too_much_memory_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = toy_workspace(tmp_path)
    untrained(workspace)

    def greedy(segmenter: Segmenter, image: np.ndarray, config: LabelConfig) -> Any:  # type: ignore[type-arg]
        if len(image) == 43:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return predict_map(segmenter, image, config)

    monkeypatch.setattr("segment.label.predict_map", greedy)
    result = pseudo_label(workspace, LabelConfig(), "cpu")
    assert result.labelled == 1
    assert result.problems == ("out of memory on cpu: lower --tile (now 1024) for paintings/set/p3.png",)


def test_no_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no model yet"):
        pseudo_label(toy_workspace(tmp_path), LabelConfig(), "cpu")


@pytest.mark.parametrize("scales", ["", "1,x", "0", "9"])
def test_scales_that_make_no_sense(scales: str) -> None:
    with pytest.raises(ValueError, match=r"give numbers from 0\.1 to 4"):
        replace(LabelConfig(), scales=scales)
