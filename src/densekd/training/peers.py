"""The processes that train together, during training: what they add up and agree on; one process is alone."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Peers:
    """Collectives of a run; every process must call the same ones in the same order. For one they change nothing.

    Args:
        rank, world: this process, and how many there are.
        device: where the numbers are sent from.
    """

    def __init__(self, rank: int = 0, world: int = 1, device: torch.device | None = None) -> None:
        self.rank, self.world = rank, world
        self.device = device or torch.device("cpu")

    @property
    def first(self) -> bool:
        """Whether this process writes and speaks."""
        return self.rank == 0

    def most(self, number: int) -> int:
        """The largest of the processes' numbers."""
        if self.world == 1:
            return number
        found = torch.tensor([number], device=self.device)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def total(self, counts: Tensor) -> Tensor:
        """The sum of the processes' counts."""
        if self.world == 1:
            return counts
        found = counts.to(self.device, copy=True)
        dist.all_reduce(found)
        return found

    def means(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The mean of the processes' values, by name, detached; not finite where one of them is not."""
        if self.world == 1:
            return dict(values)
        found = torch.stack([value.detach().float().to(self.device) for value in values.values()]) / self.world
        dist.all_reduce(found)
        return dict(zip(values, found.unbind(), strict=True))

    def gathered(self, values: Tensor) -> Tensor:
        """The processes' values (M,), as (world, M)."""
        if self.world == 1:
            return values[None]
        values = values.to(self.device)
        parts = [torch.empty_like(values) for _ in range(self.world)]
        dist.all_gather(parts, values)
        return torch.stack(parts)

    @torch.no_grad()
    def share_buffers(self, network: nn.Module) -> None:
        """Give every process the first one's buffers, running statistics for instance."""
        if self.world == 1:
            return
        for buffer in network.buffers():
            dist.broadcast(buffer, 0)
