"""Attention while painting: a single query, a shared beginning, what is hidden; in each precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from generate.attention import attend, attend_after, hide

SEQUENCES, HEADS, LENGTH, SHARED = 4, 2, 40, 24


def expected(q: Tensor, keys: Tensor, values: Tensor, hidden: Tensor | None) -> Tensor:
    """Written out, in float32."""
    scores = q.float() @ keys.float().transpose(2, 3) / q.shape[3] ** 0.5
    seen = scores if hidden is None else scores + hidden.float()
    return torch.matmul(seen.softmax(3), values.float())


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("alike", [True, False])
def test_single_queries_and_several(
    fast: bool, dtype: torch.dtype, count: int, alike: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("generate.attention.has_fast_bfloat16", lambda device: fast)
    torch.manual_seed(0)
    q = torch.randn(SEQUENCES, HEADS, count, 8).to(dtype)
    keys, values = torch.randn(2, SEQUENCES, HEADS, LENGTH, 8).to(dtype)
    prefix = torch.randn(2, 2, HEADS, SHARED, 8).to(dtype)  # each of two sequences
    hidden = None
    if not alike or count > 1:
        ends = torch.full((1, 1), LENGTH) if alike else torch.tensor([[LENGTH], [31], [20], [9]])
        hidden = hide(ends + torch.arange(-count, 0), LENGTH, keys, None)
    close = 2e-5 if dtype == torch.float32 else 2e-2
    found = attend(q, keys, values, hidden)
    torch.testing.assert_close(found.float(), expected(q, keys, values, hidden), atol=close, rtol=0)
    found = attend_after(prefix, q, keys, values, hidden)
    if hidden is not None:
        seen = torch.zeros(*hidden.shape[:3], SHARED, dtype=hidden.dtype)
        hidden = torch.cat([seen, hidden], 3)
    keys, values = (
        torch.cat(pair, 2) for pair in zip(prefix.repeat_interleave(2, 1), (keys, values), strict=True)
    )
    assert found.shape == q.shape
    torch.testing.assert_close(found.float(), expected(q, keys, values, hidden), atol=close, rtol=0)
