"""Pixel-wise KL over channels on the CPU, in blocks of positions that stay in the cache.

Of one position, with u = (s - max s) / tau and v = (t - max t) / tau over its C channels, held above a finite bound:

    q = exp(u) / sum exp(u),  p = exp(v) / sum exp(v)
    KL = sum p * (v - u) + log(sum exp(u) / sum exp(v)) + sum (q - p)

The last sum is zero in exact arithmetic; in floating point it cancels the error of the normalisers. Its terms are the
gradient, so that is made here too.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from densekd.kernels.strides import position_order

# Elements of a block: enough that calling torch costs little, few enough to stay in the cache.
BLOCK = 131_072


def lowest(working: torch.dtype, elements: int, temperature: float) -> float:
    """The bound below which (x - max) / tau is held, so that sums over a map of so many elements stay finite."""
    return torch.finfo(working).min / (4 * elements * max(1.0, temperature**2))


def blocked(
    student: Tensor, teacher: Tensor, mask: Tensor | None, temperature: float, want_gradient: bool
) -> tuple[Tensor, Tensor]:
    """`temperature**2 * KL` of every position, (N, *spatial), and q - p in the student's shape, layout and type.

    Void positions give zero, whatever stands there. The gradient is empty where it is not wanted.
    """
    working = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    order = position_order(student)
    gradient = torch.empty_like(student) if want_gradient else student.new_empty(0)
    turned = gradient.permute(order) if want_gradient else None
    slopes = None if turned is None else turned.flatten(2)
    s, t = student.permute(order), teacher.permute(order)
    valid = None if mask is None else mask.permute(0, *(axis - 1 for axis in order[2:])).flatten(1)
    values = student.new_empty((len(s), *s.shape[2:]), dtype=working)
    flat, low = values.flatten(1), lowest(working, student.numel(), temperature)
    step = max(1, BLOCK // student.shape[1])
    for image in range(len(s)):
        own, other = s[image].flatten(1), t[image].flatten(1)
        for first in range(0, flat.shape[1], step):
            here = slice(first, first + step)
            kept = None if valid is None else valid[image, here]
            value, slope = _block(own[:, here].to(working), other[:, here].to(working), kept, temperature, low)
            flat[image, here] = value
            if slopes is not None:
                slopes[image, :, here] = slope
    if turned is not None and slopes is not None and slopes.data_ptr() != turned.data_ptr():
        turned.copy_(slopes.view(turned.shape))
    back = [order.index(axis) - 1 for axis in range(2, student.ndim)]
    return values.permute(0, *back), gradient


def _block(s: Tensor, t: Tensor, kept: Tensor | None, temperature: float, low: float) -> tuple[Tensor, Tensor]:
    """Of (C, positions): temperature**2 * KL, (positions,), and q - p."""
    q, p = (((x - x.amax(0)).mul_(1.0 / temperature)).clamp_(min=low) for x in (s, t))
    gap = p - q
    q.mul_(math.log2(math.e)).exp2_()
    p.mul_(math.log2(math.e)).exp2_()
    q_mass, p_mass = q.sum(0), p.sum(0)
    q.div_(q_mass)
    p.div_(p_mass)
    value = gap.mul_(p).sum(0) + (q_mass / p_mass).log_()
    slope = q.sub_(p)
    value = (value + slope.sum(0)).clamp_(min=0.0).mul_(temperature**2)
    if kept is not None:
        value, slope = value.masked_fill_(~kept, 0.0), slope.masked_fill_(~kept, 0.0)
    return value, slope
