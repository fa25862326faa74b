"""Where bilinear interpolation reads, and with which weights: what `torch.nn.functional.interpolate` does.

Along one side with n input and m output samples, output sample i stands at the input position

    align_corners:      i * (n - 1) / (m - 1)                   (0 where m = 1)
    else:               max(0, (i + 0.5) * n / m - 0.5)

and is `(1 - t) * x[low] + t * x[high]` with low the whole part of the position, t the rest, high the next sample, both
held at n - 1. Computed in float64: torch's own float32 positions are off by up to 1e-7 of the side.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Side(NamedTuple):
    """Of every output sample along one side, `(m,)`: `low` and `high` (int64) and the weight t of `high` (float64)."""

    low: Tensor
    high: Tensor
    weight: Tensor


def side(inputs: int, outputs: int, align_corners: bool, device: torch.device | None = None) -> Side:
    """How `inputs` samples become `outputs` along one side."""
    index = torch.arange(outputs, dtype=torch.float64, device=device)
    if align_corners:
        position = index * ((inputs - 1) / (outputs - 1) if outputs > 1 else 0.0)
    else:
        position = ((index + 0.5) * (inputs / outputs) - 0.5).clamp_(min=0.0)
    low = position.long().clamp_(max=inputs - 1)
    return Side(low, (low + 1).clamp_(max=inputs - 1), (position - low).clamp_(max=1.0))


def matrix(of: Side, inputs: int, dtype: torch.dtype) -> Tensor:
    """The interpolation along one side as a matrix, `(outputs, inputs)`: at most two entries in a row, their sum 1."""
    found = of.weight.new_zeros(len(of.low), inputs)
    found.scatter_add_(1, of.low[:, None], 1.0 - of.weight[:, None])
    return found.scatter_add_(1, of.high[:, None], of.weight[:, None]).to(dtype)
