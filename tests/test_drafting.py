"""Guessing ahead settles several tokens in one pass, and never another token than one at a time would."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden_models import transformer
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from generate.decoding import Decoder
from generate.drafting import MOST, Costs, Drafts, Luck, Tokens
from generate.painting import Chance, Given, Guidance, paint_tokens

CELLS = 12


def truth(window: int, before: list[int]) -> int:
    """A stand-in for a transformer that is hard to foretell: all tokens before decide the next one."""
    return (sum((n + 1) * token for n, token in enumerate(before)) + window) % 3


def painted(places: list[int], start: Tokens, guesses: int) -> tuple[Tokens, int]:
    """All places through `Drafts`, and how many passes it took."""
    drafts = Drafts(places, start)
    starts, count, passes = drafts.fed.copy(), 1, 0
    while True:
        if passes:
            starts, count = drafts.next_pass(guesses)
            lacking = drafts.lacking(starts, count)
            drafts.guess(lacking, [(7 * place) % 3 for _, place in lacking])
            ran = drafts.tokens(starts, count)
        drawn = np.zeros((len(start), count), int)
        for window, first in enumerate(starts):
            seen = drafts.windows[window].tolist()
            if passes:
                seen[first : first + count] = ran[window].tolist()
            for n in range(count):
                drawn[window, n] = truth(window, seen[: first + n + 1])
        news = drafts.settle(starts, drawn)
        passes += 1
        assert news.any(1).sum() >= 1
        if drafts.done:
            return drafts.windows, passes


@given(st.data())
def test_whatever_is_guessed_the_tokens_are_those_of_one_at_a_time(data: st.DataObject) -> None:
    places = sorted(data.draw(st.sets(st.integers(0, CELLS - 1), min_size=1)))
    windows = data.draw(st.integers(1, 3))
    start = np.array(
        data.draw(st.lists(st.integers(0, 2), min_size=windows * CELLS, max_size=windows * CELLS))
    )
    start = start.reshape(windows, CELLS)
    expected = start.copy()
    for window in range(windows):
        for place in places:
            expected[window, place] = truth(window, expected[window, :place].tolist())
    found, passes = painted(places, start, data.draw(st.integers(0, 6)))
    assert (found[:, : places[-1] + 1] == expected[:, : places[-1] + 1]).all()
    assert passes <= windows * len(places)


def lucky(share: float, worth: int) -> Luck:
    luck = Luck(Costs(worth))
    luck.learn(1000, round(1000 * share))
    return luck


def test_guesses_that_cost_nothing_are_made_however_rarely_they_come_true() -> None:
    for share in (0.1, 0.5, 0.9):
        assert lucky(share, 64).guesses(8) >= 7  # 64 rows take no longer than 8
        assert lucky(share, 64).guesses(4) == MOST


def test_guesses_that_cost_time_are_made_as_they_come_true() -> None:
    counts = [lucky(share, 8).guesses(8) for share in (0.0, 0.3, 0.6, 0.9)]
    assert counts[0] == 0
    assert counts == sorted(counts)
    assert counts[-1] >= 4


def test_bad_luck_is_forgotten() -> None:
    luck = lucky(0.0, 8)
    assert luck.guesses(8) == 0
    for _ in range(300):
        luck.learn(0, 0)
    assert luck.guesses(8) == Luck(Costs(8)).guesses(8) > 0


def test_luck_is_learnt_from_guesses_behind_right_ones_alone() -> None:
    luck = Luck(Costs(8))
    drafts = Drafts(range(1, 6), np.zeros((1, 6), int), luck=luck)
    drafts.settle([0], np.array([[1]]))
    starts, count = drafts.next_pass(3)
    drafts.guess(drafts.lacking(starts, count), [1, 1, 1])
    drafts.settle(starts, np.array([[1, 2, 1, 1]]))  # the second is wrong, so the third was put to no test
    assert (luck.tried, luck.true) == (2, 1)


@pytest.mark.parametrize("stride", [1, 8])
@pytest.mark.parametrize("ahead", [1, 3, 40])
def test_guesses_change_no_token(stride: int, ahead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(*size: int) -> Tensor:
        return torch.randint(64, size, generator=torch.Generator().manual_seed(sum(size)))

    decoder, chance = Decoder(transformer()), Chance(temperature=1.0, top_k=20, seed=3)
    masks, stands = drawn(2, 17, 25), Given(drawn(17, 25), drawn(17, 25) < 20)
    guidance = Guidance(1.5, drawn(1, 17, 25))
    passes: list[int] = []

    def paint(guesses: int) -> Tensor:
        monkeypatch.setattr(Luck, "guesses", lambda luck, sequences: guesses)
        passes.clear()
        done = paint_tokens(
            decoder, masks, chance, stride, advance=passes.append, given=stands, guidance=guidance
        )
        assert sum(passes) == 2 * int((~stands.where).sum())
        return done.tokens

    usual, alone = paint(0), len(passes)
    assert torch.equal(paint(ahead), usual)
    assert len(passes) < alone


def test_sessions_share_a_pass_and_nothing_else() -> None:
    """Of unlike lengths and paces, with holes, with shared beginnings: each gets what it would get alone."""
    decoder, random = Decoder(transformer()), torch.Generator().manual_seed(0)

    def drawn(*size: int) -> Tensor:
        return torch.randint(64, size, generator=random)

    beginning, first, last = drawn(1, 30), drawn(2, 50), drawn(1, 7)
    found = []
    with torch.inference_mode():
        for together in (True, False):
            one, two, three = decoder.session(2), decoder.session(1, [3, 4]), decoder.session(4)
            passes = [one.feeding(first), two.feeding(last), three.sharing(beginning)]
            logits = decoder.run(passes) if together else [decoder.run([each])[0] for each in passes]
            passes = [one.looking_ahead(first[:, :3], [40, 45]), three.feeding(first[:1, :2].expand(4, -1))]
            passes.append(two.looking_ahead(first[:1, :5], [7]))
            logits += decoder.run(passes) if together else [decoder.run([each])[0] for each in passes]
            assert (one.seen, two.seen, three.seen) == (48, 12, 32)
            found.append(logits)
    for ours, alone in zip(*found, strict=True):
        assert ours.shape == alone.shape
        torch.testing.assert_close(ours, alone, atol=1e-5, rtol=0)


def test_sequences_look_ahead_at_their_own_pace() -> None:
    decoder, random = Decoder(transformer()), torch.Generator().manual_seed(0)
    tokens = torch.randint(64, (3, 60), generator=random)
    with torch.inference_mode():
        session = decoder.session(3)
        session.cache.fill_(torch.nan)  # what is not filled may be anything
        session.feed(tokens[:, :40])
        wrong = torch.randint(64, (3, 9), generator=random)
        session.look_ahead(wrong, [40, 40, 40])
        starts = [40, 43, 46]
        session.look_ahead(tokens[:, 40:46], [40])
        ahead = torch.stack([row[start : start + 5] for row, start in zip(tokens, starts, strict=True)])
        found = session.look_ahead(ahead, starts)
        for n, start in enumerate(starts):
            plain = decoder.session(1)
            plain.feed(tokens[n : n + 1, :start])
            expected = [plain.feed(tokens[n : n + 1, t : t + 1])[0] for t in range(start, start + 5)]
            torch.testing.assert_close(found[n], torch.stack(expected), atol=1e-4, rtol=0)
