"""Pixel-wise KL over channels in Triton: how the kernel of `densekd.kernels.triton_pixelwise` starts, and on what.

Extra memory: the gradient, in the student's type, and a number per position. Maps are read as they lie; only those
whose positions are not evenly spaced are copied. The host waits for nothing and looks at no value.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from densekd.kernels import triton_pixelwise as kernels
from densekd.kernels.launching import Launch
from densekd.kernels.pixelwise import lowest
from densekd.kernels.strides import Strided, as_strided, position_order, strided

#: elements of a map that a program holds, and most channels of a tile
TILE, CHANNELS = 2_048, 256


def triton_positions(
    student: Tensor, teacher: Tensor, mask: Tensor | None, temperature: float, want_gradient: bool
) -> tuple[Tensor, Tensor]:
    """As `densekd.kernels.pixelwise.blocked`, for float16, bfloat16 and float32; values are float32."""
    order = position_order(student)
    gradient = torch.empty_like(student) if want_gradient else student.new_empty(0)
    turned = gradient.permute(order) if want_gradient else None
    target = None if turned is None else strided(turned) or as_strided(torch.empty_like(turned.contiguous()))
    s, t = as_strided(student.permute(order)), as_strided(teacher.permute(order))
    kept = None if mask is None else mask.permute(0, *(axis - 1 for axis in order[2:])).contiguous().view(torch.uint8)
    values = torch.empty((len(student), *s.tensor.shape[2:]), dtype=torch.float32, device=student.device)
    launch(s, t, target, kept, values, temperature).run(student.device)
    if turned is not None and target is not None and target.tensor is not turned:
        turned.copy_(target.tensor)
    back = [order.index(axis) - 1 for axis in range(2, student.ndim)]
    return values.permute(0, *back), gradient


def launch(
    s: Strided, t: Strided, target: Strided | None, mask: Tensor | None, values: Tensor, temperature: float
) -> Launch:
    """What is started."""
    n, channels = s.tensor.shape[:2]
    places = s.tensor[0, 0].numel()
    block_c = min(CHANNELS, max(2, 1 << (channels - 1).bit_length()))
    block_p = max(8, TILE // block_c)
    like = s if target is None else target  # never written where no gradient is wanted
    arguments: dict[str, Any] = {
        **{"student": s.tensor, "teacher": t.tensor, "gradient": like.tensor, "values": values},
        **{"mask": s.tensor if mask is None else mask, "channels": channels, "places": places},
        **{**_strides("s", s), **_strides("t", t), **_strides("g", like)},
        **{"inverse": 1.0 / temperature, "squared": temperature**2},
        "low": lowest(torch.float32, s.tensor.numel(), temperature),
    }
    constants = {
        **{"masked": mask is not None, "wanted": target is not None, "whole": channels <= block_c},
        **{"block_c": block_c, "block_p": block_p},
    }
    return Launch(kernels.positions, n * -(-places // block_p), arguments, constants, 4)


def _strides(letter: str, of: Strided) -> dict[str, int]:
    return {f"{letter}_n": of.images, f"{letter}_c": of.channels, f"{letter}_p": of.positions}
