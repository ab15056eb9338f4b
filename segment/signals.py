"""What a training does when it is told to stop."""

from __future__ import annotations

import signal
import threading
from typing import Any

import lightning as L


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
