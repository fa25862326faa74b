"""Masked generative distillation (MGD) as a module."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Size, Tensor, nn

from densekd.errors import ArgumentError, ShapeError
from densekd.functional.masked import check_mask_ratio, draw_visible, masked_mse
from densekd.losses.available_memory import available_bytes
from densekd.losses.base import DistillationLoss


class Generator(nn.Module):
    """Convolution 3x3, ReLU, convolution 3x3: `(N, channels, H, W)` to the same shape.

    `18 * channels * hidden + hidden + channels` parameters. It computes in the type of its parameters, or in what
    autocast says.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, hidden, 3, padding=1)
        self.second = nn.Conv2d(hidden, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        generated: Tensor = self.second(self.first(x.to(self.first.weight.dtype)).relu())
        return generated


class MaskedGenerative(DistillationLoss):
    """The teacher's map rebuilt from a part of the student's; see `densekd.functional.masked_mse`.

    `bind` makes the network that rebuilds it. Its parameters are the loss's own, and are trained with the student.

    In training mode every call draws other hidden positions, on the map's device, from that device's global generator:
    seed it before a step and the step can be repeated. In evaluation mode every call hides the same positions and
    takes nothing from the global generator.

    Args:
        mask_ratio: part of the positions that is hidden, from 0 to below 1.
        hidden: channels between the two convolutions; default: those of the teacher's map.

    Raises:
        ArgumentError, DtypeError: an option that cannot be, by its value or its type.

    >>> loss = MaskedGenerative(mask_ratio=0.5, hidden=4)
    >>> loss.bind(torch.Size([1, 8, 4, 4]), torch.Size([1, 8, 4, 4]), num_classes=None)
    >>> sum(p.numel() for p in loss.parameters())  # of the network that rebuilds: 18 * 8 * 4 + 4 + 8
    588
    """

    name: ClassVar[str] = "masked"
    cost: ClassVar[str] = "N C^2 P"
    default_weight: ClassVar[float] = 1.6
    generator: Generator | None

    def __init__(self, mask_ratio: float = 0.75, hidden: int | None = None) -> None:
        super().__init__()
        self.mask_ratio = check_mask_ratio(mask_ratio)
        if hidden is not None and (isinstance(hidden, bool) or not isinstance(hidden, int) or hidden < 1):
            raise ArgumentError(f"hidden: expected a number of channels, at least 1, or None, got {hidden!r}")
        self.hidden = hidden
        self.register_module("generator", None)

    def bind(self, student_shape: Size, teacher_shape: Size, num_classes: int | None) -> None:
        if len(teacher_shape) != 4:
            raise ShapeError(
                f"MaskedGenerative: expected maps (N, C, H, W), got {tuple(teacher_shape)}; its convolutions have two "
                "spatial axes"
            )
        channels = teacher_shape[1]
        hidden = self.hidden or channels
        _require_memory(channels, hidden)
        self.generator = Generator(channels, hidden)

    def forward(
        self,
        student_map: Tensor,
        teacher_map: Tensor,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        if self.generator is None:
            raise ArgumentError(
                "MaskedGenerative has no generator yet: the Distiller makes it; by hand, call "
                "bind(student_map.shape, teacher_map.shape, None) once, then .to(device), before the optimiser is built"
            )
        draw = None if self.training else torch.Generator(student_map.device).manual_seed(0)
        visible = draw_visible(student_map, self.mask_ratio, draw)
        return masked_mse(student_map, teacher_map, visible=visible, generate=self.generator, mask=mask)

    def extra_repr(self) -> str:
        return f"mask_ratio={self.mask_ratio}, hidden={self.hidden}"


def _require_memory(channels: int, hidden: int) -> None:
    """Refuse a generator that could not be trained here: its weights, their gradient, two moments of an optimiser."""
    parameters, free = 18 * channels * hidden + hidden + channels, available_bytes()
    if 16 * parameters > free:
        raise ArgumentError(
            f"MaskedGenerative: a generator of {channels} channels with hidden={hidden} has {parameters:,} parameters "
            f"and takes {16e-9 * parameters:.2f} GB in training; {free / 1e9:.2f} GB are available; lower hidden"
        )
