"""Nearest-neighbour resize of labels and masks, by index: exact for any integer, no detour over floats."""

from __future__ import annotations

import torch
from torch import Tensor


def nearest_resize(values: Tensor, size: tuple[int, int]) -> Tensor:
    """`values` `(N, H, W)` of any type at `size` `(h, w)`.

    Position `i` of the result takes position `floor((i + 0.5) * H / h)`: the pixel under the centre of the cell,
    which agrees with a bilinear resize that does not align corners.

    Args:
        values: labels or a mask.
        size: height and width of the map.

    >>> labels = torch.arange(16).view(1, 4, 4)
    >>> nearest_resize(labels, (2, 2))
    tensor([[[ 5,  7],
             [13, 15]]])
    """
    height, width = values.shape[-2:]
    if (height, width) == tuple(size):
        return values
    rows = _centres(size[0], height, values.device)
    columns = _centres(size[1], width, values.device)
    return values[:, rows[:, None], columns[None, :]]


def _centres(count: int, length: int, device: torch.device) -> Tensor:
    return ((2 * torch.arange(count, device=device) + 1) * length) // (2 * count)
