"""Squared difference of the maps themselves (FitNet, MIMIC)."""

from __future__ import annotations

import torch
from torch import Tensor

from densekd.functional.checks import check_maps, check_mask, check_reduction, reduce_positions, working_type


def feature_mse(student: Tensor, teacher: Tensor, *, mask: Tensor | None = None, reduction: str = "mean") -> Tensor:
    r"""Feature mimicking: mean squared difference of two maps, without any normalisation.

        L = 1 / (N * C * P) * sum_{n,c,i} (S - T)**2

    Args:
        student: (N, C, *spatial), any float type and memory format; where the channels differ, a 1x1
            convolution on the student comes first (the Distiller makes it).
        teacher: the same shape; gets no gradient.
        mask: bool (N, *spatial), True where a position counts. Nothing valid: a zero that still
            back-propagates.
        reduction: "mean" divides by C times the number of valid positions (N * C * P without a mask);
            "sum" by nothing; "none" returns (N, C, *spatial), zero in void positions.

    Returns:
        float32, or float64 where an input is float64.

    Raises:
        ShapeError: shapes that differ, no spatial axis, a mask of another shape.
        DtypeError: integer maps, a mask that is not bool.
        ArgumentError: unknown reduction.

    Source: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015; the mean over all elements is
    that of winycg/CIRKD. There is no KL without normalisation: raw maps are no distributions.

    >>> teacher = torch.zeros(2, 4, 3, 3)
    >>> feature_mse(teacher + 0.5, teacher).item()
    0.25
    >>> feature_mse(teacher + 0.5, teacher, reduction="sum").item()  # 2 * 4 * 3 * 3 values
    18.0
    """
    check_maps(student, teacher)
    check_mask(mask, student)
    check_reduction(reduction)
    working = working_type(student, teacher)
    difference = student.to(working) - teacher.detach().to(working)
    if mask is not None:
        difference = torch.where(mask[:, None], difference, 0.0)
    squares = difference.square()
    if reduction == "none":
        return squares
    pixels = squares.sum(1) if reduction == "sum" else squares.mean(1)
    return reduce_positions(pixels, mask, reduction)
