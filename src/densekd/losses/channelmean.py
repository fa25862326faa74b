"""Channel distillation (CD) as a module."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from densekd.functional.channelmean import channelmean_mse
from densekd.losses.base import DistillationLoss


class ChannelMean(DistillationLoss):
    """Means of the channels over positions, compared; see `densekd.functional.channelmean_mse`.

    >>> ChannelMean()(torch.ones(1, 8, 4, 4), torch.zeros(1, 8, 4, 4)).item()
    1.0
    """

    name: ClassVar[str] = "channelmean"
    cost: ClassVar[str] = "N C P"
    default_weight: ClassVar[float] = 6.0

    def forward(
        self,
        student_map: Tensor,
        teacher_map: Tensor,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        return channelmean_mse(student_map, teacher_map, mask=mask)
