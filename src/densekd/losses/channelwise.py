"""Channel-wise distillation (CWD) as a module."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from densekd.functional import channelwise_kl, channelwise_mse
from densekd.functional.checks import check_choice, check_temperature
from densekd.losses.base import DistillationLoss


class ChannelWise(DistillationLoss):
    """Maps normalised over positions, compared channel by channel; see `densekd.functional.channelwise_kl`.

    Args:
        temperature: of the softmax over positions.
        divergence: "kl", the method itself, or "mse", its ablation (`densekd.functional.channelwise_mse`).

    Raises:
        ArgumentError, DtypeError: an option that cannot be, by its value or its type.

    >>> loss = ChannelWise(temperature=4.0)
    >>> student = torch.zeros(2, 5, 8, 8, requires_grad=True)
    >>> loss(student, torch.rand(2, 5, 8, 8)).backward()
    >>> student.grad.shape
    torch.Size([2, 5, 8, 8])
    """

    name: ClassVar[str] = "channelwise"
    default_weight: ClassVar[float] = 3.0
    cost: ClassVar[str] = "N C P"

    def __init__(self, temperature: float = 4.0, divergence: str = "kl") -> None:
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
        function = channelwise_kl if self.divergence == "kl" else channelwise_mse
        return function(student_map, teacher_map, temperature=self.temperature, mask=mask)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, divergence={self.divergence!r}"
