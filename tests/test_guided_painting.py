"""Guidance and given tokens draw what a naive loop with them draws, and whoever looks on sees it grow."""

from __future__ import annotations

import pytest
import torch
from golden_models import transformer
from torch import Tensor

from generate.decoding import Decoder
from generate.gpt import GPT
from generate.painting import Chance, Given, Guidance, paint_tokens
from generate.window import local

CHANCE = Chance(temperature=1.0, top_k=20, seed=5)


def drawn(seed: int, *size: int) -> Tensor:
    return torch.randint(64, size, generator=torch.Generator().manual_seed(seed))


def naive(model: GPT, mask_tokens: Tensor, guidance: Guidance, given: Given) -> Tensor:
    """Two forwards over the whole window for every token that is not given."""
    batch, height, width = mask_tokens.shape
    tokens = torch.where(given.where, given.tokens, 0).expand(batch, -1, -1).clone()
    silent = guidance.unconditional.expand_as(mask_tokens)
    with torch.no_grad():
        for i in range(height):
            for j in range(width):
                if given.where[i, j]:
                    continue
                row, column = local(i, height, 16), local(j, width, 16)
                rows, columns = slice(i - row, i - row + 16), slice(j - column, j - column + 16)
                logits = []
                for masks in (mask_tokens, silent):
                    window = torch.cat([grid[:, rows, columns].flatten(1) for grid in (masks, tokens)], 1)
                    logits.append(model(window[:, :-1])[:, 255 + row * 16 + column])
                guided = logits[1] + guidance.scale * (logits[0] - logits[1])
                tokens[:, i, j] = CHANCE.draw(guided, [(number, i, j) for number in range(batch)])
    return tokens


@pytest.mark.parametrize("size", [(18, 21)])
def test_exact_mode_is_the_naive_loop(size: tuple[int, int]) -> None:
    model, masks = transformer(), drawn(1, 2, *size)
    guidance = Guidance(2.0, drawn(2, 1, *size))
    given = Given(drawn(3, *size), drawn(4, *size) < 24)
    painted = paint_tokens(Decoder(model), masks, CHANCE, given=given, guidance=guidance)
    assert torch.equal(painted.tokens, naive(model, masks, guidance, given))
    assert (painted.tokens[:, given.where] == given.tokens[given.where]).all()


def test_guidance_of_one_changes_nothing_and_more_does() -> None:
    decoder, masks, silent = Decoder(transformer()), drawn(1, 2, 16, 20), drawn(2, 1, 16, 20)
    plain = paint_tokens(decoder, masks, CHANCE, 8)
    same = paint_tokens(decoder, masks, CHANCE, 8, guidance=Guidance(1.0, silent))
    assert torch.equal(same.tokens, plain.tokens)
    # led all the way to the silent mask, the mask that was given has no say
    free = paint_tokens(decoder, masks, CHANCE, 8, guidance=Guidance(0.0, silent)).tokens
    assert torch.equal(free, paint_tokens(decoder, silent.expand_as(masks), CHANCE, 8).tokens)
    assert not torch.equal(free, plain.tokens)


@pytest.mark.parametrize("stride", [1, 8])
def test_given_tokens_are_seen_and_not_counted(stride: int) -> None:
    decoder, masks = Decoder(transformer()), drawn(1, 1, 20, 24)
    whole = paint_tokens(decoder, masks, CHANCE, stride)
    where = drawn(4, 20, 24) < 32
    if stride == 8:  # what is given to the right of a block is seen, where it would not have been painted yet
        where[:, 9:] = False
    painted: list[int] = []
    again = paint_tokens(
        decoder, masks, CHANCE, stride, advance=painted.append, given=Given(whole.tokens[0], where)
    )
    assert torch.equal(again.tokens, whole.tokens)  # the rest is drawn as it was, given the same past
    assert sum(painted) == int((~where).sum())
    nothing = paint_tokens(
        decoder, masks, CHANCE, stride, given=Given(whole.tokens[0], torch.ones_like(where))
    )
    assert torch.equal(nothing.tokens, whole.tokens)


def test_who_looks_on_sees_the_canvas_grow() -> None:
    seen: list[int] = []
    last: list[Tensor] = []

    def follow(tokens: Tensor, painted: Tensor) -> None:
        seen.append(int(painted.sum()))
        assert not tokens[:, ~painted].any()
        last[:] = [tokens]

    where = torch.zeros(18, 20, dtype=torch.bool)
    where[:2] = True
    given = Given(drawn(3, 18, 20), where)
    made = paint_tokens(Decoder(transformer()), drawn(1, 2, 18, 20), CHANCE, 8, given=given, follow=follow)
    assert seen[0] == 40
    assert seen[-1] == 18 * 20
    assert seen == sorted(seen)
    assert last[0] is made.tokens
