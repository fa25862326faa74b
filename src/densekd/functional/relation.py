"""The operator behind the cross-image losses: similarities of rows to columns, compared as distributions.

Rows and columns are unit vectors. Only a block of rows by all columns exists at a time, never the whole map of
similarities; the gradient is made in the same pass. One node in an autograd graph and in a compiled one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from densekd.errors import SecondDerivativeError
from densekd.functional.derivatives import transformed

# Similarities in one block: on a CPU its few maps stay in the cache; elsewhere launches should be few.
_CPU_BLOCK, _BLOCK = 2**20, 2**25


def unit_vectors(rows: Tensor) -> Tensor:
    """Rows (R, C) at length 1; a zero row stays zero and gets no gradient."""
    # Lengths do not depend on a constant factor: with the largest entry at 1 no square overflows or vanishes.
    largest = rows.detach().abs().amax(1, keepdim=True)
    scaled = rows / torch.where(largest > 0, largest, 1.0)
    squares = scaled.square().sum(1, keepdim=True)
    # The root has no derivative at zero: zero rows take another value there, and are zeroed after it.
    return torch.where(squares > 0, scaled / torch.where(squares > 0, squares, 1.0).sqrt(), 0.0)


def blocked_relation(
    student_rows: Tensor,
    student_columns: Tensor,
    teacher_rows: Tensor,
    teacher_columns: Tensor,
    weights: Tensor,
    valid: Tensor | None,
    temperature: float,
    want_rows: bool,
    want_columns: bool,
    block: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted sum of the KLs between rows of similarities, and its gradient.

        A_S = student_rows @ student_columns.T / temperature, A_T likewise; columns in G groups of equal size
        L = sum_{r,g} weights[r,g] * KL(softmax over group g of A_T[r] || softmax over group g of A_S[r])

    Args:
        student_rows, student_columns: (R, Cs) and (Q, Cs), Q = G * size, float32 or float64.
        teacher_rows, teacher_columns: (R, Ct) and (Q, Ct).
        weights: (R, G).
        valid: bool (Q,), False for columns outside the softmax; None: all are in it. A group without a valid
            column must have weight 0.
        temperature: positive.
        want_rows, want_columns: whether the gradients of `student_rows` and `student_columns` are made (else empty).
        block: similarities held at a time; default by the device.

    Returns:
        L, and its gradients in the shapes of `student_rows` and `student_columns`.
    """
    rows, groups = weights.shape
    columns = len(student_columns)
    size = (block or (_CPU_BLOCK if student_rows.device.type == "cpu" else _BLOCK)) // max(columns, 1)
    # A void column is so far below that its probability is an exact zero, and the gap of two such columns is no NaN.
    void = torch.finfo(student_rows.dtype).min / 4
    value = student_rows.new_zeros(())
    by_rows = torch.empty_like(student_rows) if want_rows else student_rows.new_empty(0)
    by_columns = torch.zeros_like(student_columns) if want_columns else student_rows.new_empty(0)
    for start in range(0, rows, max(size, 1)):
        part = slice(start, min(start + max(size, 1), rows))
        log_q, log_p = (
            _log_softmax((of_rows[part] @ of_columns.T).div_(temperature), valid, groups, void)
            for of_rows, of_columns in ((student_rows, student_columns), (teacher_rows, teacher_columns))
        )
        p, slope = log_p.exp(), log_q.exp()
        slope -= p  # q - p; its sum over a group is zero but for rounding, which it cancels in the value
        divergence = (p.mul_(log_p.sub_(log_q)).add_(slope)).sum(2)
        value += (weights[part] * divergence).sum()
        if want_rows or want_columns:
            slope = slope.mul_(weights[part, :, None] / temperature).flatten(1)
        if want_rows:
            by_rows[part] = slope @ student_columns
        if want_columns:
            by_columns.addmm_(slope.T, student_rows[part])
    return value.clamp(min=0.0), by_rows, by_columns


