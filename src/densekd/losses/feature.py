"""Feature mimicking (FitNet, MIMIC) as a module."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from densekd.functional import feature_mse
from densekd.losses.base import DistillationLoss


class FeatureMimic(DistillationLoss):
    """Mean squared difference of the maps; see `densekd.functional.feature_mse`.

    >>> FeatureMimic()(torch.ones(1, 8, 4, 4), torch.zeros(1, 8, 4, 4)).item()
    1.0
    """

    name: ClassVar[str] = "feature"
    cost: ClassVar[str] = "N C P"

    def forward(
        self,
        student_map: Tensor,
        teacher_map: Tensor,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        return feature_mse(student_map, teacher_map, mask=mask)
