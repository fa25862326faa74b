"""Correlation of channels (PKD) as a module."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from densekd.functional.pearson import pearson_distance
from densekd.losses.base import DistillationLoss


class Pearson(DistillationLoss):
    """Channels compared by their correlation over the batch; see `densekd.functional.pearson_distance`.

    >>> teacher = torch.randn(2, 8, 4, 4)
    >>> round(Pearson()(2.0 * teacher + 1.0, teacher).abs().item(), 4)  # offset and size do not matter
    0.0
    """

    name: ClassVar[str] = "pearson"
    batch_wide: ClassVar[bool] = True
    cost: ClassVar[str] = "N C P"
    default_weight: ClassVar[float] = 10.0

    def forward(
        self,
        student_map: Tensor,
        teacher_map: Tensor,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        return pearson_distance(student_map, teacher_map, mask=mask)
