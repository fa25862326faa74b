"""Correlations of class probabilities within every pixel and within every class (DIST)."""

from __future__ import annotations

import torch
from torch import Tensor

from densekd.functional.checks import (
    check_choice,
    check_factor,
    check_flag,
    check_maps,
    check_mask,
    check_temperature,
    reduce_positions,
)
from densekd.functional.correlation import correlation_distance
from densekd.functional.logits import bounded, check_classes, standardized, working_map

# A class whose probabilities vary this much less than those of the class that varies most has nothing to teach.
_FLOOR = 1e-6


def dist_pearson(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 1.0,
    beta: float = 1.0,
    gamma: float = 1.0,
    standardize: bool = False,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""DIST: Pearson correlation instead of equality, between classes of a pixel and between pixels of a class.

    With p = softmax_c(T/tau), q = softmax_c(S/tau) over the K channels, and r the Pearson correlation, r[n,i] over the
    K classes of one position and r[c] over all N * P positions of one class:

        L = beta / (N * P) * sum_{n,i} (1 - r[n,i])  +  gamma / K * sum_c (1 - r[c])

    Both parts lie between 0 and 2. There is no tau**2: a correlation does not shrink as the distributions become even,
    and neither does its gradient. Two classes: r[n,i] is 1 or -1 and has no gradient, so that only the part with
    gamma teaches.

    Probabilities that are constant but for rounding have no correlation: a position or a class that is constant in the
    teacher counts 0, one that is constant in the student alone counts 1, neither with a gradient. A class of the
    teacher is constant, too, where it varies less than 1e-6 of the class that varies most.

    Args:
        student: (N, K, *spatial) class logits, K >= 2, any float type and memory format.
        teacher: the same shape; gets no gradient.
        temperature: tau.
        beta: weight of the correlations between the classes of a position (inter-class), not negative.
        gamma: weight of the correlations between the positions of a class (intra-class), not negative.
        standardize: first standardise the logits of every pixel, as `pixelwise_kl` does.
        mask: bool (N, *spatial), True where a position counts. Nothing valid: a zero that still back-propagates.
        reduction: "mean" divides the first part by the number of valid positions (N * P without a mask) and the second
            by K; "sum" divides neither. There is no "none": the parts have different shapes.

    Returns:
        float32, or float64 where an input is float64.

    Raises:
        ShapeError: shapes that differ, no spatial axis, a mask of another shape, one channel.
        DtypeError: integer maps, a mask or `standardize` that is not bool, a factor that is no number.
        ArgumentError: temperature outside 1e-6 to 1e4, a negative factor, unknown reduction.

    Source: Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022. The second part is a
    statistic of the whole batch of one process: it depends on which images share a batch. hunto/DIST_KD takes void
    positions in, and adds 1e-8 to the product of the lengths, which float16 rounds to 0; open-mmlab/mmrazor
    multiplies by tau**2.

    >>> _ = torch.manual_seed(0)
    >>> teacher = torch.randn(2, 5, 4, 4)
    >>> round(dist_pearson(teacher, teacher).abs().item(), 4)
    0.0
    >>> bool(dist_pearson(teacher, teacher) < dist_pearson(0.5 * teacher, teacher) < dist_pearson(-teacher, teacher))
    True
    """
    check_maps(student, teacher)
    check_classes(student, "the correlations of dist", "use channelwise_kl or pearson_distance")
    check_mask(mask, student)
    check_choice("reduction", reduction, ("mean", "sum"))
    tau = check_temperature(temperature)
    beta, gamma = check_factor("beta", beta), check_factor("gamma", gamma)
    check_flag("standardize", standardize)
    q, p = (_probabilities(x, student, teacher, mask, tau, standardize) for x in (student, teacher.detach()))
    # Between two classes r is 1 or -1: what autograd would find there is rounding.
    pixels = correlation_distance(q.detach() if q.shape[1] == 2 else q, p, (1,)).squeeze(1)
    positions = (0, *range(2, student.ndim))
    valid = None if mask is None else mask[:, None]
    classes = correlation_distance(q, p, positions, valid=valid, floors=(0.0, _FLOOR))
    inter = reduce_positions(pixels, mask, reduction)
    intra = classes.sum() if reduction == "sum" else classes.mean()
    return beta * inter + gamma * intra


def _probabilities(
    x: Tensor, student: Tensor, teacher: Tensor, mask: Tensor | None, tau: float, standardize: bool
) -> Tensor:
    x = working_map(x, student, teacher, mask)
    return torch.softmax(bounded(standardized(x) if standardize else x, tau), 1)
