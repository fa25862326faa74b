"""Losses on channels turned into maps of probability over positions (CWD, ICCV 2021)."""

from __future__ import annotations

import torch
from torch import Tensor

from densekd.functional.backends import choose_backend
from densekd.functional.checks import (
    check_maps,
    check_mask,
    check_reduction,
    check_temperature,
    working_type,
)
from densekd.functional.derivatives import transformed
from densekd.functional.operator import definition, rows_operator


def channelwise_kl(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 4.0,
    mask: Tensor | None = None,
    reduction: str = "mean",
    backend: str = "auto",
) -> Tensor:
    r"""Channel-wise distillation: KL divergence between maps normalised over positions.

    With p = softmax_i(T[n,c,i] / tau) and q = softmax_i(S[n,c,i] / tau) over the positions i of one channel c of
    one image n:

        L = tau**2 / (N * C) * sum_{n,c,i} p * (log p - log q)        dL/dS = tau / (N * C) * (q - p)

    Sum over positions, mean over channels and images: no division by the number of positions. A constant
    added to a channel changes nothing, so this loss alone does not fix the bias between classes.

    Args:
        student: (N, C, *spatial), any float type and memory format.
        teacher: the same shape; gets no gradient.
        temperature: tau; the larger, the more even the maps.
        mask: bool (N, *spatial), True where a position counts, applied before the softmax. An image with
            nothing valid gives zero (that still back-propagates) and still counts in N.
        reduction: "mean" divides by N * C, masked or not; "sum" by nothing; "none" returns (N, C).
            All three carry tau**2.
        backend: "torch" is the plain definition, on any device; "blocked" is the row-blocked CPU operator, which
            needs less time and memory; "triton" are GPU kernels (see docs/kernels.md): float16, bfloat16 and float32
            maps on a CUDA device, the gradient kept in the student's type. "auto" takes "blocked" on the CPU,
            "triton" on CUDA for maps of 65,536 elements or more where it can run, else "torch". Under `torch.func`
            (`grad`, `jvp`, `vmap`, `hessian`) and forward-mode differentiation all of them are the plain definition
            in operations that torch derives, as often as asked.

    Returns:
        float32, or float64 where an input is float64. Finite for finite logits of any size: a row whose
        value would overflow is held at the largest number that no reduction overflows.

    Raises:
        ShapeError: shapes that differ (equal area is not enough), no spatial axis, a mask of another shape.
        DtypeError: integer maps, a mask that is not bool.
        ArgumentError: temperature outside 1e-6 to 1e4, unknown reduction or backend, a backend that cannot run on this
            device.
        SecondDerivativeError: when a second derivative is asked of a backward pass (`torch.func` has it).

    Source: Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021; the factor
    agrees with irfanICMLL/TorchDistiller, whose `softmax().log()` gives NaN for wide logits where this does
    not.

    >>> student = torch.tensor([[[0.0, 1.0, 2.0]]], requires_grad=True)
    >>> loss = channelwise_kl(student, torch.tensor([[[2.0, 1.0, 0.0]]]), temperature=1.0)
    >>> round(loss.item(), 4)
    1.1504
    """
    check_maps(student, teacher)
    tau = check_temperature(temperature)
    check_mask(mask, student)
    check_reduction(reduction)
    route = choose_backend(backend, student, teacher)
    if transformed(student):
        rows, _, _ = definition(student, teacher.detach(), mask, tau)
        return _reduce(rows, reduction)
    want_gradient = student.requires_grad and torch.is_grad_enabled()
    # The share of a row in the mean goes into its gradient as that is made: the backward pass has nothing to divide.
    share = 1.0 / (student.shape[0] * student.shape[1]) if reduction == "mean" else 1.0
    rows, _ = rows_operator(student, teacher.detach(), mask, tau, route, want_gradient, share)
    return rows if reduction == "none" else rows.sum()


def channelwise_mse(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 4.0,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Squared difference of maps normalised over positions: the MSE ablation of `channelwise_kl`.

        L = tau**2 / (N * C) * sum_{n,c,i} (softmax_i(S/tau) - softmax_i(T/tau))**2

    At most 2 * tau**2 per row and about 1/P of that for even maps: it needs a far larger weight than the KL.

    Args:
        student: (N, C, *spatial), any float type and memory format.
        teacher: the same shape; gets no gradient.
        temperature: tau.
        mask: bool (N, *spatial), as in `channelwise_kl`.
        reduction: "mean" divides by N * C, masked or not; "sum" by nothing; "none" returns (N, C).
            All three carry tau**2.

    Returns:
        float32, or float64 where an input is float64.

    Raises:
        ShapeError, DtypeError, ArgumentError: as `channelwise_kl`.

    Source: irfanICMLL/TorchDistiller, `CriterionCWD` with divergence "mse", which always uses tau = 1.

    >>> student = torch.tensor([[[0.0, 1.0, 2.0]]])
    >>> round(channelwise_mse(student, student.flip(2), temperature=1.0).item(), 4)
    0.6617
    """
    check_maps(student, teacher)
    tau = check_temperature(temperature)
    check_mask(mask, student)
    check_reduction(reduction)
    q = _position_softmax(student, student, teacher, mask, tau)
    p = _position_softmax(teacher.detach(), student, teacher, mask, tau)
    return _reduce(tau**2 * (q - p).square().sum(2), reduction)


def _position_softmax(x: Tensor, student: Tensor, teacher: Tensor, mask: Tensor | None, tau: float) -> Tensor:
    """Softmax over valid positions, (N, C, P), zero elsewhere and in images with nothing valid."""
    x = x.to(working_type(student, teacher)).flatten(2)
    if mask is None:
        return torch.softmax((x - x.detach().amax(2, keepdim=True)) / tau, 2)
    valid = mask.flatten(1)[:, None]
    some = valid.any(2, keepdim=True)
    # Zero first: whatever stands in a void position, NaN included, takes no part, neither here nor
    # backwards.
    x = torch.where(valid, x, 0.0)
    x = torch.where(valid | ~some, x, -torch.inf)
    x = torch.softmax((x - x.detach().amax(2, keepdim=True)) / tau, 2)
    return torch.where(valid, x, 0.0)


def _reduce(rows: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return rows
    # Divided before it is summed: the sum of huge values must not overflow where their mean does not.
    return rows.sum() if reduction == "sum" else (rows / rows.numel()).sum()
