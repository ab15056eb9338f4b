"""Masks that are open in part or altogether, in training and for the sampler."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_generate_train import MASK, SIZES
from toy_paintings import toy_workspace

from generate.checkpoint import load_vqgan
from generate.conditioning import OPEN, OpenedMasks, open_part, unconditional_tokens
from generate.data import Crops, load_masks
from generate.presets import MaskCodesSettings
from generate.presets import TransformerSettings as Transformer
from generate.tokens import Tokens, Windows
from generate.train_codes import train_mask_codes
from generate.vqgan import VQGAN


def test_an_opened_part_is_one_class_or_one_rectangle() -> None:
    ids = np.full((5, 7), 149, np.uint8)
    ids[:, 3:] = 178
    kinds = set()
    for number in range(60):
        opened = open_part(ids, np.random.default_rng(number))
        changed = opened != ids
        assert changed.any()
        assert (opened[changed] == OPEN).all()
        rows, columns = np.nonzero(changed)
        assert changed[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].all()
        whole = [bool((changed == (ids == one)).all()) for one in (149, 178)]
        kinds.add("class" if any(whole) else "rectangle")
    assert kinds == {"class", "rectangle"}
    assert set(np.unique(ids)) == {149, 178}


def test_some_crops_are_opened_and_the_same_ones_every_time(tmp_path: Path) -> None:
    masks = load_masks(toy_workspace(tmp_path), 0, 16, 182)
    crops = Crops([(one,) for one in masks], 16, flip=True, seed=0)
    opened, again = (OpenedMasks(crops, 0.4, seed=0) for _ in range(2))
    changed, empty = 0, 0
    for n in range(200):
        (before,), (after,) = crops[n], opened[n]
        assert torch.equal(after, again[n][0])
        changed += not torch.equal(before, after)
        empty += bool((after == OPEN).all())
    assert 50 < changed < 100
    assert 8 < empty < 40
    assert all(torch.equal(crops[n][0], OpenedMasks(crops, 0.0, 0)[n][0]) for n in range(20))


def test_windows_show_the_painting_under_an_open_mask_in_the_shares_asked_for() -> None:
    view = torch.randint(16, (2, 6, 9))
    opened = torch.stack([torch.full((6, 9), 20), torch.full((6, 9), 21), view[1]])
    painting = Tokens("one", (view,), (opened,))
    plain, open_ = Windows([painting], 4, 0), Windows([painting], 4, 0, open_part=0.3, open_all=0.2)
    kinds = []
    for n in range(300):
        (mask, drawn), (shown, same) = plain[n], open_[n]
        assert torch.equal(drawn, same)
        kinds.append(int(shown[0]) if int(shown[0]) > 16 else 0)
        assert torch.equal(shown, mask) or set(shown.tolist()) in ({20}, {21})
    assert 60 < kinds.count(20) < 120
    assert 35 < kinds.count(21) < 90


@pytest.mark.parametrize("size", [(4, 4), (5, 7)])
def test_unconditional_tokens_are_the_codes_of_a_mask_without_labels(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    codes = VQGAN(MaskCodesSettings(**SIZES).vqgan()).eval()
    tokens = unconditional_tokens(codes, size)
    assert tokens.shape == (1, *size)
    one_hot = torch.zeros(1, 182, 2 * size[0], 2 * size[1])
    one_hot[:, OPEN] = 1
    assert torch.equal(tokens, codes.encode(one_hot).indices)


def test_codes_learn_what_is_unlabelled_from_masks_that_never_are(tmp_path: Path) -> None:
    torch.set_num_threads(1)  # the sums' order decides what so short a training reaches
    workspace = toy_workspace(tmp_path, count=3, size=(16, 24))
    config = replace(MASK, steps=120, start_codebook=30, lr=3e-3, open_part=0.8)
    train_mask_codes(workspace, config, "cpu")
    codes, _ = load_vqgan(workspace.model("mask-codes"), "")
    said = codes.decode_indices(unconditional_tokens(codes, (8, 12))).argmax(1)
    assert float((said == OPEN).float().mean()) > 0.75


def test_shares_above_one_are_refused() -> None:
    with pytest.raises(ValueError, match=r"--open-all 0.6 and --open-part 0.5 are more than 1"):
        Transformer(open_all=0.6, open_part=0.5)
