"""Distances to neighbouring positions (LOCAL) as a module."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from densekd.functional.checks import check_flag
from densekd.functional.local import check_neighbours, local_mse
from densekd.losses.base import DistillationLoss


class LocalAffinity(DistillationLoss):
    """Distances of every position to its 8 neighbours, compared; see `densekd.functional.local_mse`.

    Args:
        normalize: bring the features of every position to length 1 first; else they are compared in their own size.

    Raises:
        DtypeError: `normalize` is not a bool.

    >>> LocalAffinity()(torch.rand(1, 8, 4, 4), torch.rand(1, 64, 4, 4)).shape  # channels need not be equal
    torch.Size([])
    """

    name: ClassVar[str] = "local"
    equal_channels: ClassVar[bool] = False
    cost: ClassVar[str] = "N C P"
    default_weight: ClassVar[float] = 10.0

    def __init__(self, normalize: bool = True) -> None:
        super().__init__()
        self.normalize = check_flag("normalize", normalize)

    def bind(self, student_shape: torch.Size, teacher_shape: torch.Size, num_classes: int | None) -> None:
        check_neighbours(student_shape)

    def forward(
        self,
        student_map: Tensor,
        teacher_map: Tensor,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        return local_mse(student_map, teacher_map, normalize=self.normalize, mask=mask)

    def extra_repr(self) -> str:
        return f"normalize={self.normalize}"
