"""What is seen of a painting while it is painted: the rate, the canvas so far, and what Ctrl-C leaves."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from annotate.errors import UserError
from annotate.progress import note
from generate.recipe import write_unfinished

Pixels = NDArray[np.uint8]
BLANK = 236  # grey of the canvas where nothing is painted yet


@dataclass
class Live:
    """Looks on while some paintings are painted.

    Args:
        bar: advances the progress bar.
        every: tokens of a painting after which the canvas so far is written; 0 never.
        finish: (h, w) tokens to (H, W, 3): decoded, and blended with what is kept.
        cell: pixels of a token, along each axis.
        under: (H, W, 3) what lies under the unpainted part; blank without.
    """

    bar: Callable[..., None]
    every: int
    finish: Callable[[Tensor], Pixels]
    cell: int
    under: Pixels | None = None
    started: float = field(default_factory=time.monotonic)
    done: int = 0  # tokens of all paintings that the bar has heard of
    _pending: int = 0  # and those that it has not
    _moved: float = 0.0
    _now: Sequence[tuple[Path, Mapping[str, Any]]] = ()  # path and recipe of those that are being painted
    _part: slice = field(default_factory=lambda: slice(None))  # where theirs are among the canvases
    _tokens: Tensor | None = None  # (B, h, w) theirs, so far
    _painted: Tensor | None = None  # (h, w)
    _shown: int = 0  # tokens of a painting at the last preview
    _given: int = 0  # those that stood before it began

    def advance(self, tokens: int) -> None:
        """Count tokens; the bar moves ten times a second at most, for a fast machine paints thousands."""
        self._pending += tokens
        if time.monotonic() - self._moved >= 0.1:
            self._move()

    def _move(self) -> None:
        self.done += self._pending
        self._moved = time.monotonic()
        self.bar(self._pending, f"{self.done / (self._moved - self.started):.0f} tokens/s")
        self._pending = 0

    @contextlib.contextmanager
    def painting(
        self, now: Sequence[tuple[Path, Mapping[str, Any]]], part: slice = slice(None)
    ) -> Iterator[None]:
        """Paint these inside; Ctrl-C leaves the canvases so far.

        Args:
            now: path and recipe of each.
            part: which of the canvases that `follow` sees are theirs.

        Raises:
            UserError: it was interrupted; the line names what was left.
        """
        self._now, self._part, self._tokens, self._painted, self._shown = now, part, None, None, 0
        try:
            yield
        except KeyboardInterrupt:
            raise UserError(self._leave()) from None
        finally:
            self._move()
            for path, _ in now:
                preview_path(path).unlink(missing_ok=True)

    def follow(self, tokens: Tensor, painted: Tensor) -> None:
        """See the canvases so far; what is given are views that go on changing."""
        if self._tokens is None:
            self._tokens, self._painted = tokens[self._part], painted
            self._shown = self._given = int(painted.sum())
        if self.every and (count := int(painted.sum())) - self._shown >= self.every and not painted.all():
            self._shown = count
            self._write(preview_path)

    def _leave(self) -> str:
        if self._tokens is None or self._painted is None or int(self._painted.sum()) == self._given:
            return "interrupted before anything was painted; nothing was written"
        self._write(unfinished_path)
        share = f"{int(self._painted.sum()) - self._given} of {self._painted.numel() - self._given} tokens"
        paths = ", ".join(str(unfinished_path(path)) for path, _ in self._now)
        return f"interrupted at {share}; the canvas so far: {paths} (the same command paints it anew)"

    def _write(self, name: Callable[[Path], Path]) -> None:
        assert self._tokens is not None, "there is something to write"
        assert self._painted is not None, "it comes with the tokens"
        cells = self._painted.numpy()
        for (path, recipe), tokens in zip(self._now, self._tokens, strict=True):
            canvas = self.finish(_filled(tokens, self._painted))
            there = np.kron(cells, np.ones((self.cell, self.cell), np.bool_))
            there = there[: canvas.shape[0], : canvas.shape[1], None]
            under = np.full_like(canvas, BLANK) if self.under is None else self.under
            about = {**recipe, "unfinished": int(cells.sum())}
            write_unfinished(name(path), np.where(there, canvas, under), about)


def _filled(tokens: Tensor, painted: Tensor) -> Tensor:
    """Tokens (h, w) with some of those painted in the places of the others.

    The decoder's norms look at the whole canvas, so what is not painted would colour what is. With three fifths of a
    painting there, its colours are off by 2 of 255 so, by 6 with the first row of the codebook, by 10 with what lies
    nearest.
    """
    known, lacking = tokens[painted], int((~painted).sum())
    filled = tokens.clone()
    filled[~painted] = known[torch.from_numpy(np.random.default_rng(0).integers(len(known), size=lacking))]
    return filled


@contextlib.contextmanager
def written_to_the_end() -> Iterator[None]:
    """Ctrl-C inside waits until all is written that is painted.

    Raises:
        UserError: it was pressed.
    """
    pressed = list[int]()

    def remember(number: int, frame: FrameType | None) -> None:
        if not pressed:
            note("writing what is painted; then it stops")
        pressed.append(number)

    if threading.current_thread() is not threading.main_thread():  # signals arrive in the main one
        yield
        return
    before = signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before or signal.default_int_handler)
    if pressed:
        raise UserError("interrupted; what was painted is written, and the same command paints the rest")


def preview_path(path: Path) -> Path:
    """The canvas so far of a painting that will lie at `path`."""
    return path.with_name(f"{path.stem}-preview.png")


def unfinished_path(path: Path) -> Path:
    """What an interrupted painting leaves."""
    return path.with_name(f"{path.stem}-unfinished.png")
