"""Relations of the pixels of one image to those of another (CIRKD, CVPR 2022), within a batch."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from densekd.errors import ArgumentError, ShapeError
from densekd.functional.checks import check_choice, check_maps, check_mask, check_temperature, working_type
from densekd.functional.relation import relation_kl, unit_vectors

REDUCTIONS = ("mean", "sum")
_POOLS = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)


def crossimage_kl(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 0.1,
    pool: int = 2,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Cross-image distillation within a batch: how each pixel of an image resembles the pixels of every image.

    With f the features at unit length over C, and for every ordered pair (a, b) of the N images, a = b among them,
    the row of pixel i of a: q = softmax over the pixels j of b of (f_S[a,i] . f_S[b,j] / tau), p likewise of T:

        L = 1 / (N**2 * P) * sum_{a,b,i} KL(p || q)

    There is no tau**2: similarities lie within [-1, 1], and tau sets how sharply they are told apart.

    Args:
        student: (N, Cs, *spatial), any float type and memory format; a position whose features are all zero
            resembles everything equally and gets no gradient.
        teacher: (N, Ct, *spatial); the channels may differ; gets no gradient.
        temperature: tau.
        pool: side of the cells over which both maps are averaged first (1 to 3 spatial axes), the incomplete
            ones at the border over what they hold; 1: no pooling. For images the cost falls by pool**4.
        mask: bool (N, *spatial), True where a position counts: void positions are neither rows nor columns, and
            take no part in the average of their cell. Nothing valid: a zero that still back-propagates.
        reduction: "mean" divides by the number of rows: valid pixels times images with a valid pixel (N**2 * P
            without a mask); "sum" by nothing. There is no "none".

    Returns:
        float32, or float64 where an input is float64.

    Time O(N**2 * P**2 * (Cs + Ct)). No map of similarities of two images exists whole: the work goes by blocks of
    rows, and the gradient is made in the same pass, so that memory is O(N * P * (Cs + Ct)).

    Raises:
        ShapeError: batch or spatial sizes that differ, no spatial axis, a single position after pooling (its
            softmax is always 1), pooling with more than three spatial axes, a mask of another shape.
        DtypeError: integer maps, a mask that is not bool.
        ArgumentError: temperature outside 1e-6 to 1e4, pool < 1, unknown reduction.
        SecondDerivativeError: when a second derivative is asked of a backward pass (`torch.func` has it, by the plain
            definition).

    Source: Yang et al., "Cross-Image Relational Knowledge Distillation for Semantic Segmentation", CVPR 2022; the
    factor is that of winycg/CIRKD, which knows no mask; it pooled not at all at first, later by 2, then large maps by
    4. "The batch" is that of one process.

    >>> teacher = torch.eye(4).view(2, 4, 2, 1)  # two images of two pixels, all at right angles
    >>> round(crossimage_kl(3.0 * teacher, teacher, pool=1).item(), 4)  # lengths do not matter
    0.0
    >>> round(crossimage_kl(torch.ones(2, 4, 2, 1), teacher, pool=1).item(), 2)  # half of log 2: within an image alone
    0.35
    """
    check_maps(student, teacher, same_channels=False)
    check_mask(mask, student)
    tau = check_temperature(temperature)
    pool = check_count("pool", pool)
    check_choice("reduction", reduction, REDUCTIONS)
    working = working_type(student, teacher)
    s, t = (_masked(x.to(working), mask) for x in (student, teacher.detach()))
    if pool > 1:
        s, t, mask = _pooled(s, mask, pool), _pooled(t, mask, pool), _pooled_mask(mask, pool)
    if s[0, 0].numel() == 1:
        raise ShapeError(
            f"crossimage_kl needs at least two positions, got one (maps {tuple(student.shape)}, pool {pool}): the "
            "softmax over one position is always 1; tap an earlier module or lower pool"
        )
    rows, others = (unit_vectors(x.flatten(2).transpose(1, 2).flatten(0, 1)) for x in (s, t))
    weights, valid = _weights(s, mask, reduction)
    return relation_kl(rows, rows, others, others, weights, valid, tau)


def check_count(name: str, value: Any, least: int = 1) -> int:
    """A whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ArgumentError(f"{name}: expected a whole number of at least {least}, got {value!r}")
    return value


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    # Whatever stands in a void position, NaN included, takes no part, neither here nor backwards.
    return x if mask is None else torch.where(mask[:, None], x, 0.0)


def _pooled(x: Tensor, mask: Tensor | None, pool: int) -> Tensor:
    """The mean of every cell over its valid positions; void positions of `x` are zero."""
    axes = x.ndim - 2
    if axes > len(_POOLS):
        raise ShapeError(f"pool: expected maps with one to three spatial axes, got {tuple(x.shape)}; leave pool at 1")
    mean = _POOLS[axes - 1](x, pool, ceil_mode=True)
    if mask is None:
        return mean
    share = _POOLS[axes - 1](mask[:, None].to(x.dtype), pool, ceil_mode=True)
    return mean / torch.where(share > 0, share, 1.0)


def _pooled_mask(mask: Tensor | None, pool: int) -> Tensor | None:
    """Cells with a valid position."""
    return None if mask is None else _pooled(mask[:, None].float(), None, pool)[:, 0] > 0


def _weights(like: Tensor, mask: Tensor | None, reduction: str) -> tuple[Tensor, Tensor | None]:
    """What a row counts in each image, (N * P, N), and which columns take part, (N * P,)."""
    images, positions = like.shape[0], like[0, 0].numel()
    if mask is None:
        weights = like.new_ones(images * positions, images)
        return (weights / weights.numel() if reduction == "mean" else weights), None
    valid = mask.flatten(1)
    weights = (valid.flatten()[:, None] & valid.any(1)).to(like.dtype)
    return (weights / weights.sum().clamp(min=1) if reduction == "mean" else weights), valid.flatten()
