"""A class map from windows that slide over an image."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from densekd.errors import ArgumentError


def window_starts(size: int, crop: int, stride: int) -> list[int]:
    """Where windows begin along one side: every `stride`, the last one moved back so that it ends with the side.

    `ceil((size - crop) / stride) + 1` windows that together cover the side; one, at 0, where the crop covers it.

    Raises:
        ArgumentError: a side, crop or stride below 1, or a stride above the crop, which leaves gaps.
    """
    if min(size, crop, stride) < 1 or stride > crop:
        raise ArgumentError(
            f"windows: expected side, crop and stride of 1 or more and no stride above the crop, got side {size}, "
            f"crop {crop}, stride {stride}"
        )
    last = max(0, size - crop)
    return [min(place, last) for place in range(0, last + stride, stride)]


def slide(
    forward: Callable[[Tensor], Tensor], images: Tensor, crop: Sequence[int], stride: Sequence[int], most: int
) -> Tensor:
    """The mean of the logits over the windows that cover a pixel.

    An image smaller than the crop is padded on the right and below with zeros, the mean colour of normalised images,
    and the map is cut back. The map of a window is brought to the window's size bilinearly (`align_corners=False`)
    before it is counted. No more than `most` windows exist at a time, beside the sum `(N, K, H, W)`.

    Args:
        forward: from windows `(B, C, crop height, crop width)` to logits `(B, K, h, w)`.
        images: `(N, C, H, W)`, normalised.
        crop, stride: height and width.
        most: windows in one forward pass; those of several images may share one.

    Returns:
        `(N, K, H, W)`, float32 (float64 where the logits are).
    """
    height, width = int(images.shape[-2]), int(images.shape[-1])
    images = F.pad(images, (0, max(0, crop[1] - width), 0, max(0, crop[0] - height)))
    tops = window_starts(images.shape[-2], crop[0], stride[0])
    lefts = window_starts(images.shape[-1], crop[1], stride[1])
    places = [(row, top, left) for row in range(len(images)) for top in tops for left in lefts]
    total: Tensor | None = None
    for begin in range(0, len(places), most):
        group = places[begin : begin + most]
        windows = [images[row, :, top : top + crop[0], left : left + crop[1]] for row, top, left in group]
        logits = _sized(forward(torch.stack(windows)), crop)
        if total is None:
            total = logits.new_zeros(len(images), logits.shape[1], *images.shape[-2:])
        for (row, top, left), window in zip(group, logits, strict=True):
            total[row, :, top : top + crop[0], left : left + crop[1]] += window
    assert total is not None  # there is at least one window
    covered = _coverage(tops, crop[0], total.shape[-2])[:, None] * _coverage(lefts, crop[1], total.shape[-1])[None]
    return total.div_(covered.to(total))[..., :height, :width]


def _sized(logits: Tensor, crop: Sequence[int]) -> Tensor:
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if tuple(logits.shape[-2:]) == tuple(crop):
            return logits
        return F.interpolate(logits, tuple(crop), mode="bilinear", align_corners=False)


def _coverage(starts: Sequence[int], crop: int, size: int) -> Tensor:
    """How many windows cover each place of one side."""
    counts = torch.zeros(size, dtype=torch.int64)
    for start in starts:
        counts[start : start + crop] += 1
    return counts
