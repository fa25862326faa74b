"""Squared distance of two maps of cosine similarities, image by image, without the maps.

For unit vectors S (Cs, M) and T (Ct, M) of the M nodes of an image, with D = S^T S - T^T T (M, M):

    value = ||D||_F**2 = sum_{i,j} (s_i . s_j - t_i . t_j)**2        d value / dS = 4 * S D

There are two ways, and the cheaper is taken:

* by channels, where there are more nodes than channels: ||D||_F**2 = ||S S^T||_F**2 - 2 ||S T^T||_F**2 + ||T T^T||_F**2
  and S D = (S S^T) S - (S T^T) T need no more than C x C. The terms are much larger than their difference where
  the maps are nearly equal: float64.
* by nodes: D itself, a block of its rows at a time, in the working type. Nothing is lost there: the differences are
  taken before the squares.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from densekd.functional.derivatives import features, transformed, unit_columns
from densekd.functional.image import first_order, matrix, through_unit, unit

# How much dearer a float64 product is than a float32 one, at worst; devices that are not listed have no float64.
_FLOAT64_COST = {"cpu": 2.0, "cuda": 64.0}
# Elements of a block of rows: on a CPU few enough for the cache; elsewhere launches should be few.
_CPU_BLOCK, _BLOCK = 2**20, 2**25


def gram_distance(student: Tensor, teacher: Tensor, valid: Tensor | None, working: torch.dtype) -> Tensor:
    """`||D||_F**2` of every image, (N,), from features (N, Cs, M) and (N, Ct, M), brought to unit vectors here.

    Nodes where `valid` (N, M) is False are zero vectors: their pairs add nothing.
    """
    if transformed(student):
        with torch.autocast(student.device.type, enabled=False):
            s, t = (unit_columns(features(x, valid, working)) for x in (student, teacher))
            return (s.transpose(1, 2) @ s - t.transpose(1, 2) @ t).square().sum((1, 2))
    wanted = student.requires_grad and torch.is_grad_enabled()
    with torch.autocast(student.device.type, enabled=False):
        value: Tensor = _GramDistance.apply(student, teacher, valid, working, wanted)
    return value


def by_channels(channels: tuple[int, int], nodes: int, device: str, working: torch.dtype) -> bool:
    """Whether the C x C way costs less than the M x M way, gradient included."""
    cs, ct = channels
    factor = 1.0 if working == torch.float64 else _FLOAT64_COST.get(device, float("inf"))
    return factor * (2 * cs * cs + 2 * cs * ct + ct * ct) < (2 * cs + ct) * nodes


class _GramDistance(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, valid: Tensor | None, working: torch.dtype, wanted: bool
    ) -> Tensor:
        channels, nodes = (student.shape[1], teacher.shape[1]), student.shape[2]
        distance = _by_channels if by_channels(channels, nodes, student.device.type, working) else _by_nodes
        gradient = torch.empty_like(student, dtype=working) if wanted else None
        values = []
        for n in range(len(student)):
            s, t = (unit(matrix(x[n], None if valid is None else valid[n], working)) for x in (student, teacher))
            slope = None if gradient is None else torch.empty_like(s.directions)
            values.append(distance(s.directions, t.directions, slope))
            if gradient is not None and slope is not None:
                gradient[n] = through_unit(slope, s)
        ctx.save_for_backward(student, gradient)
        return torch.stack(values)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        student, gradient = ctx.saved_tensors
        with torch.no_grad():
            scaled = (gradient * upstream[:, None, None]).to(student.dtype)
        return first_order("pairwise_mse", scaled, student), None, None, None, None


def _blocks(count: int, width: int, device: torch.device) -> Iterator[slice]:
    """Slices over `count` rows of `width` elements."""
    step = max(1, (_CPU_BLOCK if device.type == "cpu" else _BLOCK) // width)
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def _by_nodes(s: Tensor, t: Tensor, slope: Tensor | None) -> Tensor:
    """`||D||_F**2`; fills `slope` with 4 * S D."""
    nodes = s.shape[1]
    value = s.new_zeros(())
    for rows in _blocks(nodes, nodes, s.device):
        difference = torch.mm(t[:, rows].T, t)
        torch.addmm(difference, s[:, rows].T, s, beta=-1.0, out=difference)
        if slope is not None:
            slope[:, rows] = torch.mm(s, difference.T).mul_(4.0)
        value += difference.square_().sum()
    return value


def _by_channels(s: Tensor, t: Tensor, slope: Tensor | None) -> Tensor:
    """`||D||_F**2`; fills `slope` with 4 * S D."""
    working, (cs, ct) = s.dtype, (s.shape[0], t.shape[0])
    own, mixed, its = (s.new_zeros(shape, dtype=torch.float64) for shape in ((cs, cs), (cs, ct), (ct, ct)))
    columns = list(_blocks(s.shape[1], max(cs, ct), s.device))
    for part in columns:
        a, b = s[:, part].double(), t[:, part].double()
        own.addmm_(a, a.T)
        mixed.addmm_(a, b.T)
        its.addmm_(b, b.T)
    value = own.square().sum() - 2.0 * mixed.square().sum() + its.square().sum()
    if slope is not None:
        for part in columns:
            a, b = s[:, part].double(), t[:, part].double()
            slope[:, part] = torch.mm(own, a).addmm_(mixed, b, alpha=-1.0).mul_(4.0)
    return value.clamp(min=0.0).to(working)
