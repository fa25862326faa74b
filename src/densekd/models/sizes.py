"""Image sizes a network accepts."""

from __future__ import annotations

from torch import nn


def input_multiple(network: nn.Module) -> int:
    """The number that image height and width must be multiples of: 1 where any size will do or nothing is known.

    Networks of segmentation-models-pytorch state it (the stride of their encoder) and refuse other sizes; pad images on
    the right and below with the void label, or crop to a multiple.
    """
    needed = getattr(network, "requires_divisible_input_shape", False)
    stride = getattr(getattr(network, "encoder", None), "output_stride", 1)
    return int(stride) if needed and isinstance(stride, int) else 1
