"""The teacher's map generated from a part of the student's (MGD)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from densekd.errors import ArgumentError, DtypeError, ShapeError
from densekd.functional.checks import check_maps, check_mask, check_reduction
from densekd.functional.feature import feature_mse


def masked_mse(
    student: Tensor,
    teacher: Tensor,
    *,
    visible: Tensor,
    generate: Callable[[Tensor], Tensor],
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""MGD: most positions of the student's map are hidden, and a small network rebuilds the teacher's from the rest.

    With m = 1 where a position is visible and 0 where it is hidden, for all channels alike, and a network G:

        L = 1 / (N * C * P) * sum_{n,c,i} ( G(m * S) - T )**2

    All positions are compared, hidden ones too. What is visible is not scaled up for what is hidden.

    Args:
        student: (N, C, *spatial), any float type and memory format; where the channels differ, a 1x1 convolution on
            the student comes first (the Distiller makes it).
        teacher: the same shape; gets no gradient.
        visible: bool (N, *spatial), True where G sees the student's map; drawn by `draw_visible`.
        generate: G, from a map of the student's shape to one of the teacher's. It computes in its own type; the
            difference is taken in float32 or better.
        mask: bool (N, *spatial), True where a position counts. Void positions are hidden from G and not compared.
            Nothing valid: a zero that still back-propagates.
        reduction: "mean" divides by C times the number of valid positions (N * C * P without a mask), hidden or not;
            "sum" by nothing; "none" returns (N, C, *spatial), zero in void positions.

    Returns:
        float32, or float64 where an input is float64.

    Raises:
        ShapeError: shapes that differ, no spatial axis, `mask` or `visible` of another shape, a G that gives one.
        DtypeError: integer maps, a `mask` or `visible` that is not bool.
        ArgumentError: unknown reduction.

    Source: Yang et al., "Masked Generative Distillation", ECCV 2022. yzd-v/MGD sums over channels and positions and
    divides by N: C * P times this.

    >>> teacher = torch.ones(1, 4, 2, 2)
    >>> visible = torch.tensor([[[True, False], [False, False]]])
    >>> masked_mse(teacher, teacher, visible=visible, generate=torch.nn.Identity()).item()  # 3 of 4 are not rebuilt
    0.75
    """
    check_maps(student, teacher)
    check_mask(mask, student)
    if visible is None:
        raise DtypeError("visible: expected a bool tensor (N, *spatial), got None; draw_visible draws one")
    check_mask(visible, student, "visible")
    check_reduction(reduction)
    seen = visible if mask is None else visible & mask
    generated = generate(torch.where(seen[:, None], student, 0.0))
    if generated.shape != teacher.shape:
        raise ShapeError(
            f"generate: expected a map of the teacher's shape {tuple(teacher.shape)}, got {tuple(generated.shape)}; a "
            "3x3 convolution keeps the size with padding=1"
        )
    return feature_mse(generated, teacher, mask=mask, reduction=reduction)


def draw_visible(like: Tensor, mask_ratio: float, generator: torch.Generator | None = None) -> Tensor:
    """Visible positions (N, *spatial) of a map: each by itself, hidden with probability `mask_ratio`.

    Drawn on the map's device from `generator`, which lives there; without one from that device's global generator.
    """
    return torch.rand(like.shape[0], *like.shape[2:], device=like.device, generator=generator) >= mask_ratio


def check_mask_ratio(mask_ratio: float) -> float:
    """A number from 0, nothing hidden, to below 1."""
    if isinstance(mask_ratio, bool) or not isinstance(mask_ratio, (int, float)):
        raise DtypeError(f"mask_ratio: expected a number, got {type(mask_ratio).__name__}; for example 0.75")
    if not 0.0 <= mask_ratio < 1.0:
        raise ArgumentError(
            f"mask_ratio: expected the part of the positions to hide, from 0 to below 1, got {mask_ratio}; for "
            "example 0.75"
        )
    return float(mask_ratio)
