"""Mask tokens to painting tokens."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from generate.decoding import Decoder, KeptSessions, Pass, Session
from generate.drafting import Drafts, Luck
from generate.scheduling import Group, Schedule
from generate.window import Task, block_waves, exact_waves

# Windows that share a step: up to here a step costs little more than for one, and memory must not grow with the
# canvas (a window of the seed document's transformer keeps 100 MB in float32).
SEQUENCES = 16


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
        noise = np.stack([_gumbel(self.seed, *place, logits.shape[1]) for place in places])
        return (scaled + torch.from_numpy(noise).to(scaled)).argmax(1)


@lru_cache(maxsize=1024)  # a place that is guessed is drawn more than once
def _gumbel(seed: int, number: int, row: int, column: int, count: int) -> NDArray[np.float32]:
    random = np.random.Generator(np.random.Philox(key=[seed, number], counter=[0, 0, row, column]))
    return random.gumbel(size=count).astype(np.float32)


@dataclass(frozen=True)
class Painted:
    """A batch of token grids and how likely they are."""

    tokens: Tensor  # (B, h, w) int64
    log_likelihood: Tensor  # (B,) mean over tokens, in nats, at temperature 1


@dataclass(frozen=True)
class Given:
    """Tokens that stand already: they are seen by what is painted after them, and not painted themselves."""

    tokens: Tensor  # (h, w) int64
    where: Tensor  # (h, w) bool


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance: logits lead `scale` times as far from those of a mask that says nothing.

    Source: Ho & Salimans 2021, Classifier-Free Diffusion Guidance, equation 6, on logits (1 = unguided).
    """

    scale: float
    unconditional: Tensor  # (1, h, w) mask tokens of a canvas about which nothing is said


def _not_followed(tokens: Tensor, painted: Tensor) -> None:
    """Nobody looks on."""


