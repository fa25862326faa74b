"""Pearson correlation as a distance, without 0/0 where values are constant."""

from __future__ import annotations

import torch
from torch import Tensor


def constant(deviations: Tensor, squares: Tensor) -> Tensor:
    """Where values differ by rounding alone, from the sum of their squared deviations and of their squares.

    The standard deviation is then at most 16 units in the last place of the root mean square. NaN is not constant.
    """
    return deviations <= (16 * torch.finfo(squares.dtype).eps) ** 2 * squares


def correlation_distance(
    student: Tensor,
    teacher: Tensor,
    dims: tuple[int, ...],
    *,
    valid: Tensor | None = None,
    floors: tuple[float, float] = (0.0, 0.0),
) -> Tensor:
    """`1 - r`, r the Pearson correlation over `dims`, which are kept with size 1; at least 0, at most 2.

    It is computed as half the squared distance of the centred values brought to length 1: `1 - r` itself loses what
    is left of it to rounding when the maps are nearly equal.

    Groups of values that are constant have no correlation. Where the teacher's are there is nothing to learn: 0.
    Where only the student's are, nothing of the teacher's is there yet: 1. Neither gives a gradient.

    Args:
        student, teacher: of one shape and type, finite at valid positions.
        dims: what the correlation goes over.
        valid: bool, of size 1 along what `dims` leaves out; what is not valid takes no part.
        floors: of student and teacher: a group is constant, too, where the length of its deviations is at most this
            part of the longest in the map.
    """
    units, alive = zip(
        *(_unit(x, dims, valid, floor) for x, floor in zip((student, teacher), floors, strict=True)), strict=True
    )
    distance = 0.5 * (units[0] - units[1]).square().sum(dims, keepdim=True)
    return torch.where(alive[0] & alive[1], distance, alive[1].to(distance.dtype))


def _unit(x: Tensor, dims: tuple[int, ...], valid: Tensor | None, floor: float) -> tuple[Tensor, Tensor]:
    """Centred values of length 1 over `dims`, and where they are not constant."""
    if valid is not None:
        x = torch.where(valid, x, 0.0)
    # A correlation knows no scale, so that of every group can be taken away first: no square over- or underflows.
    # The smallest are left small, and so take no part: what is left of their digits is rounding.
    info = torch.finfo(x.dtype)
    scale = x.detach().abs().amax(dims, keepdim=True)
    x = x / scale.clamp(min=info.tiny / info.eps)
    if valid is None:
        centred = x - x.mean(dims, keepdim=True)
    else:
        count = valid.sum(dims, keepdim=True).clamp(min=1)
        centred = torch.where(valid, x - x.sum(dims, keepdim=True) / count, 0.0)
    deviations = centred.square().sum(dims, keepdim=True)
    with torch.no_grad():
        flat = constant(deviations, x.square().sum(dims, keepdim=True).clamp(min=1.0))
        if floor > 0.0:
            length = deviations.sqrt() * (scale / scale.amax())
            flat = flat | (length <= floor * length.amax())
    # The root has no derivative at zero: constant groups take another value there, and no part after it.
    return centred / torch.where(flat, 1.0, deviations).sqrt(), ~flat
