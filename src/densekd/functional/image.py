"""One image of a batch as a matrix (C, P).

Losses that work image by image keep no second map of the whole batch: they make their gradient by hand, from the
map itself, with one image of scratch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from densekd.errors import SecondDerivativeError

#: Vectors shorter than this have no direction: they count as zero and get no gradient.
SHORTEST = 1e-8
# Elements worked on at once: few enough to stay in the cache.
_BLOCK = 262_144


class Unit(NamedTuple):
    """Vectors at length 1, `directions` (C, P), of a map divided by `scale`, where they are `lengths` (P,) long.

    Vectors without a direction are zero, and so is their `inverse` (P,) length.
    """

    directions: Tensor
    lengths: Tensor
    inverse: Tensor
    scale: Tensor


def matrix(image: Tensor, valid: Tensor | None, working: torch.dtype) -> Tensor:
    """(C, *spatial) as (C, P) in the working type, zero where `valid` (*spatial) is False; may share memory."""
    flat = image.flatten(1).to(working)
    return flat if valid is None else torch.where(valid.flatten(), flat, 0.0)


def range_scale(x: Tensor) -> Tensor:
    """What to divide a map by so that sums of its squares do not overflow: 1, or the largest entry of a huge map."""
    largest = torch.maximum(x.amax(), -x.amin())
    return torch.where(largest < 1e-4 * torch.finfo(x.dtype).max ** 0.5, 1.0, largest)


def channel_dot(a: Tensor, b: Tensor) -> Tensor:
    """Sum over channels of a * b, (P,), in blocks of channels."""
    if a.device.type != "cpu":
        return (a * b).sum(0)
    total = a.new_zeros(a.shape[1])
    step = max(1, _BLOCK // max(1, a.shape[1]))  # a map of one column has no pairs along it
    for one, other in zip(torch.split(a, step), torch.split(b, step), strict=True):
        total += (one * other).sum(0)
    return total


def unit(x: Tensor) -> Unit:
    """The columns of (C, P) at length 1, in fresh memory."""
    scale = range_scale(x)
    scaled = x / scale
    lengths = channel_dot(scaled, scaled).sqrt_()
    inverse = torch.where(lengths > SHORTEST, 1.0 / lengths, 0.0)
    return Unit(scaled.mul_(inverse), lengths, inverse, scale)


def through_unit(gradient: Tensor, of: Unit) -> Tensor:
    """The gradient of the vectors from that of their directions, (C, P), in the place of the latter."""
    along = channel_dot(gradient, of.directions)
    return gradient.addcmul_(of.directions, along, value=-1.0).mul_(of.inverse / of.scale)


def first_order(name: str, gradient: Tensor, student: Tensor) -> Tensor:
    """The gradient of `student`, of which no further derivative can be taken."""
    return _FirstOrder.apply(name, gradient, student) if torch.is_grad_enabled() else gradient


class _FirstOrder(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, name: str, gradient: Tensor, student: Tensor) -> Tensor:
        ctx.name = name
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> None:
        raise SecondDerivativeError(
            f"{ctx.name} has no second derivative: its gradient is made by hand; for a gradient penalty write the "
            "formula of its documentation in plain torch"
        )
