"""The compiled attention of a few queries: what it keeps and finds, and what goes on where there is no compiler."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from generate.config import GPTConfig
from generate.decoding import Decoder
from generate.few_queries import FewQueries, few_queries
from generate.gpt import GPT

HEADS, WIDTH, SHARED, OWN = 3, 48, 10, 20
COMPILER = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here")


@pytest.fixture
def compiled() -> FewQueries:
    found = few_queries(WIDTH, SHARED + OWN)
    assert found is not None
    return found


@pytest.fixture
def fresh() -> Iterator[None]:
    """What was compiled before is forgotten, and so is what is tried here."""
    few_queries.cache_clear()
    yield
    few_queries.cache_clear()


def expected(
    qkv: Tensor, cache: Tensor, prefix: Tensor | None, starts: list[int], holes: Tensor | None
) -> Tensor:
    """Written out, a query at a time, in float64; `cache` holds what came in."""
    batch = cache.shape[1]
    count = len(qkv) // batch
    queries = qkv.view(batch, count, 3, HEADS, WIDTH)[:, :, 0].double()
    y = torch.empty(batch, count, HEADS, WIDTH)
    for b in range(batch):
        for i in range(count):
            place = starts[b] + i
            seen = [n for n in range(place + 1) if holes is None or n == place or not holes[n]]
            keys, values = cache[:, b][:, :, seen].double()
            if prefix is not None:
                before = prefix[:, b * prefix.shape[1] // batch].double()
                keys, values = (torch.cat(both, 1) for both in zip(before, (keys, values), strict=True))
            weights = ((keys @ queries[b, i][..., None])[..., 0] / WIDTH**0.5).softmax(1)
            y[b, i] = (weights[:, None] @ values)[:, 0]
    return y.view(batch * count, -1)


@COMPILER
def test_scores_may_lie_far_apart(compiled: FewQueries) -> None:
    """So that the exponential of most is nothing."""
    torch.manual_seed(0)
    cache = 4 * torch.randn(2, 4, HEADS, OWN, WIDTH).bfloat16()
    qkv, starts = 20 * torch.randn(8, 3 * HEADS * WIDTH), [0, 17, 5, 9]
    y = compiled(qkv, cache, None, starts, None)
    torch.testing.assert_close(y, expected(qkv, cache, None, starts, None), atol=1e-4, rtol=1e-4)


@COMPILER
@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("shared", [0, 2, 4])
@pytest.mark.parametrize("with_holes", [True, False])
def test_keeps_and_attends(count: int, shared: int, with_holes: bool, compiled: FewQueries) -> None:
    torch.manual_seed(count)
    cache = torch.randn(2, 4, HEADS, OWN, WIDTH).bfloat16()
    prefix = torch.randn(2, shared, HEADS, SHARED, WIDTH).bfloat16() if shared else None
    qkv, starts = torch.randn(4 * count, 3 * HEADS * WIDTH), [0, 13, 5, 9]
    holes = torch.zeros(OWN, dtype=torch.bool)
    holes[[2, 6, 9, 14]] = True
    before = cache.clone()
    y = compiled(qkv, cache, prefix, starts, holes if with_holes else None)
    came = qkv.view(4, count, 3, HEADS, WIDTH).bfloat16()
    for b, start in enumerate(starts):
        for part in range(2):
            before[part, b, :, start : start + count] = came[b, :, part + 1].transpose(0, 1)
    assert torch.equal(cache, before)
    truth = expected(qkv, cache, prefix, starts, holes if with_holes else None)
    torch.testing.assert_close(y, truth, atol=2e-5, rtol=0)


@COMPILER
def test_company_changes_no_bit(compiled: FewQueries) -> None:
    """Neither other sequences in the pass nor guesses behind a token."""
    torch.manual_seed(0)
    cache, prefix = torch.randn(2, 4, HEADS, OWN, WIDTH).bfloat16(), torch.randn(2, 1, HEADS, SHARED, WIDTH)
    qkv = torch.randn(4, 3, 3 * HEADS * WIDTH)
    both = compiled(qkv.flatten(0, 1), cache.clone(), prefix.bfloat16(), [7], None).view(4, 3, -1)
    for b in range(4):
        for alone in range(1, 4):
            some = qkv[b, :alone].contiguous()
            y = compiled(some, cache[:, b : b + 1].clone(), prefix.bfloat16(), [7], None)
            assert torch.equal(y, both[b, :alone]), (b, alone)


@pytest.mark.parametrize("way", ["compiled", "no compiler", "does not compile", "width", "small"])
def test_int8_goes_on_without(
    way: str, fresh: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("generate.decoding.has_amx", lambda: False)
    monkeypatch.setattr("generate.decoding.COMPILED_FROM", 0 if way != "small" else 10**6)
    if way == "compiled" and shutil.which("cc") is None:
        pytest.skip("no C compiler here")
    if way == "no compiler":
        monkeypatch.setenv("CC", str(tmp_path / "absent"))
    if way == "does not compile":
        monkeypatch.setattr("generate.few_queries.SOURCE", tmp_path / "absent.c")
    torch.manual_seed(0)
    width = 24 if way == "width" else 32
    decoder = Decoder(GPT(GPTConfig(64, 32, layers=2, heads=2, width=width)).eval(), "int8")
    assert (decoder.few is not None) == (way == "compiled")
    said = capsys.readouterr().err
    assert ("not compiled" in said) == (way in ("no compiler", "does not compile"))
    assert len(said.splitlines()) <= 1
    plain = Decoder(GPT(GPTConfig(64, 32, layers=2, heads=2, width=width)).eval(), "int8")
    plain.blocks, plain.head, plain.norm = decoder.blocks, decoder.head, decoder.norm
    plain.tokens, plain.positions, plain.few = decoder.tokens, decoder.positions, None
    tokens = torch.randint(64, (4, 16))
    found = []
    with torch.inference_mode():
        for one in (decoder, plain):
            session = one.session(4, holes=(5, 11))
            logits = [session.share(tokens[:2, :4]), session.feed(tokens[:, 4:7])]
            logits += list(session.look_ahead(tokens[:, 7:9], [7, 7, 7, 7]))
            logits += list(session.look_ahead(tokens[:, 9:12], [9, 8, 7, 9]))
            found.append(torch.cat([one.flatten() for one in logits]))
    torch.testing.assert_close(found[0], found[1], atol=0.02, rtol=0)
