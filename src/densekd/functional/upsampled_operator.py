"""The custom operator behind `upsampled_cross_entropy`: one node in an autograd graph and in a compiled one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from densekd.functional.saved_gradient import scaled
from densekd.kernels.upsampled_cross_entropy import tiled


def definition(
    logits: Tensor, labels: Tensor, weights: Tensor | None, smoothing: float, ignore_index: int, align_corners: bool
) -> tuple[Tensor, Tensor]:
    """Sum of the loss over the valid pixels, and of their weights, in operations that torch can derive.

    The full-size logits exist here.
    """
    with torch.autocast(logits.device.type, enabled=False):
        x = logits.to(torch.promote_types(logits.dtype, torch.float32))
        z = F.interpolate(x, labels.shape[1:], mode="bilinear", align_corners=align_corners)
        valid = labels != ignore_index
        truth = labels.long().masked_fill(~valid, 0)
        losses = F.cross_entropy(z, truth, weights, reduction="none", label_smoothing=smoothing)
        pixels = valid.to(z.dtype) if weights is None else weights[truth] * valid
        return torch.where(valid, losses, 0.0).sum(), pixels.sum()


torch.library.define(
    "densekd::upsampled_cross_entropy",
    "(Tensor logits, Tensor labels, Tensor? weights, float smoothing, int ignore_index, bool align_corners,"
    " bool triton, bool want_gradient) -> (Tensor, Tensor, Tensor)",
)
#: -> sum of the loss over the valid pixels, sum of their weights, gradient of the first
sums_operator = torch.ops.densekd.upsampled_cross_entropy.default


def _sums(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor | None,
    smoothing: float,
    ignore_index: int,
    align_corners: bool,
    triton: bool,
    want_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.autocast(logits.device.type, enabled=False):
        if triton:
            from densekd.kernels.triton_upsampled_host import triton_sums  # Triton is loaded where it is chosen

            return triton_sums(logits, labels, weights, smoothing, ignore_index, align_corners, want_gradient)
        return tiled(logits, labels, weights, smoothing, ignore_index, align_corners, want_gradient)


def _fake(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor | None,
    smoothing: float,
    ignore_index: int,
    align_corners: bool,
    triton: bool,
    want_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    working = torch.promote_types(logits.dtype, torch.float32)
    gradient = torch.empty_like(logits, dtype=working) if want_gradient else logits.new_empty(0, dtype=working)
    return logits.new_empty((), dtype=working), logits.new_empty((), dtype=working), gradient


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[2])
    ctx.dtype = inputs[0].dtype


def _backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    found = None
    if upstream is not None:
        (gradient,) = ctx.saved_tensors
        found = scaled(gradient, upstream, "upsampled_cross_entropy").to(ctx.dtype)
    return found, None, None, None, None, None, None, None


torch.library.impl("densekd::upsampled_cross_entropy", "CompositeExplicitAutograd", _sums)
torch.library.register_fake("densekd::upsampled_cross_entropy", _fake)
torch.library.register_autograd("densekd::upsampled_cross_entropy", _backward, setup_context=_setup)
