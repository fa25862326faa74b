"""Losses on pixels turned into probabilities over classes (PI: pixel-wise knowledge distillation)."""

from __future__ import annotations

import torch
from torch import Tensor

from densekd.functional.backends import choose_backend
from densekd.functional.checks import (
    check_flag,
    check_maps,
    check_mask,
    check_reduction,
    check_temperature,
    reduce_positions,
)
from densekd.functional.derivatives import transformed
from densekd.functional.logits import bounded, check_classes, standardized, working_map
from densekd.functional.pixelwise_operator import pixels_operator


def pixelwise_kl(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 1.0,
    standardize: bool = False,
    mask: Tensor | None = None,
    reduction: str = "mean",
    backend: str = "auto",
) -> Tensor:
    r"""Pixel-wise distillation: KL divergence between the class distributions of every pixel.

    With p = softmax_c(T/tau) and q = softmax_c(S/tau) over the C channels of one position i of one image n:

        L = tau**2 / (N * P) * sum_{n,i,c} p * (log p - log q)        dL/dS = tau / (N * P) * (q - p)

    Args:
        student: (N, C, *spatial) class logits, C >= 2, any float type and memory format.
        teacher: the same shape; gets no gradient.
        temperature: tau.
        standardize: first bring the logits of every pixel to mean 0 and standard deviation 1 over the channels,
            z = (x - mean_c x) / (std_c x + 1e-7) with the unbiased std, in both maps: shapes are compared, sizes
            are not (Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024, which takes tau = 2).
            A pixel whose logits are all equal but for rounding becomes zeros and gets no gradient.
        mask: bool (N, *spatial), True where a position counts. Nothing valid: a zero that still
            back-propagates.
        reduction: "mean" divides by the number of valid positions (N * P without a mask);
            "sum" by nothing; "none" returns (N, *spatial), zero in void positions. All three carry tau**2.
        backend: "torch" is the plain definition, on any device; "blocked" runs on the CPU in blocks of positions and
            makes the gradient in the forward pass, which needs less time and memory; "triton" are GPU kernels that do
            the same: float16, bfloat16 and float32 maps as they lie, without a copy. `standardize` is plain torch in
            all. "auto" takes "blocked" on the CPU, and "triton" on CUDA for maps of 65,536 elements or more where it
            can run, else "torch". Under `torch.func` and forward-mode differentiation all are the plain definition.

    Returns:
        float32, or float64 where an input is float64.

    Raises:
        ShapeError: shapes that differ, no spatial axis, a mask of another shape, one channel (its softmax
            is 1 whatever the logit, so the loss would be zero for every input).
        DtypeError: integer or sparse maps, a mask or `standardize` that is not bool.
        ArgumentError: temperature outside 1e-6 to 1e4, unknown reduction or backend, a backend that cannot run on this
            device.
        SecondDerivativeError: when a second derivative is asked of a backward pass of "blocked" or "triton"
            ("torch" and `torch.func` have it).

    Source: Liu et al., "Structured Knowledge Distillation", CVPR 2019. Public codes differ in scale: SKD
    sums a cross entropy over the images (N times this), IFVD and TorchDistiller divide by C too and leave
    tau**2 out.

    >>> student = torch.tensor([2.0, 0.0, 0.0]).view(1, 3, 1, 1)  # one pixel, three classes
    >>> teacher = torch.tensor([0.0, 2.0, 0.0]).view(1, 3, 1, 1)
    >>> round(pixelwise_kl(student, teacher).item(), 4)
    1.361
    >>> pixelwise_kl(student, teacher, mask=torch.tensor([[[False]]])).item()  # the pixel is void
    0.0
    """
    tau = _check(student, teacher, temperature, mask, reduction)
    route = choose_backend(backend, student, teacher)
    s, t = student, teacher.detach()
    if check_flag("standardize", standardize):
        s, t = (standardized(working_map(x, student, teacher, mask)) for x in (s, t))
    if route != "torch" and not transformed(student):
        want_gradient = s.requires_grad and torch.is_grad_enabled()
        pixels, _ = pixels_operator(s, t, mask, tau, route == "triton", want_gradient)
        return reduce_positions(pixels, mask, reduction)
    s, t = (working_map(x, student, teacher, mask) for x in (s, t))
    log_q, log_p = (torch.log_softmax(bounded(x, tau), 1) for x in (s, t))
    pixels = tau**2 * (log_p.exp() * (log_p - log_q)).sum(1)
    return reduce_positions(pixels, mask, reduction)


def pixelwise_mse(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Squared difference of the class distributions of every pixel: the MSE ablation of `pixelwise_kl`.

        L = tau**2 / (N * P) * sum_{n,i,c} (softmax_c(S/tau) - softmax_c(T/tau))**2

    Args:
        student: (N, C, *spatial) class logits, C >= 2, any float type and memory format.
        teacher: the same shape; gets no gradient.
        temperature: tau.
        mask: bool (N, *spatial), True where a position counts. Nothing valid: a zero that still back-propagates.
        reduction: "mean" divides by the number of valid positions (N * P without a mask); "sum" by nothing; "none"
            returns (N, *spatial), zero in void positions. All three carry tau**2.

    Returns:
        float32, or float64 where an input is float64.

    Raises:
        ShapeError, DtypeError, ArgumentError: as `pixelwise_kl`.

    >>> student = torch.tensor([2.0, 0.0, 0.0]).view(1, 3, 1, 1)
    >>> round(pixelwise_mse(student, student.roll(1, dims=1)).item(), 4)
    0.9261
    """
    tau = _check(student, teacher, temperature, mask, reduction)
    maps = (working_map(x, student, teacher, mask) for x in (student, teacher.detach()))
    q, p = (torch.softmax(bounded(x, tau), 1) for x in maps)
    return reduce_positions(tau**2 * (q - p).square().sum(1), mask, reduction)


def _check(student: Tensor, teacher: Tensor, temperature: float, mask: Tensor | None, reduction: str) -> float:
    check_maps(student, teacher)
    check_classes(student, "pixelwise losses", "use channelwise_kl or feature_mse")
    check_mask(mask, student)
    check_reduction(reduction)
    return check_temperature(temperature)
