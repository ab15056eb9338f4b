"""Progress bars and notes, on stderr; how long a piece of work took."""

from __future__ import annotations

import contextlib
import contextvars
import os
import time
from collections.abc import Callable, Iterator

import click

_silent = contextvars.ContextVar("_silent", default=False)


def note(text: str) -> None:
    """One line for the person at the terminal; stdout stays free for the result."""
    if not _silent.get():
        click.echo(text, err=True)


def is_first() -> bool:
    """Is this the process that speaks and writes, where several train together."""
    return not any(int(os.environ.get(name, "0")) for name in ("LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Within it there are no notes and no progress bars."""
    before = _silent.set(True)
    try:
        yield
    finally:
        _silent.reset(before)


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self.started = time.monotonic()

    def seconds(self) -> float:
        return round(time.monotonic() - self.started, 1)


@contextlib.contextmanager
def progress(title: str, total: int) -> Iterator[Callable[..., None]]:
    """A progress bar with rate and time left.

    Yields:
        `advance(steps=1, note="", before=False)`: move the bar; `note` is shown at its end (a loss, a file name); `before`
            says that an earlier run did these steps, which foretell no time.

    On a terminal the bar moves; elsewhere a line is printed every ten seconds and at the end.
    """
    if _silent.get():
        yield lambda steps=1, note=None, before=False: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield from _plain(title, total)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as bars:
        task = bars.add_task(title, total=total, note="")

        def advance(steps: int = 1, note: str | None = None, before: bool = False) -> None:
            if before:
                bars.reset(task, completed=steps)
            elif note is None:
                bars.update(task, advance=steps)
            else:
                bars.update(task, advance=steps, note=note)

        yield advance


def _plain(title: str, total: int) -> Iterator[Callable[..., None]]:
    started = last = time.monotonic()
    done, earlier, latest = 0, 0, ""

    def line() -> None:
        spent = time.monotonic() - started
        left = f", {spent * (total - done) / (done - earlier):.0f} s left" if earlier < done < total else ""
        click.echo(f"{title}: {done}/{total}  {spent:.0f} s{left}  {latest}".rstrip(), err=True)

    def advance(steps: int = 1, note: str | None = None, before: bool = False) -> None:
        nonlocal done, earlier, last, latest
        done += steps
        earlier += steps * before
        latest = latest if note is None else note
        if time.monotonic() - last >= 10:
            last = time.monotonic()
            line()

    yield advance
    line()
