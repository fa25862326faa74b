"""Pixel-wise distillation (PI) as a module."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from densekd.errors import ArgumentError
from densekd.functional import pixelwise_kl, pixelwise_mse
from densekd.functional.checks import check_choice, check_flag, check_temperature
from densekd.losses.base import DistillationLoss


class PixelWise(DistillationLoss):
    """Class distributions compared pixel by pixel; see `densekd.functional.pixelwise_kl`.

    Args:
        temperature: of the softmax over classes.
        standardize: bring every pixel's logits to mean 0 and standard deviation 1 first (only with "kl").
        divergence: "kl", the method itself, or "mse", its ablation (`densekd.functional.pixelwise_mse`).

    Raises:
        ArgumentError, DtypeError: an option that cannot be, by its value or its type.

    >>> PixelWise(temperature=2.0, standardize=True)
    PixelWise(temperature=2.0, standardize=True, divergence='kl')
    >>> PixelWise.logits_only  # its channels are classes: on features the distiller refuses it
    True
    """

    name: ClassVar[str] = "pixelwise"
    logits_only: ClassVar[bool] = True
    cost: ClassVar[str] = "N K P"

    def __init__(self, temperature: float = 1.0, standardize: bool = False, divergence: str = "kl") -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)
        check_choice("divergence", divergence, ("kl", "mse"))
        check_flag("standardize", standardize)
        if standardize and divergence != "kl":
            raise ArgumentError(
                "PixelWise: standardize goes with divergence 'kl', got divergence 'mse'; drop one of them"
            )
        self.standardize, self.divergence = standardize, divergence

    def forward(
        self,
        student_map: Tensor,
        teacher_map: Tensor,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        if self.divergence == "mse":
            return pixelwise_mse(student_map, teacher_map, temperature=self.temperature, mask=mask)
        return pixelwise_kl(
            student_map, teacher_map, temperature=self.temperature, standardize=self.standardize, mask=mask
        )

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, standardize={self.standardize}, divergence={self.divergence!r}"
