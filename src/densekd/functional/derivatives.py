"""Where the gradients made by hand do not serve: `torch.func` and forward-mode differentiation.

There every loss is its plain definition, in operations that torch derives as often as asked, with the memory that
takes. This tells when, and holds what those definitions share.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from densekd.functional.image import SHORTEST


def transformed(student: Tensor) -> bool:
    """Whether `torch.func` or forward-mode differentiation is at work."""
    # By its type: `is None` is always False where torch.compile looks on.
    if not isinstance(torch._C._functorch.peek_interpreter_stack(), type(None)):
        return True
    return unpack_dual(student).tangent is not None  # type: ignore[no-untyped-call]


def features(x: Tensor, mask: Tensor | None, working: torch.dtype) -> Tensor:
    """(N, C, *spatial) as (N, C, P) in the working type, zero where `mask` (N, *spatial) is False."""
    x = x.flatten(2).to(working)
    return x if mask is None else torch.where(mask.flatten(1)[:, None], x, 0.0)


def in_range(x: Tensor) -> Tensor:
    """(N, C, P) with every huge image divided by its largest entry, so that sums of squares do not overflow."""
    largest = x.detach().abs().amax((1, 2), keepdim=True)
    return x / torch.where(largest < 1e-4 * torch.finfo(x.dtype).max ** 0.5, 1.0, largest)


def unit_columns(x: Tensor) -> Tensor:
    """The columns of (N, C, P) at length 1, zero where they have no direction (see `densekd.functional.image.unit`)."""
    x = in_range(x)
    squares = x.square().sum(1, keepdim=True)
    # The root has no derivative at zero: short vectors take another length there, and are zeroed after it.
    long = squares > SHORTEST**2
    return torch.where(long, x / torch.where(long, squares, 1.0).sqrt(), 0.0)
