"""Pixel-wise distillation (PI) as a module."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from densekd.functional import pixelwise_kl, pixelwise_mse
from densekd.functional.checks import check_choice, check_temperature
from densekd.losses.base import DistillationLoss


class PixelWise(DistillationLoss):
    """Class distributions compared pixel by pixel; see `densekd.functional.pixelwise_kl`.

    Args:
        temperature: of the softmax over classes.
        divergence: "kl", the method itself, or "mse", its ablation (`densekd.functional.pixelwise_mse`).
    """

    name: ClassVar[str] = "pixelwise"
    logits_only: ClassVar[bool] = True

    def __init__(self, temperature: float = 1.0, divergence: str = "kl") -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)
        check_choice("divergence", divergence, ("kl", "mse"))
        self.divergence = divergence

    def forward(
        self,
        student_map: Tensor,
        teacher_map: Tensor,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        function = pixelwise_kl if self.divergence == "kl" else pixelwise_mse
        return function(student_map, teacher_map, temperature=self.temperature, mask=mask)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, divergence={self.divergence!r}"
