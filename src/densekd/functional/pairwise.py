"""Similarities of all pairs of positions (PA: pair-wise distillation)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from densekd.errors import ArgumentError, ShapeError
from densekd.functional.checks import check_maps, check_mask, check_reduction, working_type
from densekd.functional.gram import gram_distance

_POOLS = (F.max_pool1d, F.max_pool2d, F.max_pool3d)


def pairwise_mse(
    student: Tensor,
    teacher: Tensor,
    *,
    pool: float | None = 2,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Pair-wise distillation: how similar every part of an image is to every other, by cosine.

    Both maps are max-pooled to M nodes; with f at unit length over C and a[i,j] = f_i . f_j:

        L = 1 / (N * M**2) * sum_{n,i,j} (a_S - a_T)**2

    The gradient flows through the norm; a vector shorter than 1e-8 counts as zero and gets none.

    Args:
        student: (N, Cs, *spatial), any float type and memory format.
        teacher: (N, Ct, *spatial); the channels may differ; gets no gradient.
        pool: side of the cells, in positions; or, below 1, as a fraction of each side of the map (0.5: cells of
            half the height by half the width). Cells at the border that are not full are kept. 1 or None: no pooling.
            One to three spatial axes; without pooling any number.
        mask: bool (N, *spatial), True where a position counts. Void positions take no part in the maximum of a cell;
            nodes without a valid position take no part in the pairs. Nothing valid: a zero that still back-propagates.
        reduction: "mean" divides by the number of pairs of valid nodes, a node with itself included (N * M**2 without
            a mask); "sum" by nothing; "none" returns (N,), the sum over each image's pairs.

    Returns:
        float32, or float64 where an input is float64.

    Time O(N * C * M * min(C, M)). No M x M map exists whole where it would be larger than a few blocks: where there
    are more nodes than channels the sum is taken from C x C matrices in float64, else by blocks of rows. The gradient
    is made in the same pass.

    Raises:
        ShapeError: batch or spatial sizes that differ, no spatial axis, a single node after pooling (its similarity to
            itself is always 1), pooling with more than three spatial axes, a mask of another shape.
        DtypeError: integer maps, a mask that is not bool.
        ArgumentError: pool that is neither a whole number of at least 1 nor a fraction, unknown reduction.
        SecondDerivativeError: when a second derivative is asked of a backward pass (`torch.func` has it, by the plain
            definition).

    Source: Liu et al., "Structured Knowledge Distillation", CVPR 2019. SKD pools by half the map (pool=0.5: 4 nodes,
    9 where the sides are odd) and stops the gradient at the norm; winycg/CIRKD pools by 2 and lets it flow, as here.

    >>> student = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).view(1, 2, 1, 2)  # two positions, at a right angle
    >>> teacher = torch.ones(1, 8, 1, 2)  # two that are alike; another number of channels
    >>> round(pairwise_mse(student, teacher, pool=1).item(), 4)  # two of the four pairs differ, by 1
    0.5
    """
    check_maps(student, teacher, same_channels=False)
    check_mask(mask, student)
    check_reduction(reduction)
    cells = check_nodes(student.shape, check_pool(pool))
    nodes = None if mask is None else mask[:, None]
    if math.prod(cells) > 1:
        student, teacher = (_pooled(x, mask, cells) for x in (student, teacher.detach()))
        nodes = None if nodes is None else _max_pool(nodes.float(), cells) > 0
    valid = None if nodes is None else nodes.flatten(1)
    working = working_type(student, teacher)
    images = gram_distance(student.flatten(2), teacher.detach().flatten(2), valid, working)
    if reduction == "none":
        return images
    if reduction == "sum":
        return images.sum()
    count = student[:, 0].numel() * student[0, 0].numel() if valid is None else valid.sum(1).square().sum().clamp(min=1)
    return (images / count).sum()


def check_pool(pool: Any) -> float | None:
    """A whole number of at least 1, a fraction, or None."""
    number = isinstance(pool, (int, float)) and not isinstance(pool, bool)
    if pool is not None and not (number and (0 < pool < 1 or (1 <= pool < math.inf and pool == int(pool)))):
        raise ArgumentError(
            "pool: expected a whole number of positions, a fraction of the map between 0 and 1, or None, got "
            f"{pool!r}; for example 2"
        )
    return pool


def check_nodes(shape: torch.Size, pool: float | None) -> list[int]:
    """The sides of the cells for maps of this shape, refused where they leave a single node."""
    part = 1 if pool is None else pool
    cells = [max(1, int(part * side)) if part < 1 else min(int(part), side) for side in shape[2:]]
    if math.prod(cells) > 1 and len(cells) > len(_POOLS):
        raise ShapeError(f"pool: expected maps with one to three spatial axes, got {tuple(shape)}; leave pool at None")
    if list(shape[2:]) == cells:
        raise ShapeError(
            f"pairwise_mse needs at least two nodes, got one (maps {tuple(shape)}, pool {pool}): its similarity to "
            "itself is always 1; tap an earlier module or lower pool"
        )
    return cells


def _pooled(x: Tensor, mask: Tensor | None, cells: list[int]) -> Tensor:
    """The maximum of every cell over its valid positions; minus infinity where there is none."""
    # Whatever stands in a void position, NaN included, takes no part, neither here nor backwards.
    return _max_pool(x if mask is None else torch.where(mask[:, None], x, -torch.inf), cells)


def _max_pool(x: Tensor, cells: list[int]) -> Tensor:
    pooled: Tensor = _POOLS[len(cells) - 1](x, cells, ceil_mode=True)
    return pooled
