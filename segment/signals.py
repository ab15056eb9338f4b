"""What a training does when it is told to stop."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L

from annotate.progress import note


class EndsOnSigterm(L.Callback):
    """SIGTERM ends a training as it ends any other program; the next run goes on from the last saved state.

    Lightning's own handler trains on to the end of the batch, and then exits with code 0: to a script, as if all
    were done.
    """

    def __init__(self) -> None:
        self.before = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Put back what Lightning has replaced by now."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self.before)


@contextlib.contextmanager
def interruption_told(state: Path) -> Iterator[None]:
    """Ctrl-C within it, at which Lightning ends the program in silence, says how to go on from the saved state."""
    try:
        yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            kept = f"the same command goes on from the last saved state in {state.parent}"
            note(f"stopped; {kept if state.exists() else 'nothing was saved yet'}")
        raise