def _log_softmax(similarities: Tensor, valid: Tensor | None, groups: int, void: float) -> Tensor:
    """(rows, groups, size)."""
    if valid is not None:
        similarities.masked_fill_(~valid, void)
    return torch.log_softmax(similarities.view(len(similarities), groups, -1), 2)


def relation_kl(
    student_rows: Tensor,
    student_columns: Tensor,
    teacher_rows: Tensor,
    teacher_columns: Tensor,
    weights: Tensor,
    valid: Tensor | None,
    temperature: float,
) -> Tensor:
    """L of `blocked_relation`, with the gradients that are wanted; under `torch.func` by its plain definition."""
    rows_wanted, columns_wanted = (x.requires_grad and torch.is_grad_enabled() for x in (student_rows, student_columns))
    if not transformed(student_rows):
        value: Tensor = relation_operator(
            student_rows,
            student_columns,
            teacher_rows,
            teacher_columns,
            weights,
            valid,
            temperature,
            rows_wanted,
            columns_wanted,
        )[0]
        return value
    void = torch.finfo(student_rows.dtype).min / 4
    logarithms = []
    with torch.autocast(student_rows.device.type, enabled=False):
        for of_rows, of_columns in ((student_rows, student_columns), (teacher_rows, teacher_columns)):
            similarities = of_rows @ of_columns.T / temperature
            if valid is not None:
                similarities = torch.where(valid, similarities, void)
            logarithms.append(torch.log_softmax(similarities.reshape(*weights.shape, -1), 2))
    log_q, log_p = logarithms
    return (weights * (log_p.exp() * (log_p - log_q)).sum(2)).sum()


torch.library.define(
    "densekd::relation_kl",
    "(Tensor student_rows, Tensor student_columns, Tensor teacher_rows, Tensor teacher_columns, Tensor weights,"
    " Tensor? valid, float temperature, bool want_rows, bool want_columns) -> (Tensor, Tensor, Tensor)",
)
torch.library.define("densekd::relation_kl_backward", "(Tensor gradient, Tensor upstream) -> Tensor")
#: arguments and results of `blocked_relation`, without `block`
relation_operator = torch.ops.densekd.relation_kl.default
_scale_operator = torch.ops.densekd.relation_kl_backward.default


def _relation(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    with torch.autocast(arguments[0].device.type, enabled=False):
        return blocked_relation(*arguments)


def _relation_fake(
    student_rows: Tensor,
    student_columns: Tensor,
    teacher_rows: Tensor,
    teacher_columns: Tensor,
    weights: Tensor,
    valid: Tensor | None,
    temperature: float,
    want_rows: bool,
    want_columns: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    gradients = (
        torch.empty_like(of) if wanted else student_rows.new_empty(0)
        for of, wanted in ((student_rows, want_rows), (student_columns, want_columns))
    )
    return student_rows.new_empty(()), *gradients  # type: ignore[return-value]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1], output[2])
    ctx.wanted = inputs[7:9]


def _backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if upstream is None:
        return (None,) * 9
    found = (
        _scale_operator(gradient, upstream) if wanted else None
        for gradient, wanted in zip(ctx.saved_tensors, ctx.wanted, strict=True)
    )
    return *found, None, None, None, None, None, None, None


def _scale(gradient: Tensor, upstream: Tensor) -> Tensor:
    return gradient * upstream


def _scale_fake(gradient: Tensor, upstream: Tensor) -> Tensor:
    return torch.empty_like(gradient)


def _scale_backward(ctx: Any, upstream: Tensor) -> tuple[None, None]:
    raise SecondDerivativeError(
        "the cross-image losses have no second derivative: their gradient is made in the forward pass"
    )


torch.library.impl("densekd::relation_kl", "CompositeExplicitAutograd", _relation)
torch.library.impl("densekd::relation_kl_backward", "CompositeExplicitAutograd", _scale)
torch.library.register_fake("densekd::relation_kl", _relation_fake)
torch.library.register_fake("densekd::relation_kl_backward", _scale_fake)
torch.library.register_autograd("densekd::relation_kl", _backward, setup_context=_setup)
torch.library.register_autograd("densekd::relation_kl_backward", _scale_backward)
