"""A loss and its gradients on a GPU, recorded once as a CUDA graph and then replayed.

A step on one crop is some two thousand kernels, which a program asks for more slowly than a GPU runs them: forward and
backward pass of the seed document's painting codes took 63 ms for one crop of 256 pixels and 70 ms for eight.

Source: PyTorch's notes on CUDA semantics, "Whole-network capture".
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

WARM_UP = 3  # steps that are not recorded: libraries and kernels set themselves up in them


@contextmanager
def undisturbed() -> Iterator[None]:
    """No garbage is collected inside: an older recording that went with it would spoil the one that is being made."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


class RecordedStep:
    """Gives what `step` gives, and leaves the gradients that it leaves.

    Args:
        step: batch to figures; it also adds the gradients. The same kernels run whatever the batch holds, and tensors that it
            leaves elsewhere stay at their places and get new values.
        leaves: what gradients arrive at.
    """

    def __init__(
        self, step: Callable[[Sequence[Tensor]], dict[str, Tensor]], leaves: Sequence[Tensor]
    ) -> None:
        self._step, self._leaves = step, leaves
        self._ran = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, batch: Sequence[Tensor]) -> dict[str, Tensor]:
        """Of a batch on the GPU, always of one shape. The figures stand until the next call."""
        if self._ran < WARM_UP:
            self._ran += 1
            return self._step(batch)
        if self._graph is None:
            self._record(batch)
        assert self._graph is not None, "recorded above"
        for kept, now in zip(self._batch, batch, strict=True):
            kept.copy_(now)
        self._graph.replay()
        for leaf, gradient in zip(self._leaves, self._gradients, strict=True):
            leaf.grad = gradient
        return self._figures

    def _record(self, batch: Sequence[Tensor]) -> None:
        self._batch = tuple(one.clone() for one in batch)
        for leaf in self._leaves:
            leaf.grad = None  # so that the recording writes gradients instead of adding to them
        self._graph = torch.cuda.CUDAGraph()
        with undisturbed(), torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._figures = self._step(self._batch)
        self._gradients = [leaf.grad for leaf in self._leaves]
