"""A window of a resized picture, without the pixels around it where they can be spared."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Window(NamedTuple):
    """Rows `top .. top + height - 1` and columns `left .. left + width - 1` of a picture; parts may lie outside it."""

    top: int
    left: int
    height: int
    width: int

    def inside(self, size: tuple[int, int]) -> tuple[range, range]:
        """Rows and columns of a picture of that height and width which the window shows."""
        rows = range(max(0, self.top), min(size[0], self.top + self.height))
        columns = range(max(0, self.left), min(size[1], self.left + self.width))
        return rows, columns

    def covered(self, size: tuple[int, int]) -> tuple[slice, slice]:
        """Where in the window a picture of that height and width lies."""
        rows, columns = self.inside(size)
        return (
            slice(rows.start - self.top, rows.stop - self.top),
            slice(columns.start - self.left, columns.stop - self.left),
        )


def resized_image(image: Tensor, size: tuple[int, int], rows: range, columns: range) -> Tensor:
    """Rows and columns of `image` (uint8, `(3, H, W)`) resized to `size`: bilinear with antialiasing.

    Equal to resizing all of it, but for rounding. torch counts the pixels of the result from the first one, so
    what lies behind the window is not computed, what lies before it is.

    Returns:
        uint8 `(3, len(rows), len(columns))`, channels innermost in memory: that is the fastest layout, and the only
        one in which torch (2.15) can make a picture of a single pixel.
    """
    stored = (image.shape[1], image.shape[2])
    if size == stored:
        return image[:, rows.start : rows.stop, columns.start : columns.stop]
    (height, tall), (width, wide) = _needed(stored[0], size[0], rows.stop), _needed(stored[1], size[1], columns.stop)
    part = image[None, :, :height, :width].contiguous(memory_format=torch.channels_last)
    made = F.interpolate(part, scale_factor=(tall, wide), mode="bilinear", antialias=True, recompute_scale_factor=False)
    return made[0, :, rows.start : rows.stop, columns.start : columns.stop]


def _needed(stored: int, size: int, stop: int) -> tuple[int, float]:
    """Pixels of a side of `stored` that decide the first `stop` of `size`, and the factor that gives `stop` or more."""
    factor = size / stored
    # A pixel of the result takes what lies up to max(1, 1 / factor) from its centre; two more for rounding.
    needed = math.ceil(stop / factor + max(1.0, 1 / factor)) + 2
    # Where a side would keep its length, torch copies it instead.
    if needed < stored and math.floor(needed * factor) != needed:
        return needed, factor
    while math.floor(stored * factor) < size:  # the product may fall short of `size` by a rounding
        factor = math.nextafter(factor, math.inf)
    return stored, factor


def resized_label(label: Tensor, size: tuple[int, int], rows: range, columns: range) -> Tensor:
    """Rows and columns of `label` (integers, `(H, W)`) resized to `size`: the nearest pixel.

    Equal to torchvision's NEAREST_EXACT. (NEAREST is half a pixel off against the bilinear image.)
    """
    if size == tuple(label.shape):
        return label[rows.start : rows.stop, columns.start : columns.stop]
    down, across = (_nearest(*sides) for sides in zip(label.shape, size, (rows, columns), strict=True))
    # numpy's take, in bytes, is faster than torch's index_select.
    return torch.from_numpy(label.numpy().take(down.numpy(), 0).take(across.numpy(), 1))


def _nearest(stored: int, size: int, which: range) -> Tensor:
    """The pixel of a side of `stored` that is nearest to each of these of `size`, in float32 as torch computes it."""
    factor = torch.tensor(stored, dtype=torch.float32) / size
    centres = torch.arange(which.start, which.stop, dtype=torch.float32) + 0.5
    return (centres * factor).floor().to(torch.int64).clamp(max=stored - 1)
