"""A training step's figures on their way from the device that computes them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Coming:
    """Figures of one step, copied from a GPU when it has computed them; nobody waits until they are asked for.

    Args:
        step: whose they are.
        figures: one number each.
    """

    def __init__(self, step: int, figures: Mapping[str, Tensor]) -> None:
        self.step, self._names = step, tuple(figures)
        values = torch.stack([one.float() for one in figures.values()])
        self._values = values.to("cpu", non_blocking=True)
        self._copied: torch.cuda.Event | None = None
        if values.is_cuda:
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()

    def arrived(self) -> dict[str, float]:
        """Wait for them."""
        if self._copied is not None:
            self._copied.synchronize()
        return dict(zip(self._names, self._values.tolist(), strict=True))
