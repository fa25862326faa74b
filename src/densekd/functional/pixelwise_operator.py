"""The custom operator behind `pixelwise_kl`: one node in an autograd graph and in a compiled one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from densekd.functional.checks import working_type
from densekd.functional.saved_gradient import scaled
from densekd.kernels.pixelwise import blocked

torch.library.define(
    "densekd::pixelwise_kl",
    "(Tensor student, Tensor teacher, Tensor? mask, float temperature, bool triton, bool want_gradient)"
    " -> (Tensor, Tensor)",
)
#: -> temperature**2 * KL of every position, (N, *spatial), and q - p in the student's shape and type
pixels_operator = torch.ops.densekd.pixelwise_kl.default


def _pixels(
    student: Tensor, teacher: Tensor, mask: Tensor | None, temperature: float, triton: bool, want_gradient: bool
) -> tuple[Tensor, Tensor]:
    with torch.autocast(student.device.type, enabled=False):
        if triton:
            from densekd.kernels.triton_pixelwise_host import triton_positions  # Triton is loaded where it is chosen

            return triton_positions(student, teacher, mask, temperature, want_gradient)
        return blocked(student, teacher, mask, temperature, want_gradient)


def _fake(
    student: Tensor, teacher: Tensor, mask: Tensor | None, temperature: float, triton: bool, want_gradient: bool
) -> tuple[Tensor, Tensor]:
    # Positions lie in the values as they do in the student's map.
    like = torch.empty_like(student, dtype=working_type(student, teacher))
    axes = sorted(range(2, student.ndim), key=lambda axis: student.stride()[axis], reverse=True)
    shape = [student.shape[0], *(student.shape[axis] for axis in axes)]
    back = [axes.index(axis) + 1 for axis in range(2, student.ndim)]
    values = like.new_empty(shape).permute(0, *back)
    return values, torch.empty_like(student) if want_gradient else student.new_empty(0)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1])
    ctx.temperature = inputs[3]


def _backward(ctx: Any, upstream: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    found = None
    if upstream is not None:
        (gradient,) = ctx.saved_tensors
        found = scaled(gradient, (ctx.temperature * upstream)[:, None], "pixelwise_kl").to(gradient.dtype)
    return found, None, None, None, None, None


torch.library.impl("densekd::pixelwise_kl", "CompositeExplicitAutograd", _pixels)
torch.library.register_fake("densekd::pixelwise_kl", _fake)
torch.library.register_autograd("densekd::pixelwise_kl", _backward, setup_context=_setup)
