"""Class maps at the size of the picture, within what the memory allows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

# Class maps are enlarged to the picture in float32: 2**27 values are half a gigabyte.
MOST_VALUES = 2**27


def near(channels: int, height: int, width: int) -> tuple[int, int]:
    """The size that class maps are enlarged to: that of the picture, or what the memory allows."""
    factor = min(1.0, (MOST_VALUES / (channels * height * width)) ** 0.5)
    return max(1, int(height * factor)), max(1, int(width * factor))


def enlarged(found: Iterable[Tensor], sizes: Sequence[tuple[int, int]]) -> Iterator[Tensor]:
    """Class ids `(h, w)` brought to each size, the nearest pixel, on the CPU."""
    for ids, size in zip(found, sizes, strict=True):
        if tuple(ids.shape) == size:
            yield ids.cpu()
        else:
            from torchvision.transforms.v2 import functional

            nearest = functional.InterpolationMode.NEAREST_EXACT
            yield functional.resize(ids[None].to(torch.int32), list(size), nearest)[0].long().cpu()
