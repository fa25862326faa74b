"""Decoupled distillation per pixel (DKD) as a module."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from densekd.errors import ArgumentError
from densekd.functional.checks import check_factor, check_flag, check_ignore_index, check_temperature
from densekd.functional.decoupled import decoupled_kl
from densekd.losses.base import DistillationLoss


class Decoupled(DistillationLoss):
    """The labelled class and the others, each distilled by itself; see `densekd.functional.decoupled_kl`.

    Args:
        alpha: weight of the labelled class against the rest.
        beta: weight of the other classes among themselves.
        temperature: of the softmax over classes.
        ignore_index: the label of void.
        standardize: bring every pixel's logits to mean 0 and standard deviation 1 first.

    Raises:
        ArgumentError, DtypeError: an option that cannot be, by its value or its type.

    >>> loss = Decoupled(alpha=1.0, beta=2.0)
    >>> labels = torch.randint(0, 5, (2, 4, 4))
    >>> loss(torch.rand(2, 5, 4, 4), torch.rand(2, 5, 4, 4), labels=labels).shape
    torch.Size([])
    """

    name: ClassVar[str] = "decoupled"
    needs: frozenset[str] = frozenset({"labels"})
    logits_only: ClassVar[bool] = True
    batch_wide: ClassVar[bool] = True
    cost: ClassVar[str] = "N K P"

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 2.0,
        temperature: float = 1.0,
        ignore_index: int = 255,
        standardize: bool = False,
    ) -> None:
        super().__init__()
        self.alpha, self.beta = check_factor("alpha", alpha), check_factor("beta", beta)
        self.temperature = check_temperature(temperature)
        self.ignore_index = check_ignore_index(ignore_index)
        self.standardize = check_flag("standardize", standardize)

    def forward(
        self,
        student_map: Tensor,
        teacher_map: Tensor,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        if labels is None:
            raise ArgumentError(
                "Decoupled needs labels, got None: pass integers (N, H, W) at the size of the maps "
                "(distiller(images, labels=labels) does that)"
            )
        return decoupled_kl(
            student_map,
            teacher_map,
            labels,
            alpha=self.alpha,
            beta=self.beta,
            temperature=self.temperature,
            standardize=self.standardize,
            ignore_index=self.ignore_index,
            mask=mask,
        )

    def extra_repr(self) -> str:
        return (
            f"alpha={self.alpha}, beta={self.beta}, temperature={self.temperature}, "
            f"ignore_index={self.ignore_index}, standardize={self.standardize}"
        )
