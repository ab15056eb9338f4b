"""Mask tokens to painting tokens."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from generate.decoding import Decoder, Session
from generate.window import Task, block_waves, exact_waves

KEPT_SESSIONS = 4  # 100 MB each a painting with the seed document's transformer in float32


@dataclass(frozen=True)
class Chance:
    """How a token is drawn from its logits: temperature, then top-k, then one draw.

    The draw adds Gumbel noise that depends on the seed, the painting's number and the token's place alone, and
    takes the largest: neither batching nor order can change the result.
    """

    temperature: float = 0.7
    top_k: int = 10
    seed: int = 0

    def draw(self, logits: Tensor, places: Sequence[tuple[int, int, int]]) -> Tensor:
        """Draw one token a row.

        Args:
            logits: (B, V) float32.
            places: (painting number, row, column) of each.

        Returns:
            (B,) int64
        """
        if self.top_k == 1:
            return logits.argmax(1)
        scaled = logits / self.temperature
        if self.top_k < logits.shape[1]:
            smallest = scaled.topk(self.top_k, dim=1).values[:, -1:]
            scaled = scaled.masked_fill(scaled < smallest, -torch.inf)
        noise = np.stack([self._gumbel(place, logits.shape[1]) for place in places])
        return (scaled + torch.from_numpy(noise).to(scaled)).argmax(1)

    def _gumbel(self, place: tuple[int, int, int], count: int) -> NDArray[np.float64]:
        number, row, column = place
        random = np.random.Generator(np.random.Philox(key=[self.seed, number], counter=[0, 0, row, column]))
        return random.gumbel(size=count)


@dataclass(frozen=True)
class Painted:
    """A batch of token grids and how likely they are."""

    tokens: Tensor  # (B, h, w) int64
    log_likelihood: Tensor  # (B,) mean over tokens, in nats, at temperature 1


def paint_tokens(
    decoder: Decoder,
    mask_tokens: Tensor,
    chance: Chance,
    stride: int = 1,
    numbers: Sequence[int] | None = None,
    advance: Callable[[int], object] = lambda tokens: None,
    codes: int | None = None,
) -> Painted:
    """Paint a batch of canvases.

    Args:
        decoder: the transformer.
        mask_tokens: (B, h, w) int64, h and w at least the window's side.
        chance: how tokens are drawn.
        stride: 1 puts every token into its own window, as the reference does; half the window's side paints
            a block a window, with cached keys and values.
        numbers: the painting's number of each row, for its noise; 0..B - 1 without.
        advance: called with the number of tokens painted, for a progress bar.
        codes: rows of the painting's codebook; tokens of a larger vocabulary are never drawn.

    Raises:
        ValueError: a canvas smaller than the window, or a stride that is neither 1 nor half a window.
    """
    side = decoder.config.window
    batch, height, width = mask_tokens.shape
    if min(height, width) < side:
        raise ValueError(f"canvas {height} x {width} tokens is smaller than the window of {side} x {side}")
    if stride not in (1, side // 2):
        raise ValueError(f"stride {stride}; 1 or {side // 2} would do")
    canvas = _Canvas(decoder, mask_tokens, chance, list(numbers or range(batch)), advance, codes)
    waves = exact_waves(height, width, side) if stride == 1 else block_waves(height, width, side)
    with torch.inference_mode():
        for wave in waves:
            canvas.paint(wave)
    return Painted(canvas.tokens, canvas.log_likelihood / (height * width))


class _Canvas:
    """Token grids under work."""

    def __init__(
        self,
        decoder: Decoder,
        mask_tokens: Tensor,
        chance: Chance,
        numbers: list[int],
        advance: Callable[[int], object],
        codes: int | None,
    ) -> None:
        self.codes = codes
        self.decoder, self.chance, self.numbers, self.advance = decoder, chance, numbers, advance
        self.mask_tokens = mask_tokens
        self.tokens = torch.zeros_like(mask_tokens)
        self.log_likelihood = torch.zeros(len(mask_tokens))
        self.side = decoder.config.window
        self.kept: dict[tuple[int, int], Session] = {}  # sessions of single windows that will be asked again

    def paint(self, wave: list[Task]) -> None:
        """Paint the tasks of one wave; those with the same places share a batch."""
        groups: dict[tuple[int, ...], list[Task]] = defaultdict(list)
        for task in wave:
            groups[task.places].append(task)
        for places, tasks in groups.items():
            if places:
                self._paint_group(places, tasks)

    def _paint_group(self, places: tuple[int, ...], tasks: list[Task]) -> None:
        known = self._windows(self.tokens, tasks)  # (tasks B, side side)
        session = self._session(places, tasks)
        cells = self.side * self.side
        logits: Tensor | None = None
        for place in places:
            missing = cells + place - session.seen
            if missing:  # known tokens that lie between the last one drawn and this one
                first = session.seen - cells
                if first < 0:
                    tokens = torch.cat([self._windows(self.mask_tokens, tasks), known[:, :place]], 1)
                    tokens = tokens[:, session.seen :]
                else:
                    tokens = known[:, first:place]
                logits = session.feed(tokens)
            assert logits is not None, "places ascend, so something is always missing"
            known[:, place] = self._draw(logits, place, tasks)
        self._put(places, tasks, known)
        self._keep(tasks, session)
        self.advance(len(places) * len(known))

    def _session(self, places: tuple[int, ...], tasks: list[Task]) -> Session:
        where = (tasks[0].top, tasks[0].left)
        kept = self.kept.pop(where, None) if len(tasks) == 1 else None
        if kept is not None and kept.seen <= self.side**2 + places[0]:
            return kept
        return self.decoder.session(len(tasks) * len(self.tokens))

    def _keep(self, tasks: list[Task], session: Session) -> None:
        """A window that has not moved goes on from here: keep its keys and values, and those of a few others."""
        if len(tasks) == 1:
            self.kept[(tasks[0].top, tasks[0].left)] = session
            while len(self.kept) > KEPT_SESSIONS:
                del self.kept[next(iter(self.kept))]  # the oldest

    def _windows(self, grid: Tensor, tasks: list[Task]) -> Tensor:
        """(B, h, w) -> (tasks B, side side), the windows of the tasks in raster order."""
        cut = [grid[:, t.top : t.top + self.side, t.left : t.left + self.side].flatten(1) for t in tasks]
        return torch.cat(cut)

    def _draw(self, logits: Tensor, place: int, tasks: list[Task]) -> Tensor:
        row, column = divmod(place, self.side)
        logits = logits[:, : self.codes]
        places = [(number, t.top + row, t.left + column) for t in tasks for number in self.numbers]
        drawn = self.chance.draw(logits, places)
        likely = logits.log_softmax(1).gather(1, drawn[:, None])[:, 0]
        self.log_likelihood += likely.view(len(tasks), -1).sum(0).cpu()
        return drawn

    def _put(self, places: tuple[int, ...], tasks: list[Task], known: Tensor) -> None:
        for task, window in zip(tasks, known.view(len(tasks), -1, self.side**2), strict=True):
            for place in places:
                row, column = divmod(place, self.side)
                self.tokens[:, task.top + row, task.left + column] = window[:, place]
