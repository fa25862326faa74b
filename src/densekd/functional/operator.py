"""The custom operator behind `channelwise_kl`: one node in an autograd graph and in a compiled one.

It returns the rows' values and, in the same pass, their gradient; the backward pass multiplies that by what
comes from above: in place when autograd is about to drop it, else into a fresh tensor, so that a second backward
through a retained graph is right.

Three routes: "torch", the plain definition; "blocked" on the CPU; "triton" on a GPU. The first two keep the gradient in
the working type. The third keeps it in the student's, where it ends anyway: half the memory and traffic for half
precision, at the cost of one more rounding of each entry (by at most half a unit in its last place).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from densekd.errors import SecondDerivativeError
from densekd.functional.checks import working_type
from densekd.functional.saved_gradient import is_last_use
from densekd.kernels.channelwise import blocked as blocked_rows
from densekd.kernels.channelwise_plan import gradient_scale


def whole_rows(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None,
    temperature: float,
    want_gradient: bool,
    factor: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The definition in plain torch, all rows at once, on any device.

    `factor * temperature**2 * KL` of every row, (N, C), and its gradient `factor * temperature * (q - p)` in the
    student's shape (empty where it is not wanted). Rows without a valid position give zero.
    """
    rows, q, p = definition(student, teacher, mask, temperature)
    rows = rows * factor
    if not want_gradient:
        return rows, student.new_empty(0, dtype=rows.dtype)
    slope = temperature * factor * (q - p)
    if mask is not None:
        valid = mask.flatten(1)[:, None]
        slope = torch.where(valid & valid.any(2, keepdim=True), slope, 0.0)
    gradient = torch.empty_like(student, dtype=rows.dtype)
    return rows, gradient.copy_(slope.view(student.shape))


def definition(
    student: Tensor, teacher: Tensor, mask: Tensor | None, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`temperature**2 * KL` of every row, (N, C), with q and p, (N, C, P), in operations that torch can derive.

    Rows without a valid position give zero.
    """
    working = working_type(student, teacher)
    s, t = student.to(working).flatten(2), teacher.to(working).flatten(2)
    valid = None if mask is None else mask.flatten(1)[:, None]  # (N, 1, P)
    u, v = _centred(s, valid, temperature), _centred(t, valid, temperature)
    q, p = u.exp(), v.exp()
    q_mass, p_mass = q.sum(2, keepdim=True), p.sum(2, keepdim=True)
    q, p = q / q_mass, p / p_mass
    # 0 * (-inf - x) is no number, its limit is zero. The sum of q - p is zero but for rounding, which it
    # cancels.
    gap = v - u + torch.log1p((q_mass - p_mass) / p_mass)  # log p - log q
    terms = torch.where(p > 0, p * gap, 0.0)
    rows = temperature**2 * (terms.sum(2) + (q - p).sum(2))
    # What rounding left below zero is taken off as a constant: a clamp would take the derivative with it.
    rows = rows - rows.detach().clamp(max=0.0)
    if valid is not None:
        rows = torch.where(valid.any(2), rows, 0.0)
    return _saturate(rows, s, valid), q, p


def _centred(x: Tensor, valid: Tensor | None, temperature: float) -> Tensor:
    """`(x - max x) / temperature` per row, -inf in void positions, zero in rows with nothing valid.

    The maximum is a constant: what is made of it does not depend on it.
    """
    if valid is not None:
        x = torch.where(valid, x, -torch.inf)
        x = torch.where(valid.any(2, keepdim=True), x, 0.0)
    return (x - x.detach().amax(2, keepdim=True)) / temperature


def _saturate(rows: Tensor, student: Tensor, valid: Tensor | None) -> Tensor:
    """Hold values of finite logits below what any reduction could overflow; infinite logits stay infinite."""
    limit = torch.finfo(rows.dtype).max / (2 * rows.numel())
    finite = student.isfinite() if valid is None else student.isfinite() | ~valid
    return torch.where((rows > limit) & finite.all(2), limit, rows)


def _rescued(
    student: Tensor, teacher: Tensor, mask: Tensor | None, temperature: float, want_gradient: bool, factor: float
) -> tuple[Tensor, Tensor]:
    """The blocked rows; those whose spread left the working type's range are done again in float64."""
    rows, gradient = blocked_rows(student, teacher, mask, temperature, want_gradient, factor)
    working = working_type(student, teacher)
    limit = torch.finfo(working).max / (2 * rows.numel())
    if bool((rows <= limit).all()):
        return rows.to(working), gradient
    for image, channel in (~(rows <= limit)).nonzero().tolist():
        at = (slice(image, image + 1), slice(channel, channel + 1))
        part = None if mask is None else mask[image : image + 1]
        value, slope = whole_rows(student[at].double(), teacher[at].double(), part, temperature, want_gradient, factor)
        rows[at] = torch.where(value.isfinite(), value.clamp(max=limit), value)
        if want_gradient:
            gradient[at] = slope.to(working)
    return rows.to(working), gradient


def _on_gpu(
    student: Tensor, teacher: Tensor, mask: Tensor | None, temperature: float, want_gradient: bool, factor: float
) -> tuple[Tensor, Tensor]:
    """Triton's rows; Triton is loaded here."""
    from densekd.kernels.triton_channelwise_host import triton_rows

    return triton_rows(student, teacher, mask, temperature, want_gradient, factor)


ROUTES: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "torch": whole_rows,
    "blocked": _rescued,
    "triton": _on_gpu,
}