def paint_tokens(
    decoder: Decoder,
    mask_tokens: Tensor,
    chance: Chance,
    stride: int = 1,
    numbers: Sequence[int] | None = None,
    advance: Callable[[int], object] = lambda tokens: None,
    codes: int | None = None,
    given: Given | None = None,
    guidance: Guidance | None = None,
    follow: Callable[[Tensor, Tensor], object] = _not_followed,
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
        given: tokens that are kept, on every canvas of the batch.
        guidance: both conditions share each step, so a batch takes twice the memory.
        follow: called before the first and after every few tokens with the canvases so far, (B, h, w), and what of them is
            painted or given, (h, w) bool. Both are on the CPU and go on changing.

    Raises:
        ValueError: a canvas smaller than the window, or a stride that is neither 1 nor half a window.
    """
    side = decoder.config.window
    batch, height, width = mask_tokens.shape
    if min(height, width) < side:
        raise ValueError(f"canvas {height} x {width} tokens is smaller than the window of {side} x {side}")
    if stride not in (1, side // 2):
        raise ValueError(f"stride {stride}; 1 or {side // 2} would do")
    waves = exact_waves(height, width, side) if stride == 1 else block_waves(height, width, side)
    numbers = list(numbers or range(batch))
    canvas = _Canvas(decoder, mask_tokens, waves, chance, numbers, codes, given, guidance)
    missing = int((~canvas.painted).sum())
    follow(canvas.tokens, canvas.painted)
    with torch.inference_mode():
        for count in canvas.paint():
            advance(count)
            follow(canvas.tokens, canvas.painted)
    return Painted(canvas.tokens.to(mask_tokens.device), canvas.log_likelihood / max(missing, 1))


Steps = Generator[Pass | None, Any, None]  # passes that are asked for; their logits are sent


@dataclass(eq=False)
class _Running:
    """Windows under way."""

    steps: Steps
    asks: Pass | None
    rows: int  # sequences


class _Canvas:
    """Token grids under work."""

    def __init__(
        self,
        decoder: Decoder,
        mask_tokens: Tensor,
        waves: Iterator[list[Task]],
        chance: Chance,
        numbers: list[int],
        codes: int | None,
        given: Given | None,
        guidance: Guidance | None,
    ) -> None:
        self.decoder, self.chance, self.numbers, self.codes = decoder, chance, numbers, codes
        self.scale = guidance.scale if guidance else 1.0
        # canvases stay with the processor, which has much to do with few numbers; sessions send what they run to the device
        mask_tokens = mask_tokens.cpu()
        self.alike = len(mask_tokens) > 1 and bool((mask_tokens == mask_tokens[:1]).all())
        self.conditions = [mask_tokens]  # (B, h, w) each; the second says nothing
        if guidance:
            self.conditions.append(guidance.unconditional.cpu().expand_as(mask_tokens))
        self.tokens = torch.zeros_like(mask_tokens)
        self.painted = torch.zeros(mask_tokens.shape[1:], dtype=torch.bool)
        if given:
            self.painted |= given.where.cpu()
            self.tokens[:, self.painted] = given.tokens.to(mask_tokens)[self.painted]
        self.log_likelihood = torch.zeros(len(mask_tokens))
        self.side = decoder.config.window
        self.each = len(self.conditions) * len(self.tokens)  # sequences of one window
        most = max(1, SEQUENCES // self.each)
        self.schedule = Schedule(waves, self.painted.numpy(), self.side, most)
        self.kept = KeptSessions()
        self.luck = Luck(decoder.costs, decoder.config.width)
        self.rows = 0  # sequences under way
        self.news = 0  # tokens that the last pass has painted

    def paint(self) -> Iterator[int]:
        """Paint all that the waves ask for. Yields how many tokens each pass has painted.

        A window begins as soon as what it may see is painted, and all windows under way share each pass.
        """
        running: list[_Running] = []
        while True:
            # a GPU replays recorded passes, each of one session
            while not (running and self.decoder.rooms):
                stuck = not any(one.asks for one in running)  # by one that had no room: now it gets some
                group = self.schedule.next(SEQUENCES if stuck else (SEQUENCES - self.rows) // self.each)
                if group is None:
                    break
                steps = self._paint_group(group)
                running.append(_Running(steps, next(steps), self.each * len(group.tasks)))
                self.rows += running[-1].rows
            if not running:
                return
            asking = [(one, one.asks) for one in running if one.asks is not None]
            assert asking, "the first of all windows waits for nothing"
            logits, self.news = self.decoder.run([asks for _, asks in asking]), 0
            for (one, _), told in zip(asking, logits, strict=True):
                try:
                    one.asks = one.steps.send(told)
                except StopIteration:  # all of it is painted
                    running.remove(one)
                    self.rows -= one.rows
            for one in running:
                if one.asks is None:  # what it waits for may be what others have just painted
                    one.asks = one.steps.send(None)
            yield self.news

    def _paint_group(self, group: Group) -> Steps:
        """Paint a group's tokens: gives each pass that it needs next and is sent its logits, or None while it has to wait."""
        places, tasks = group.places, group.tasks
        cells, both = self.side * self.side, len(self.conditions)
        session = self._session(group)
        drafts = Drafts(places, self._windows(self.tokens, tasks).numpy(), group.holes, self.luck)
        starts, logits = drafts.fed.copy(), (yield from self._begin(session, drafts, group))
        while True:
            guided, told = self._guide(logits)  # (tasks B, t, V)
            drawn = self._draw(guided.flatten(0, 1), tasks, _behind(starts, guided.shape[1]))
            drawn = drawn.view(guided.shape[:2])
            likely = told.log_softmax(2).gather(2, drawn[..., None])[..., 0]
            drawn, likely = _fetched(drawn, likely)
            news = drafts.settle(starts, drawn.numpy())
            self._put(drafts, tasks)
            likely = likely.masked_fill(~torch.from_numpy(news), 0)
            self.log_likelihood += likely.view(len(tasks), -1, likely.shape[1]).sum((0, 2))
            self.news += int(news.sum())
            if drafts.done:
                break
            while True:
                drafts.know(self._windows(self.tokens, tasks).numpy())
                starts, count = drafts.next_pass(self.luck.guesses(self.rows), self.schedule.known(group))
                if count:
                    break
                yield None
            if lacking := drafts.lacking(starts, count):
                nearest = guided[[window for window, _ in lacking], -1]
                drafts.guess(lacking, self._draw(nearest, tasks, lacking).tolist())
            tokens = torch.from_numpy(drafts.tokens(starts, count))
            logits = yield session.looking_ahead(tokens.repeat(both, 1), [cells + s for s in starts] * both)
        session.seen = cells + places[-1]
        if len(tasks) == 1 and tasks[0].again:
            self.kept.put((tasks[0].top, tasks[0].left), session)

    def _begin(self, session: Session, drafts: Drafts, group: Group) -> Generator[Pass | None, Any, Tensor]:
        """Logits (B, 1, V) for the first place, behind everything that is known before it."""
        tasks, place, cells = group.tasks, group.places[0], self.side * self.side
        logits: Tensor | None = None
        if self.alike and session.seen == 0:  # paintings of one mask
            logits = yield session.sharing(
                torch.cat([self._windows(one[:1], tasks) for one in self.conditions])
            )
        if session.seen < cells + place:
            masks = torch.cat([self._windows(one, tasks) for one in self.conditions])
            known = torch.from_numpy(drafts.tokens([0] * len(drafts.windows), place))
            tokens = torch.cat([masks, known.repeat(len(self.conditions), 1)], 1)
            logits = yield session.feeding(tokens[:, session.seen :])
        assert logits is not None, "places ascend, so something is always missing"
        return logits

    def _session(self, group: Group) -> Session:
        first = group.tasks[0]
        kept = self.kept.take((first.top, first.left)) if len(group.tasks) == 1 else None
        if kept is not None and kept.seen <= self.side**2 + group.places[0]:
            return kept
        unknown = [self.side**2 + hole for hole in group.holes]
        return self.decoder.session(self.each * len(group.tasks), unknown)

    def _windows(self, grid: Tensor, tasks: list[Task]) -> Tensor:
        """(B, h, w) -> (tasks B, side side), the windows of the tasks in raster order."""
        cut = [grid[:, t.top : t.top + self.side, t.left : t.left + self.side].flatten(1) for t in tasks]
        return torch.cat(cut)

    def _guide(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """What tokens are drawn from, and what the mask alone tells: (tasks B, t, V) each."""
        told, *silent = logits[..., : self.codes].chunk(len(self.conditions))
        return (silent[0] + self.scale * (told - silent[0]) if silent else told), told

    def _draw(self, logits: Tensor, tasks: list[Task], where: Sequence[tuple[int, int]]) -> Tensor:
        """One token a row of logits, for (window, place) each."""
        places = []
        for window, place in where:
            task, number = tasks[window // len(self.numbers)], self.numbers[window % len(self.numbers)]
            row, column = divmod(place, self.side)
            places.append((number, task.top + row, task.left + column))
        return self.chance.draw(logits, places)

    def _put(self, drafts: Drafts, tasks: list[Task]) -> None:
        """Copy what is settled on all canvases to them."""
        tokens, settled = torch.from_numpy(drafts.windows), torch.from_numpy(drafts.settled)
        shape = (len(tasks), -1, self.side, self.side)
        for task, windows, there in zip(tasks, tokens.view(shape), settled.view(shape).all(1), strict=True):
            rows, columns = (slice(start, start + self.side) for start in (task.top, task.left))
            self.tokens[:, rows, columns] = torch.where(there, windows, self.tokens[:, rows, columns])
            self.painted[rows, columns] |= there


def _fetched(tokens: Tensor, figures: Tensor) -> tuple[Tensor, Tensor]:
    """int64 and float32 of one shape, on the CPU; from a GPU in one go, for each wait there is dear."""
    if tokens.device.type == "cpu":
        return tokens, figures
    both = torch.stack([tokens.float(), figures]).cpu()  # tokens are far below 2 ** 24
    return both[0].long(), both[1]


def _behind(starts: Sequence[int], count: int) -> list[tuple[int, int]]:
    """(window, place) that the logits behind each of `count` tokens tell."""
    return [(window, start + n + 1) for window, start in enumerate(starts) for n in range(count)]
