"""The backward pass of losses that make their gradient in the forward pass: what was saved, times what comes above it.

In place when autograd is about to drop it, else into a fresh tensor, so that a second backward through a retained
graph is right.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from densekd.errors import SecondDerivativeError

torch.library.define("densekd::scaled_gradient", "(Tensor gradient, Tensor upstream, str loss) -> Tensor")
_operator = torch.ops.densekd.scaled_gradient.default


def scaled(gradient: Tensor, upstream: Tensor, loss: str) -> Tensor:
    """`gradient * upstream`; `upstream` broadcasts. `loss` is the name that an error gives.

    Raises:
        SecondDerivativeError: later, when a derivative of the result is asked.
    """
    if is_last_use(gradient, upstream):
        with torch.no_grad():
            return gradient.detach().mul_(upstream)
    return _operator(gradient, upstream, loss)


def is_last_use(gradient: Tensor, upstream: Tensor) -> bool:
    """Whether nobody can read the saved gradient again: no retained or created graph, no tracing, no vmap."""
    if torch.is_grad_enabled() or torch._C._autograd._get_current_graph_task_keep_graph():
        return False
    plain = type(gradient) is Tensor and type(upstream) is Tensor
    return plain and not torch._C._functorch.is_batchedtensor(upstream)


def _scaled(gradient: Tensor, upstream: Tensor, loss: str) -> Tensor:
    # Into a tensor of the gradient's own type and layout, as the fake one: a product of two types has the larger.
    return torch.mul(gradient, upstream, out=torch.empty_like(gradient))


def _fake(gradient: Tensor, upstream: Tensor, loss: str) -> Tensor:
    return torch.empty_like(gradient)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.loss = inputs[2]


def _backward(ctx: Any, upstream: Tensor) -> tuple[None, None, None]:
    raise SecondDerivativeError(
        f"{ctx.loss} has no second derivative: its gradient is made in the forward pass; for a gradient penalty use a "
        "differentiable formulation, in plain operations of torch"
    )


torch.library.impl("densekd::scaled_gradient", "CompositeExplicitAutograd", _scaled)
torch.library.register_fake("densekd::scaled_gradient", _fake)
torch.library.register_autograd("densekd::scaled_gradient", _backward, setup_context=_setup)
