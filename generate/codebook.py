"""A codebook that few paintings can fill: started by k-means, its dead rows revived, its use counted."""

from __future__ import annotations

import torch
from torch import Tensor, nn

DEAD = 0.03  # of the mean use; rows below are revived
MEMORY = 0.99  # of the running counts: what a row was used for some hundred steps ago is forgotten


def k_means(vectors: Tensor, count: int, rounds: int = 10) -> Tensor:
    """Centres of the vectors (k-means++, then Lloyd's algorithm); a centre without vectors starts again at one of them.

    Args:
        vectors: (N, E); fewer than `count` are repeated.
        count: centres wanted.

    Returns:
        (count, E)
    """
    centres = vectors[torch.randint(len(vectors), (1,), device=vectors.device)]
    away = torch.full((len(vectors),), torch.inf, device=vectors.device)  # squared, from the nearest centre
    for _ in range(count - 1):
        away = torch.minimum(away, (vectors - centres[-1]).square().sum(1))
        chosen = torch.multinomial(away + 1e-12, 1)  # far ones rather than near ones (k-means++)
        centres = torch.cat([centres, vectors[chosen]])
    for _ in range(rounds):
        nearest = torch.cdist(vectors, centres).argmin(1)  # (N,)
        held = torch.bincount(nearest, minlength=count)[:, None]  # (count, 1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, vectors)
        spare = vectors[torch.randint(len(vectors), (count,), device=vectors.device)]
        centres = torch.where(held > 0, sums / held.clamp(min=1), spare)
    return centres


class CodebookUse(nn.Module):
    """Running counts of how often each row is used."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("counts", torch.zeros(size))
        self.counts: Tensor

    def count(self, indices: Tensor) -> None:
        """Add a batch of tokens (any shape)."""
        some, now = indices.flatten(), torch.zeros_like(self.counts)
        now.index_add_(
            0, some, torch.ones_like(some, dtype=now.dtype)
        )  # a GPU has to be waited for by bincount
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(now)
        self.counts.mul_(MEMORY).add_(now, alpha=1 - MEMORY)

    def perplexity(self) -> float:
        """How many rows, used equally often, would give the same entropy."""
        share = self.counts / self.counts.sum().clamp(min=1e-9)
        return float(torch.exp(-(share * share.clamp(min=1e-12).log()).sum()))

    def used(self) -> int:
        """Rows that are not dead."""
        return int((self.counts > DEAD * self.counts.mean()).sum())

    def revive(self, rows: Tensor, vectors: Tensor) -> int:
        """Put each dead row of the codebook at one of the encoder's vectors of this batch.

        Args:
            rows: (N, E), changed in place.
            vectors: (M, E).

        Source: Dhariwal et al. 2020 (Jukebox), section 3.
        """
        dead = self.counts < DEAD * self.counts.mean()
        number = int(dead.sum())
        if number:
            chosen = torch.randint(len(vectors), (number,), device=vectors.device)
            rows[dead] = vectors[chosen].to(rows.dtype)
            self.counts[dead] = self.counts.mean()
        return number
