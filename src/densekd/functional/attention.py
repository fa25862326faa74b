"""Squared difference of attention maps (AT: attention transfer)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from densekd.functional.checks import check_maps, check_mask, check_reduction, working_type
from densekd.functional.derivatives import features, in_range, transformed
from densekd.functional.image import channel_dot, first_order, matrix, range_scale


def attention_mse(student: Tensor, teacher: Tensor, *, mask: Tensor | None = None, reduction: str = "mean") -> Tensor:
    r"""Attention transfer: where a map is strong, summed over its channels, compared as unit vectors.

    With the attention map e_i = sum_c f_{c,i}**2 of one image and a = e / ||e||_2 over its positions i:

        L = 1 / N * sum_{n,i} (a_S - a_T)**2

    Sum over positions: between 0 and 2 per image (it is 2 - 2 * cos of the two maps), whatever their size. The size
    of the features does not matter, only how it is spread over the image.

    Args:
        student: (N, Cs, *spatial), any float type and memory format.
        teacher: (N, Ct, *spatial); the channels may differ; gets no gradient.
        mask: bool (N, *spatial), True where a position counts; applied before the norm. An image with nothing valid
            gives zero (that still back-propagates) and still counts in N. So do two maps that are zero everywhere; a
            zero map against another gives 1, and no gradient.
        reduction: "mean" divides by N, masked or not; "sum" by nothing; "none" returns (N,).

    Returns:
        float32, or float64 where an input is float64. Squares are summed in that type: float16 maps do not overflow.

    Raises:
        ShapeError: batch or spatial sizes that differ, no spatial axis, a mask of another shape.
        DtypeError: integer maps, a mask that is not bool.
        ArgumentError: unknown reduction.
        SecondDerivativeError: when a second derivative is asked of a backward pass (`torch.func` has it, by the plain
            definition).

    Source: Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017
    (szagoruyko/attention-transfer), which takes the mean over positions too: the value falls as 1/P, and its weight
    (1000; 10000 in winycg/CIRKD) belongs to one size of map. A weight w there is w / P here.

    >>> teacher = torch.zeros(1, 8, 2, 2)
    >>> teacher[..., 0, 0] = 1.0  # strong in one corner
    >>> student = torch.zeros(1, 3, 2, 2)
    >>> student[..., 1, 1] = 9.0  # in the other one
    >>> attention_mse(student, teacher).item()
    2.0
    >>> attention_mse(student.flip(2, 3), teacher).item()
    0.0
    """
    check_maps(student, teacher, same_channels=False)
    check_mask(mask, student)
    check_reduction(reduction)
    working = working_type(student, teacher)
    own, its = (_unit_rows(_energy(x, mask, working)) for x in (student, teacher.detach()))
    images = (own - its).square().sum(1)
    if reduction == "none":
        return images
    return images.sum() if reduction == "sum" else images.mean()


def _unit_rows(rows: Tensor) -> Tensor:
    """Rows (N, P), none negative, at length 1; zero rows stay zero."""
    # Lengths do not depend on a constant factor: with the largest entry at 1 no square overflows or vanishes.
    largest = rows.detach().amax(1, keepdim=True)
    rows = rows / torch.where(largest > 0, largest, 1.0)
    return rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp(min=1.0)


def _energy(x: Tensor, mask: Tensor | None, working: torch.dtype) -> Tensor:
    if transformed(x):
        return in_range(features(x, mask, working)).square().sum(1)
    energy: Tensor = _Energy.apply(x, mask, working)
    return energy


class _Energy(torch.autograd.Function):
    """Sum of squares over channels, (N, P), up to a factor of each image that keeps it in range."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor | None, working: torch.dtype) -> Tensor:
        energies, scales = [], []
        for n, image in enumerate(x):
            flat = matrix(image, None if mask is None else mask[n], working)
            scales.append(range_scale(flat))
            scaled = flat / scales[n]
            energies.append(channel_dot(scaled, scaled))
        ctx.save_for_backward(x, mask, torch.stack(scales))
        ctx.working = working
        return torch.stack(energies)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        x, mask, scales = ctx.saved_tensors
        with torch.no_grad():
            gradient = torch.empty_like(x)
            for n, image in enumerate(x):
                flat = matrix(image, None if mask is None else mask[n], ctx.working)
                slope = flat / scales[n] * (2.0 * upstream[n] / scales[n])
                gradient[n].copy_(slope.view(image.shape))
        return first_order("attention_mse", gradient, x), None, None
