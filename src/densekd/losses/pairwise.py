"""Pair-wise distillation (PA) as a module."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from densekd.functional.pairwise import check_nodes, check_pool, pairwise_mse
from densekd.losses.base import DistillationLoss


class PairWise(DistillationLoss):
    """Similarities of all pairs of positions, compared; see `densekd.functional.pairwise_mse`.

    Args:
        pool: side of the cells over which the maps are max-pooled first, in positions or (below 1) as a fraction of the
            map; 1 or None: every position is a node.

    Raises:
        ArgumentError: a pool that cannot be.

    >>> loss = PairWise(pool=2)
    >>> loss(torch.rand(1, 8, 4, 4), torch.rand(1, 64, 4, 4)).shape  # channels need not be equal
    torch.Size([])
    """

    name: ClassVar[str] = "pairwise"
    equal_channels: ClassVar[bool] = False
    cost: ClassVar[str] = "N C P min(C, P)"
    default_weight: ClassVar[float] = 10.0

    def __init__(self, pool: float | None = 2) -> None:
        super().__init__()
        self.pool = check_pool(pool)

    def bind(self, student_shape: torch.Size, teacher_shape: torch.Size, num_classes: int | None) -> None:
        check_nodes(student_shape, self.pool)

    def forward(
        self,
        student_map: Tensor,
        teacher_map: Tensor,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        return pairwise_mse(student_map, teacher_map, pool=self.pool, mask=mask)

    def extra_repr(self) -> str:
        return f"pool={self.pool}"
