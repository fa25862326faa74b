"""Squared difference of the channels' means over positions (CD: channel distillation)."""

from __future__ import annotations

import torch
from torch import Tensor

from densekd.functional.checks import check_maps, check_mask, check_reduction, working_type


def channelmean_mse(student: Tensor, teacher: Tensor, *, mask: Tensor | None = None, reduction: str = "mean") -> Tensor:
    r"""Channel distillation: squared difference of what global average pooling leaves of every channel.

        L = 1 / (N * C) * sum_{n,c} (mean_i S - mean_i T)**2        dL/dS = 2 / (N * C * P) * (mean_i S - mean_i T)

    How strong each channel is in an image, not where: unlike `channelwise_kl`, which keeps the map and forgets
    the strength.

    Args:
        student: (N, C, *spatial), any float type and memory format; where the channels differ, a 1x1
            convolution on the student comes first (the Distiller makes it).
        teacher: the same shape; gets no gradient.
        mask: bool (N, *spatial), True where a position counts: the means are over those. An image with nothing valid
            gives zero (that still back-propagates) and still counts in N.
        reduction: "mean" divides by N * C, masked or not; "sum" by nothing; "none" returns (N, C).

    Returns:
        float32, or float64 where an input is float64.

    Raises:
        ShapeError: shapes that differ, no spatial axis, a mask of another shape.
        DtypeError: integer maps, a mask that is not bool.
        ArgumentError: unknown reduction.

    Source: Zhou et al., "Channel Distillation: Channel-Wise Attention for Knowledge Distillation", 2020
    (zhouzaida/channel-distillation), which puts convolution, batch normalisation and ReLU on the student; here a
    convolution alone, and only where the channels differ. The weight there falls by a tenth every 30 epochs.

    >>> teacher = torch.arange(8.0).view(1, 2, 2, 2)
    >>> channelmean_mse(teacher.flip(2, 3), teacher).item()  # how strong, not where
    0.0
    >>> channelmean_mse(teacher + 1.0, teacher).item()
    1.0
    """
    check_maps(student, teacher)
    check_mask(mask, student)
    check_reduction(reduction)
    working = working_type(student, teacher)
    own, its = (_means(x, mask, working) for x in (student, teacher.detach()))
    rows = (own - its).square()
    if reduction == "none":
        return rows
    return rows.sum() if reduction == "sum" else rows.mean()


def _means(x: Tensor, mask: Tensor | None, working: torch.dtype) -> Tensor:
    """Means over positions, (N, C)."""
    x = x.flatten(2)
    if mask is None:
        return x.mean(2, dtype=working)
    valid = mask.flatten(1)[:, None]
    # Whatever stands in a void position, NaN included, takes no part, neither here nor backwards.
    return torch.where(valid, x, 0.0).sum(2, dtype=working) / valid.sum(2).clamp(min=1)
