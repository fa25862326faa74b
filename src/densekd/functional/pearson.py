"""Correlation of the channels of two maps (PKD)."""

from __future__ import annotations

from torch import Tensor

from densekd.functional.checks import check_maps, check_mask, check_reduction
from densekd.functional.correlation import correlation_distance
from densekd.functional.logits import working_map

# A channel that varies this much less than the one that varies most is dead: brought to unit size it would be noise.
_FLOOR = 1e-6


def pearson_distance(
    student: Tensor, teacher: Tensor, *, mask: Tensor | None = None, reduction: str = "mean"
) -> Tensor:
    r"""PKD: the channels of both maps compared by their Pearson correlation, whatever their offset and size.

    With r[c] the correlation of channel c over all N * P positions of the batch:

        L = 1 / C * sum_c (1 - r[c])  =  1 / (2 * N * C * P) * sum_{n,c,i} (s - t)**2

    s and t: the maps with mean 0 and (biased) standard deviation 1 in every channel. Between 0 and 2.

    Constant channels have no correlation: one that is constant in the teacher counts 0, one that is constant in the
    student alone counts 1, neither with a gradient. Constant is also what varies less than 1e-6 of the channel
    that varies most in the same map: brought to unit size it would be noise.

    Args:
        student: (N, C, *spatial), any float type and memory format; where the channels differ, a 1x1 convolution on
            the student comes first (the Distiller makes it).
        teacher: the same shape; gets no gradient.
        mask: bool (N, *spatial), True where a position counts, in means, deviations and the sum. Nothing valid: a zero
            that still back-propagates.
        reduction: "mean" divides by C; "sum" by nothing; "none" returns (C,).

    Returns:
        float32, or float64 where an input is float64.

    Raises:
        ShapeError: shapes that differ, no spatial axis, a mask of another shape.
        DtypeError: integer maps, a mask that is not bool.
        ArgumentError: unknown reduction.

    Source: Cao et al., "PKD: General Distillation Framework for Object Detectors via Pearson Correlation Coefficient",
    NeurIPS 2022. open-mmlab/mmrazor takes the unbiased standard deviation, (n - 1) / n times this for n = N * P, and
    adds 1e-6 to it. Means and deviations are those of the batch of one process: the value depends on which images
    share a batch.

    >>> teacher = torch.arange(8.0).view(1, 2, 2, 2)
    >>> round(pearson_distance(3.0 * teacher + 7.0, teacher).abs().item(), 4)  # offset and size do not matter
    0.0
    >>> round(pearson_distance(-teacher, teacher).item(), 4)
    2.0
    """
    check_maps(student, teacher)
    check_mask(mask, student)
    check_reduction(reduction)
    s, t = (working_map(x, student, teacher, mask) for x in (student, teacher.detach()))
    valid = None if mask is None else mask[:, None]
    channels = correlation_distance(s, t, (0, *range(2, s.ndim)), valid=valid, floors=(_FLOOR, _FLOOR)).flatten()
    if reduction == "none":
        return channels
    return channels.sum() if reduction == "sum" else channels.mean()
