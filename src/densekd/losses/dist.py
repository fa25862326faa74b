"""Correlations of class probabilities (DIST) as a module."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from densekd.functional.checks import check_factor, check_flag, check_temperature
from densekd.functional.dist import dist_pearson
from densekd.losses.base import DistillationLoss


class Dist(DistillationLoss):
    """Pearson correlation between classes of a pixel and pixels of a class; see `densekd.functional.dist_pearson`.

    Args:
        temperature: of the softmax over classes.
        beta: weight of the correlations between the classes of a position.
        gamma: weight of the correlations between the positions of a class.
        standardize: bring every pixel's logits to mean 0 and standard deviation 1 first.

    Raises:
        ArgumentError, DtypeError: an option that cannot be, by its value or its type.

    >>> loss = Dist(temperature=1.0, beta=1.0, gamma=2.0)
    >>> teacher = torch.randn(2, 5, 4, 4)
    >>> round(loss(teacher, teacher).abs().item(), 4)
    0.0
    """

    name: ClassVar[str] = "dist"
    logits_only: ClassVar[bool] = True
    batch_wide: ClassVar[bool] = True
    cost: ClassVar[str] = "N K P"

    def __init__(
        self, temperature: float = 1.0, beta: float = 1.0, gamma: float = 1.0, standardize: bool = False
    ) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)
        self.beta, self.gamma = check_factor("beta", beta), check_factor("gamma", gamma)
        self.standardize = check_flag("standardize", standardize)

    def forward(
        self,
        student_map: Tensor,
        teacher_map: Tensor,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        return dist_pearson(
            student_map,
            teacher_map,
            temperature=self.temperature,
            beta=self.beta,
            gamma=self.gamma,
            standardize=self.standardize,
            mask=mask,
        )

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, beta={self.beta}, gamma={self.gamma}, standardize={self.standardize}"