# The plain registration: the decorator `torch.library.custom_op` imports the compiler (seconds) at the first call.
torch.library.define(
    "densekd::channelwise_kl",
    "(Tensor student, Tensor teacher, Tensor? mask, float temperature, str route, bool want_gradient, float factor)"
    " -> (Tensor, Tensor)",
)
torch.library.define("densekd::channelwise_kl_backward", "(Tensor gradient, Tensor upstream, float left) -> Tensor")
#: (student, teacher, mask, temperature, route, want_gradient, factor) -> rows (N, C) and their gradient, both times
#: `factor`: the share of a row in the mean, so that the backward pass of the mean itself finds nothing left to multiply
rows_operator = torch.ops.densekd.channelwise_kl.default
#: (gradient, upstream, left) -> every row of the saved gradient times `left` and the gradient of that row's value
scale_operator = torch.ops.densekd.channelwise_kl_backward.default


def _rows(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None,
    temperature: float,
    route: str,
    want_gradient: bool,
    factor: float,
) -> tuple[Tensor, Tensor]:
    with torch.autocast(student.device.type, enabled=False):
        return ROUTES[route](student, teacher, mask, temperature, want_gradient, factor)


def _rows_fake(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None,
    temperature: float,
    route: str,
    want_gradient: bool,
    factor: float,
) -> tuple[Tensor, Tensor]:
    working = working_type(student, teacher)
    rows = student.new_empty(student.shape[:2], dtype=working)
    kept = student.dtype if route == "triton" else working
    gradient = torch.empty_like(student, dtype=kept) if want_gradient else student.new_empty(0, dtype=kept)
    return rows, gradient


def _rows_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    student, _, _, temperature, route, _, factor = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1])
    ctx.dtype, ctx.route = student.dtype, route
    ctx.left = gradient_scale(student.dtype, temperature, factor)[1] if route == "triton" else 1.0


def _rows_backward(ctx: Any, upstream: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    if upstream is None:
        return (None,) * 7
    (gradient,) = ctx.saved_tensors
    if not is_last_use(gradient, upstream):
        scaled = scale_operator(gradient, upstream, ctx.left)
    else:
        # Autograd drops the saved gradient after this call: scaled in place it needs no second map of memory.
        with torch.no_grad():
            scaled = _scale_in_place(ctx.route, gradient.detach(), upstream, ctx.left)
    return scaled.to(ctx.dtype), *(None,) * 6


def _scale_in_place(route: str, gradient: Tensor, upstream: Tensor, left: float) -> Tensor:
    if route != "triton":
        return gradient.mul_(_per_row(upstream, gradient))
    from densekd.kernels.triton_channelwise_host import scale_rows

    return scale_rows(gradient, upstream, left)


def _per_row(upstream: Tensor, gradient: Tensor) -> Tensor:
    return upstream.view(*upstream.shape, *(1 for _ in gradient.shape[2:]))


def _scale(gradient: Tensor, upstream: Tensor, left: float) -> Tensor:
    # Into a tensor of the gradient's own type: a product of two types would be made in the larger first.
    return torch.mul(gradient, _per_row(upstream * left, gradient), out=torch.empty_like(gradient))


def _scale_fake(gradient: Tensor, upstream: Tensor, left: float) -> Tensor:
    return torch.empty_like(gradient)


def _scale_backward(ctx: Any, upstream: Tensor) -> tuple[None, None, None]:
    raise SecondDerivativeError(
        "channelwise_kl has no second derivative: its gradient is made in the forward pass; for a gradient penalty "
        "use a differentiable formulation (log_softmax of both maps and torch.nn.functional.kl_div)"
    )


torch.library.impl("densekd::channelwise_kl", "CompositeExplicitAutograd", _rows)
torch.library.impl("densekd::channelwise_kl_backward", "CompositeExplicitAutograd", _scale)
torch.library.register_fake("densekd::channelwise_kl", _rows_fake)
torch.library.register_fake("densekd::channelwise_kl_backward", _scale_fake)
torch.library.register_autograd("densekd::channelwise_kl", _rows_backward, setup_context=_rows_setup)
torch.library.register_autograd("densekd::channelwise_kl_backward", _scale_backward)
