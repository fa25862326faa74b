"""Intra-class feature variation (IFV) as a module."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from densekd.errors import ArgumentError
from densekd.functional.checks import check_ignore_index
from densekd.functional.intraclass import check_num_classes, intraclass_mse
from densekd.losses.base import DistillationLoss


class IntraClass(DistillationLoss):
    """Cosines of every position to the centre of its class, compared; see `densekd.functional.intraclass_mse`.

    Args:
        num_classes: classes in the labels; None: what `bind` is told, which the Distiller does.
        ignore_index: the label of void.

    Raises:
        ArgumentError, DtypeError: an option that cannot be, by its value or its type.

    >>> loss = IntraClass(num_classes=3)
    >>> labels = torch.randint(0, 3, (2, 4, 4))
    >>> loss(torch.rand(2, 8, 4, 4), torch.rand(2, 16, 4, 4), labels=labels).shape
    torch.Size([])
    """

    name: ClassVar[str] = "intraclass"
    needs: frozenset[str] = frozenset({"labels"})
    equal_channels: ClassVar[bool] = False
    batch_wide: ClassVar[bool] = True
    cost: ClassVar[str] = "N K C P"
    default_weight: ClassVar[float] = 20.0

    def __init__(self, num_classes: int | None = None, ignore_index: int = 255) -> None:
        super().__init__()
        self.num_classes = None if num_classes is None else check_num_classes(num_classes)
        self.ignore_index = check_ignore_index(ignore_index)

    def bind(self, student_shape: torch.Size, teacher_shape: torch.Size, num_classes: int | None) -> None:
        if self.num_classes is None:
            self.num_classes = num_classes
        self._known_classes()

    def forward(
        self,
        student_map: Tensor,
        teacher_map: Tensor,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        if labels is None:
            raise ArgumentError(
                "IntraClass needs labels, got None: pass integers (N, H, W) at the size of the maps "
                "(distiller(images, labels=labels) does that)"
            )
        return intraclass_mse(
            student_map,
            teacher_map,
            labels,
            num_classes=self._known_classes(),
            ignore_index=self.ignore_index,
            mask=mask,
        )

    def _known_classes(self) -> int:
        if self.num_classes is None:
            raise ArgumentError(
                "IntraClass does not know the number of classes: write IntraClass(num_classes=19), or give the "
                "Distiller num_classes"
            )
        return self.num_classes

    def extra_repr(self) -> str:
        return f"num_classes={self.num_classes}, ignore_index={self.ignore_index}"
