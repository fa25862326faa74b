"""Maps (N, C, *spatial) as kernels see them: three strides, of images, channels and positions."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Strided(NamedTuple):
    """A tensor whose position i of channel c of image n is `n * images + c * channels + i * positions` elements on."""

    tensor: Tensor
    images: int
    channels: int
    positions: int


def position_order(x: Tensor) -> tuple[int, ...]:
    """All axes of (N, C, *spatial), the spatial ones from the outermost in memory to the innermost.

    Losses over positions do not depend on their order, as long as all maps take the same.
    """
    return (0, 1, *sorted(range(2, x.ndim), key=lambda axis: x.stride()[axis], reverse=True))


def strided(x: Tensor) -> Strided | None:
    """The three strides, or None where the positions of `x` are not evenly spaced."""
    step: int | None = None
    reach = 0
    for size, stride in zip(reversed(x.shape[2:]), reversed(x.stride()[2:]), strict=True):
        if size == 1:
            continue
        if step is None:
            step, reach = stride, stride
        if stride != reach:
            return None
        reach = stride * size
    return Strided(x, x.stride(0), x.stride(1), 1 if step is None else step)


def as_strided(x: Tensor) -> Strided:
    """The three strides of `x`, or of a contiguous copy where it has none."""
    found = strided(x)
    return found if found is not None else Strided(x.contiguous(), x[0].numel(), x[0, 0].numel(), 1)
