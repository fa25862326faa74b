"""What the losses on class logits share: their maps without void, standardised, and over the temperature."""

from __future__ import annotations

import torch
from torch import Tensor

from densekd.errors import ShapeError
from densekd.functional.checks import working_type
from densekd.functional.correlation import constant


def check_classes(logits: Tensor, who: str, instead: str) -> None:
    """At least two channels: the softmax over one is 1 for every input. `instead` says what to do."""
    if logits.shape[1] == 1:
        raise ShapeError(
            f"{who} need at least two channels, got one in {tuple(logits.shape)}: the softmax of one channel is "
            f"always 1 and the loss always 0; {instead}"
        )


def working_map(x: Tensor, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
    """The map in the working type of both; void positions are zero."""
    x = x.to(working_type(student, teacher))
    if mask is None:
        return x
    # Whatever stands in a void position, NaN included, takes no part, neither here nor backwards.
    return torch.where(mask[:, None], x, 0.0)


def standardized(x: Tensor) -> Tensor:
    """Every pixel's logits with mean 0 and standard deviation 1 over the channels.

    `(x - mean) / (std + 1e-7)`, the unbiased std; zeros without a gradient where all are equal but for rounding,
    which would be taken for differences.
    """
    # Brought below 1 first, the constant too: squares of huge logits must not overflow.
    size = x.detach().abs().amax(1, keepdim=True).clamp(min=1.0)
    x = x / size
    centred = x - x.mean(1, keepdim=True)
    deviations = centred.square().sum(1, keepdim=True)
    flat = constant(deviations.detach(), x.detach().square().sum(1, keepdim=True))
    # The root has no derivative at zero: flat pixels take another value there, and are zeroed after it.
    deviation = torch.where(flat, 1.0, deviations / (x.shape[1] - 1)).sqrt() + 1e-7 / size
    return torch.where(flat, 0.0, centred / deviation)


def bounded(x: Tensor, tau: float) -> Tensor:
    """Centred logits over tau, held in a range whose sums do not overflow."""
    low = torch.finfo(x.dtype).min / (4 * x.numel() * max(1.0, tau**2))
    return ((x - x.detach().amax(1, keepdim=True)) / tau).clamp(min=low)
