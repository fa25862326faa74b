"""Maps softened over positions, as channel-wise distillation sees them: shares, entropy, divergence, pictures."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from densekd.errors import ShapeError
from densekd.functional.checks import check_temperature


def log_shares(values: Tensor, temperature: float, mask: Tensor | None = None) -> Tensor:
    """`log softmax(values / temperature)` over the positions of each channel.

    Args:
        values: `(C, H, W)`, any floating type.
        temperature: tau of the softmax.
        mask: bool `(H, W)`, True where a position counts; the others get no share (minus infinity), as in the loss.

    Returns:
        `(C, H * W)`, float32 (float64 for float64 input).

    Raises:
        ShapeError: not `(C, H, W)`, a mask of another size, or one without a single position.
        ArgumentError: a temperature that is not positive.
    """
    tau = check_temperature(temperature)
    if values.ndim != 3 or (mask is not None and mask.shape != values.shape[1:]):
        raise ShapeError(
            f"expected a map (C, H, W) and a mask (H, W), got {tuple(values.shape)} and "
            f"{None if mask is None else tuple(mask.shape)}"
        )
    if values[0].numel() == 0 or (mask is not None and not bool(mask.any())):
        raise ShapeError("a map without a single position that counts has no shares")
    flat = (values if values.dtype == torch.float64 else values.float()).flatten(1) / tau
    if mask is not None:
        flat = flat.masked_fill(~mask.flatten(), -math.inf)
    return torch.log_softmax(flat, 1)


def entropy(logs: Tensor) -> Tensor:
    """`-sum_i p_i log p_i` of each channel in nats, from `log_shares` `(C, P)`: 0 at one position, log P where even."""
    return -_weighted(logs, logs)


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """`KL(teacher || student) = sum_i p_i (log p_i - log q_i)` of each channel in nats, from two `log_shares` `(C, P)`.

    It is what channel-wise distillation lowers, without its factor tau**2.

    Raises:
        ShapeError: two shapes.
    """
    if teacher.shape != student.shape:
        raise ShapeError(f"expected two maps of one shape, got {tuple(teacher.shape)} and {tuple(student.shape)}")
    return _weighted(teacher, teacher - student).clamp_min(0)  # rounding alone takes it below


def _weighted(logs: Tensor, values: Tensor) -> Tensor:
    # Where there is no share there is nothing to add, though 0 times infinity is no number.
    return torch.where(torch.isinf(logs), 0.0, logs.exp() * values).sum(1)


def density(logs: Tensor, size: tuple[int, int], shown: tuple[int, int], counted: int) -> Tensor:
    """Shares as multiples of an even one, small enough to be shown: `P p_i`, averaged over the cells of a grid.

    Args:
        logs: `(C, P)` from `log_shares`.
        size: height and width of the map.
        shown: height and width of the grid; sides larger than the map's own are the map's own.
        counted: P, the positions that count.

    Returns:
        float32 `(C, h, w)`; 1 everywhere for an even map.
    """
    plane = (logs.exp() * counted).reshape(1, -1, *size)
    grid = (min(shown[0], size[0]), min(shown[1], size[1]))
    return F.adaptive_avg_pool2d(plane, grid)[0].float()


def fitting(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """Height and width with the longer side brought down to `longest`, in proportion, at least 1 each."""
    factor = min(1.0, longest / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))
