"""Guesses at the tokens that come next, so that one pass of the transformer can settle several of them.

A token is the largest of its logits and of noise that is known before it is drawn (see `Chance`). So a guess that turns
out equal to what is drawn behind the tokens before it *is* that token, and nothing about the painting changes: only how
many passes it takes. Where a guess was wrong, the draws behind it are the next guesses.

Source: Song et al. 2021, Accelerating Feedforward Computation via Parallel Nonlinear Equation Solving, algorithm 1
(Jacobi iteration); Teng et al. 2024 (arXiv:2410.01699) for sampled image tokens. That the noise is fixed makes the
iteration's result exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from generate.config import SEED_TRANSFORMER

Tokens = NDArray[np.int64]

MOST = 15  # guesses in a sequence: a pass of 16 rows takes 1.25 (bfloat16) to 1.8 (float32) times one of a single row
# What was learnt fades with each pass, and the share that is expected at first weighs as much as so many guesses.
FADING, DOUBT, AT_FIRST = 0.95, 4.0, 0.6


class Costs(NamedTuple):
    """What a pass takes, measured with the seed document's transformer; see docs/bench-sample.md."""

    rows: int  # up to here the weights are what takes the time, beyond it rows are
    fixed: float = 0.6  # some forty small operations a layer, in the time that the weights take
    kept: float = 1.0  # reading what is kept of a sequence, in rows


class Luck:
    """How often guesses come true, and so how many of them are worth making.

    Args:
        costs: of a pass.
        width: of the transformer; its small operations take as long for few weights as for many.
    """

    def __init__(self, costs: Costs, width: int = SEED_TRANSFORMER.width) -> None:
        self._costs = costs
        self._fixed = costs.fixed * (SEED_TRANSFORMER.width / width) ** 2
        self.tried = self.true = 0.0

    def learn(self, tried: int, true: int) -> None:
        """So many guesses were put to the test, none of them behind a wrong one; what is long past counts less."""
        self.tried = FADING * self.tried + tried
        self.true = FADING * self.true + true

    def guesses(self, sequences: int) -> int:
        """How many tokens a pass shall guess ahead in each of some sequences: as many as settle most in its time."""
        share = (self.true + DOUBT * AT_FIRST) / (self.tried + DOUBT)
        paces, settled = list[float](), 0.0
        for count in range(MOST + 1):
            settled += share**count  # in each sequence
            rows, kept = sequences * (1 + count), self._costs.kept * sequences
            paces.append(
                settled / (self._fixed + kept / self._costs.rows + max(1.0, rows / self._costs.rows))
            )
        return paces.index(max(paces))


class Drafts:
    """Windows of one shape that are painted side by side, each at its own pace.

    A pass runs some tokens of every window, from the first one on that has not run yet, or has run as a wrong guess.
    The logits behind a token tell the one after it.

    Args:
        places: raster numbers that are to be painted, ascending; everything else before the last of them is known, or gets
            known in time (`know`), or is a hole.
        windows: (N, cells) the tokens that are known.
        holes: raster numbers that nobody knows. They run with the token before them in their place, for the token behind
            a hole has to be told by what runs there.
        luck: learns which guesses came true.
    """

    def __init__(
        self, places: Sequence[int], windows: Tokens, holes: Sequence[int] = (), luck: Luck | None = None
    ) -> None:
        self.windows, self._luck = windows.copy(), luck
        self._source = np.arange(windows.shape[1])  # of what runs
        for hole in holes:
            self._source[hole] = self._source[max(hole - 1, 0)]
        self.last = places[-1]
        self.fed = [places[0] - 1] * len(windows)  # the first token of each window that has to run
        self.begun = False
        self._guess = np.full_like(windows, -1)
        self._open = np.zeros(windows.shape, bool)  # not settled yet
        self._open[:, places] = True
        self._asked = self._open[0].copy()

    @property
    def done(self) -> bool:
        """Is everything settled."""
        return self.begun and min(self.fed) == self.last

    @property
    def settled(self) -> NDArray[np.bool_]:
        """(N, cells) what was asked for and is settled."""
        found: NDArray[np.bool_] = self._asked & ~self._open
        return found

    def know(self, windows: Tokens) -> None:
        """Take over what has become known: (N, cells)."""
        self.windows[:, ~self._asked] = windows[:, ~self._asked]

    def next_pass(self, guesses: int, known: int | None = None) -> tuple[list[int], int]:
        """First token of each window's next pass, and how many tokens it has: 0 where it has to wait.

        Args:
            guesses: that it may run in each window; 0 draws one token a pass.
            known: it may run the tokens before this one; all of them if None.
        """
        limit = self.last if known is None else min(known, self.last)
        slowest = min(self.fed)
        guessed, end = 0, slowest  # behind the last token that runs
        while end < limit and (end == slowest or guessed + self._asked[end] <= guesses):
            guessed += self._asked[end] and end > slowest
            end += 1
        count = end - slowest
        return [min(fed, limit - count) for fed in self.fed], count

    def lacking(self, starts: Sequence[int], count: int) -> list[tuple[int, int]]:
        """(window, place) of those that a pass runs, but that nobody has guessed yet."""
        return [
            (window, place)
            for window, start in enumerate(starts)
            for place in range(start + 1, start + count)
            if self._open[window, place] and self._guess[window, place] < 0
        ]

    def guess(self, where: Sequence[tuple[int, int]], tokens: Sequence[int]) -> None:
        """Guess these."""
        for (window, place), token in zip(where, tokens, strict=True):
            self._guess[window, place] = token

    def tokens(self, starts: Sequence[int], count: int) -> Tokens:
        """(N, count) what a pass runs: what is known, else the guesses."""
        both = np.where(self._open, self._guess, self.windows)[:, self._source]
        return np.stack([row[start : start + count] for row, start in zip(both, starts, strict=True)])

    def settle(self, starts: Sequence[int], drawn: Tokens) -> NDArray[np.bool_]:
        """Take what was drawn behind each token of a pass, as far as the tokens before it were right.

        Args:
            drawn: (N, count).

        Returns:
            (N, count) bool, which of them are settled now and were not before.
        """
        self.begun = True
        news = np.zeros(drawn.shape, bool)
        count, tried, true = drawn.shape[1], 0, 0
        for window, start in enumerate(starts):
            first, end = self.fed[window] - start, start + count
            self.fed[window] = end
            for n in range(first, count):
                place = start + n + 1
                if not self._open[window, place]:
                    continue
                right = self._guess[window, place] == drawn[window, n]
                self.windows[window, place] = drawn[window, n]
                self._open[window, place] = False
                news[window, n] = True
                tried, true = tried + (place < end), true + (place < end and bool(right))
                if place < end and not right:
                    self.fed[window] = place
                    self._guess[window, place + 1 : end + 1] = drawn[window, n + 1 :]
                    break
        if self._luck:
            self._luck.learn(tried, true)
        return news
