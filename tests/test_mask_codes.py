"""Codes of masks: they say only classes that occurred, name the ones that they lose, and grow to all channels."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_generate_train import MASK
from toy_paintings import toy_workspace

from annotate.masks import Encoding, read_mask, write_mask
from generate.checkpoint import load_vqgan
from generate.expand import expand
from generate.train_codes import train_mask_codes
from generate.vqgan import VQGAN


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_mask_codes_overfit_and_say_no_class_that_never_occurred(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = toy_workspace(tmp_path, count=3, size=(16, 24))
    config = replace(MASK, steps=100, start_codebook=30, lr=3e-3, open_part=0.0)
    result = train_mask_codes(workspace, config, "cpu")
    assert result.loss < 0.1
    codes, checkpoint = load_vqgan(workspace.model("mask-codes"), "")
    assert codes.config.in_channels == codes.config.out_channels == 182
    assert checkpoint.config["shifted_ids"] == [0, 149, 178]
    said = codes.decode_indices(torch.arange(16).view(1, 4, 4)).argmax(1)
    assert set(np.unique(said)) <= {0, 149, 178}
    assert "lose" not in capsys.readouterr().err


def test_a_class_that_the_mask_codes_lose_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = toy_workspace(tmp_path, count=3, size=(16, 24))
    for key in workspace.keys_with_mask("shifted"):
        ids = read_mask(workspace.mask("shifted", key), Encoding.SHIFTED).copy()
        ids[3::8, 3::8] = 130  # lamps of a single pixel
        write_mask(workspace.mask("shifted", key), ids, Encoding.SHIFTED)
    config = replace(MASK, steps=40, start_codebook=10, lr=3e-3, open_part=0.0, loss="pixel")
    train_mask_codes(workspace, config, "cpu")
    said = capsys.readouterr().err
    assert re.search(
        r"the codes lose .*street light \(IoU 0\.0\d\), .*; --loss balanced or more --steps", said
    )


def test_expanded_mask_codes_give_the_compact_ones_numbers() -> None:
    torch.manual_seed(0)
    compact = VQGAN(replace(MASK, n_labels=3).vqgan()).eval()
    full = expand(compact, [0, 149, 178], 182)
    channels = torch.randint(3, (1, 12, 20))
    one_hot = torch.nn.functional.one_hot(channels, 3).permute(0, 3, 1, 2).float()
    ids = torch.tensor([0, 149, 178])[channels]
    assert torch.allclose(full.prequantised_mask(ids), compact.prequantised(one_hot), atol=1e-5)
    tokens = torch.randint(16, (1, 3, 5))
    assert torch.allclose(
        full.decode_indices(tokens)[:, [0, 149, 178]], compact.decode_indices(tokens), atol=1e-5
    )
