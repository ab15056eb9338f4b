"""Tiles: they cover the canvas, a small one is one tile, and a large one shows no seam."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from golden_models import mask_codes, painting_codes

from generate.tiles import decode_tiled, encode_tiled, spans


@pytest.mark.parametrize("length", [1, 16, 64, 65, 100, 121, 192, 256, 1000])
def test_spans_cover_and_overlap(length: int) -> None:
    found = spans(length, 64, 8)
    assert found[0][0] == 0
    assert found[-1][1] == length
    for (first, last), (following, _) in itertools.pairwise(found):
        assert last - first == 64
        assert first < following <= last - 8


def test_one_tile_is_the_whole_canvas() -> None:
    tokens = torch.randint(64, (5, 7), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        whole = painting_codes().decode_indices(tokens[None])[0]
        tiled = decode_tiled(painting_codes(), tokens, (75, 100))
    expected = whole.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(tiled, expected[:75, :100])


def test_a_large_mask_is_encoded_tile_by_tile() -> None:
    codes, factor = mask_codes(), mask_codes().config.downsampling
    ids = torch.randint(1, 6, (1, 20, 28), generator=torch.Generator().manual_seed(2)) * 30
    ids = ids.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    with torch.inference_mode():
        tiled = encode_tiled(codes, ids, 12, 4)
        first = codes.encode_mask(ids[:, : 12 * factor, : 12 * factor]).indices
        last = codes.encode_mask(ids[:, 8 * factor :, 16 * factor :]).indices
    assert tiled.shape == (1, 20, 28)
    assert torch.equal(tiled[:, :10, :10], first[:, :10, :10])
    assert torch.equal(tiled[:, 10:, 18:], last[:, 2:, 2:])


def test_a_large_painting_has_no_seam() -> None:
    """Steps across the lines where tiles begin are no larger than elsewhere."""
    codes, factor = painting_codes(), painting_codes().config.downsampling
    tokens = torch.randint(64, (26, 30), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        tiled = decode_tiled(codes, tokens, (26 * factor, 30 * factor), 12, 4).astype(np.float64)
    down, right = np.abs(np.diff(tiled, axis=0)), np.abs(np.diff(tiled, axis=1))
    rows = [first * factor - 1 for first, _ in spans(26, 12, 4)[1:]]
    columns = [first * factor - 1 for first, _ in spans(30, 12, 4)[1:]]
    assert down[rows].mean() < 1.3 * down[factor - 1 :: factor].mean()
    assert right[:, columns].mean() < 1.3 * right[:, factor - 1 :: factor].mean()
