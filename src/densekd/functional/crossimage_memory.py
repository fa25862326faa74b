"""Relations of pixels to a memory of other images' features (CIRKD, CVPR 2022)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from densekd.errors import ArgumentError, DtypeError, ShapeError
from densekd.functional.checks import (
    check_choice,
    check_dense,
    check_maps,
    check_mask,
    check_temperature,
    working_type,
)
from densekd.functional.crossimage import REDUCTIONS
from densekd.functional.relation import relation_kl, unit_vectors


def crossimage_memory_kl(
    student: Tensor,
    teacher: Tensor,
    memory: Tensor,
    *,
    temperature: float = 0.1,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Cross-image distillation with a memory: how each pixel resembles features kept from earlier images.

    With f the features at unit length over C and m_j the Q features of the memory at unit length, for every pixel i:
    q = softmax_j(f_S[i] . m_j / tau), p = softmax_j(f_T[i] . m_j / tau):

        L = 1 / (N * P) * sum_i KL(p || q)

    There is no tau**2, as in `crossimage_kl`.

    Args:
        student: (N, C, *spatial), brought to the teacher's channels by a projector, any float type and memory
            format; a position whose features are all zero resembles everything equally and gets no gradient.
        teacher: the same shape; gets no gradient.
        memory: (Q, C), features of the teacher; gets no gradient.
        temperature: tau.
        mask: bool (N, *spatial), True where a position counts. Nothing valid: a zero that still
            back-propagates.
        reduction: "mean" divides by the number of valid positions (N * P without a mask); "sum" by nothing. There
            is no "none".

    Returns:
        float32, or float64 where an input is float64.

    Time O(N * P * Q * C), in blocks of rows with the gradient made in the same pass: memory is O(N * P * C).

    Raises:
        ShapeError: shapes that differ, no spatial axis, a memory that is not (Q, C) or empty, a mask of another
            shape.
        DtypeError: integer tensors, a mask that is not bool.
        ArgumentError: temperature outside 1e-6 to 1e4, unknown reduction, a memory on another device.
        SecondDerivativeError: when a second derivative is asked of a backward pass (`torch.func` has it, by the plain
            definition).

    Source: Yang et al., "Cross-Image Relational Knowledge Distillation for Semantic Segmentation", CVPR 2022; the
    factor is that of winycg/CIRKD with its second temperature at 1.

    >>> memory = torch.eye(3)  # three features kept from earlier images
    >>> teacher = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)  # like the first of them
    >>> student = torch.tensor([0.0, 1.0, 0.0]).view(1, 3, 1, 1)  # like the second
    >>> round(crossimage_memory_kl(student, teacher, memory, temperature=1.0).item(), 4)
    0.3642
    >>> round((torch.e - 1) / (torch.e + 2), 4)
    0.3642
    """
    check_maps(student, teacher)
    _check_memory(memory, student)
    tau = check_temperature(temperature)
    check_mask(mask, student)
    check_choice("reduction", reduction, REDUCTIONS)
    working = torch.promote_types(working_type(student, teacher), memory.dtype)
    s, t = (_valid_rows(x, mask).to(working) for x in (student, teacher.detach()))
    columns = unit_vectors(memory.detach().to(working))
    weights = s.new_full((len(s), 1), 1.0 / max(len(s), 1) if reduction == "mean" else 1.0)
    rows = unit_vectors(s)
    return relation_kl(rows, columns, unit_vectors(t), columns, weights, None, tau)


def _valid_rows(x: Tensor, mask: Tensor | None) -> Tensor:
    """(valid positions, C)."""
    rows = x.flatten(2).transpose(1, 2)
    return rows.flatten(0, 1) if mask is None else rows[mask.flatten(1)]


def _check_memory(memory: Any, like: Tensor) -> None:
    if not isinstance(memory, Tensor) or not memory.is_floating_point():
        came = str(memory.dtype) if isinstance(memory, Tensor) else type(memory).__name__
        raise DtypeError(f"memory: expected a floating-point tensor (Q, C) of the teacher's features, got {came}")
    check_dense("memory", memory)
    if memory.ndim != 2 or len(memory) == 0 or memory.shape[1] != like.shape[1]:
        raise ShapeError(
            f"memory: expected (Q, {like.shape[1]}), at least one feature of as many channels as the maps, got "
            f"{tuple(memory.shape)}"
        )
    if memory.device != like.device:
        raise ArgumentError(f"memory is on {memory.device}, the maps on {like.device}; move it with .to(device)")
