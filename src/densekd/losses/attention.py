"""Attention transfer (AT) as a module."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from densekd.functional.attention import attention_mse
from densekd.losses.base import DistillationLoss


class AttentionTransfer(DistillationLoss):
    """Where a map is strong over all its channels, compared; see `densekd.functional.attention_mse`.

    >>> AttentionTransfer()(torch.rand(1, 8, 4, 4), torch.rand(1, 64, 4, 4)).shape  # channels need not be equal
    torch.Size([])
    """

    name: ClassVar[str] = "attention"
    equal_channels: ClassVar[bool] = False
    cost: ClassVar[str] = "N C P"
    default_weight: ClassVar[float] = 1.0

    def forward(
        self,
        student_map: Tensor,
        teacher_map: Tensor,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        return attention_mse(student_map, teacher_map, mask=mask)
