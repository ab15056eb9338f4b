"""Several processes that share one task: started by torchrun or SLURM, joined over gloo."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed

from annotate.errors import UserError

One = TypeVar("One")
PATIENCE = timedelta(hours=12)  # one process may have much larger paintings than another


@dataclass(frozen=True)
class Crew:
    """This process, and how many there are."""

    rank: int = 0
    size: int = 1
    local: int = 0  # number on this machine: which GPU is ours

    @property
    def leads(self) -> bool:
        """Whether this process is the one that reports."""
        return self.rank == 0

    def share(self, items: Sequence[One]) -> list[One]:
        """Every size-th item: each belongs to exactly one process."""
        return list(items[self.rank :: self.size])

    def gather(self, mine: One) -> list[One]:
        """What each process has, by rank; waits for all of them.

        Raises:
            UserError: one of them has ended.
        """
        if self.size == 1:
            return [mine]
        found: list[One | None] = [None] * self.size
        try:
            distributed.all_gather_object(found, mine)
        except RuntimeError as error:
            raise UserError(
                f"process {self.rank} of {self.size}: another process of this run has ended; "
                "run the command again, it goes on where it stood"
            ) from error
        return [one for one in found if one is not None]


def join() -> Crew:
    """The crew that torchrun or SLURM started this process in; alone without them.

    Raises:
        UserError: the other processes cannot be reached.
    """
    size = int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1)
    if size == 1:
        return Crew()
    rank = int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)
    crew = Crew(rank, size, int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0))
    if not distributed.is_initialized():
        try:
            distributed.init_process_group("gloo", rank=rank, world_size=size, timeout=PATIENCE)
        except (RuntimeError, ValueError) as error:
            line = str(error).splitlines()[0]
            raise UserError(
                f"process {rank} of {size}: cannot join the others ({line}); start all of them by torchrun, "
                "or set MASTER_ADDR and MASTER_PORT in the SLURM script"
            ) from error
    return crew


def leave() -> None:
    """Say goodbye to the others, after the last `gather`."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def own_device(device: torch.device, crew: Crew) -> torch.device:
    """This process's GPU on a machine with several."""
    if device.type == "cuda" and crew.size > 1:
        return torch.device("cuda", crew.local % torch.cuda.device_count())
    return device
