"""Pixel-wise distillation with the labelled class and the others kept apart (DKD)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from densekd.functional.checks import (
    check_factor,
    check_flag,
    check_labels,
    check_maps,
    check_mask,
    check_reduction,
    check_temperature,
    reduce_positions,
)
from densekd.functional.logits import check_classes, standardized, working_map


def decoupled_kl(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 2.0,
    temperature: float = 1.0,
    standardize: bool = False,
    ignore_index: int = 255,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Decoupled distillation per pixel: how sure of the labelled class, and what the other classes look like.

    With p = softmax_c(T/tau), y the label of a position, b = (p_y, 1 - p_y), and phat the distribution over the K - 1
    other classes; V valid positions:

        L = tau**2 / V * sum_{n,i} ( alpha * KL(b_T || b_S)  +  beta * KL(phat_T || phat_S) )

    The KL of the whole softmax is the same sum with beta = 1 - p_y of the teacher: here the second part keeps
    its weight where the teacher is sure. Nothing is taken from clamped probabilities: b is the sigmoid of
    z_y - logsumexp_{c != y} z_c, so that the value is right where p_y rounds to 1. Two classes: phat is 1 and the
    second part 0.

    Args:
        student: (N, K, *spatial) class logits, K >= 2, any float type and memory format.
        teacher: the same shape; gets no gradient.
        labels: integers (N, *spatial): 0 to K - 1, or `ignore_index`.
        alpha: weight of the labelled class against the rest, not negative.
        beta: weight of the other classes among themselves, not negative.
        temperature: tau.
        standardize: first standardise the logits of every pixel, as `pixelwise_kl` does.
        ignore_index: the label of void; such positions take no part.
        mask: bool (N, *spatial), True where a position counts, beside the labels. Nothing valid: a zero that still
            back-propagates.
        reduction: "mean" divides by V, the positions that mask and labels leave; "sum" by nothing; "none" returns
            (N, *spatial), zero in void positions. All three carry tau**2.

    Returns:
        float32, or float64 where an input is float64.

    Raises:
        ShapeError: shapes that differ, no spatial axis, a mask or labels of another shape, one channel.
        DtypeError: integer maps, labels that are no integers, a mask or `standardize` that is not bool, a factor
            that is no number.
        ArgumentError: temperature outside 1e-6 to 1e4, a negative factor, a label that is neither a class nor
            `ignore_index`, unknown reduction.

    Source: Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, for whole images. megvii-research/mdistiller
    takes the logarithm of a probability that rounds to 0; ZaberKo/seg-gdkd, its port to pixels, clamps it.

    >>> labels = torch.tensor([[[0]]])
    >>> teacher = torch.tensor([4.0, 2.0, 0.0]).view(1, 3, 1, 1)
    >>> student = torch.tensor([4.0, 0.0, 2.0]).view(1, 3, 1, 1)  # as sure of class 0; the others the wrong way round
    >>> round(decoupled_kl(student, teacher, labels, beta=0.0).abs().item(), 4)
    0.0
    >>> round(decoupled_kl(student, teacher, labels, alpha=0.0, beta=1.0).item(), 4)
    1.5232
    """
    check_maps(student, teacher)
    check_classes(student, "the decoupled losses", "use channelwise_kl or feature_mse")
    check_mask(mask, student)
    check_reduction(reduction)
    check_labels(labels, student, student.shape[1], ignore_index)
    tau = check_temperature(temperature)
    alpha, beta = check_factor("alpha", alpha), check_factor("beta", beta)
    valid = labels != ignore_index if mask is None else mask & (labels != ignore_index)
    s, t = (working_map(x, student, teacher, valid) for x in (student, teacher.detach()))
    if check_flag("standardize", standardize):
        s, t = standardized(s), standardized(t)
    labelled = labels.masked_fill(~valid, 0).long()[:, None]
    limit = torch.finfo(s.dtype).max / (8 * s.numel() * max(1.0, tau**2) * max(1.0, alpha, beta))
    own, its = (_decoupled(x, labelled, tau, limit) for x in (s, t))
    binary = its.odds.sigmoid() * (logsigmoid(its.odds) - logsigmoid(own.odds))
    binary = binary + (-its.odds).sigmoid() * (logsigmoid(-its.odds) - logsigmoid(-own.odds))
    others = (its.others.exp() * (its.others - own.others)).sum(1)
    return reduce_positions(tau**2 * (alpha * binary + beta * others), valid, reduction)


class _Decoupled(NamedTuple):
    """`odds`, (N, *spatial): log(p_y / (1 - p_y)); `others`, (N, K, *spatial): log phat, and 0 at y."""

    odds: Tensor
    others: Tensor


def _decoupled(x: Tensor, labelled: Tensor, tau: float, limit: float) -> _Decoupled:
    """Odds and other classes from logits, held in a range whose sums do not overflow."""
    # Everything is measured from the largest other logit: from the largest of all, the differences between the
    # others would be lost beside a labelled class that is far above them.
    gone = torch.zeros_like(x, dtype=torch.bool).scatter(1, labelled, True)
    top = x.detach().masked_fill(gone, -torch.inf).amax(1, keepdim=True)
    z = ((x - top) / tau).clamp(-limit, limit)
    total = z.masked_fill(gone, -torch.inf).logsumexp(1, keepdim=True)
    odds = z.gather(1, labelled) - total
    # A zero on both sides: the labelled class takes no part, forwards or backwards.
    return _Decoupled(odds.squeeze(1), (z - total).scatter(1, labelled, 0.0))
