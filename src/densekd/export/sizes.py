"""Which sizes of image a network takes, and three on which an export must be right."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import nn

from densekd.errors import ExportError
from densekd.export.manifest import Size
from densekd.failures import out_of_memory
from densekd.models.sizes import fitting_size
from densekd.taps import main_output

# Of the first size; more and less of either side, none of them in proportion.
_FACTORS = ((0.77, 0.53), (0.55, 0.81), (1.27, 0.71))
_MULTIPLES = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Accepted:
    """What a network takes in torch.

    Attributes:
        multiple: heights and widths are multiples of it.
        base: the size that was given, enlarged to such multiples.
        others: three further sizes, with odd multiples.
        same: its class map has the size of the images at all four.
    """

    multiple: int
    base: Size
    others: tuple[Size, ...]
    same: bool


def other_sizes(base: Size, multiple: int, factor: float = 1.0) -> tuple[Size, ...]:
    """Three sizes that differ from `base` in both sides, odd multiples of `multiple`."""
    found: list[Size] = []
    for tall, wide in _FACTORS:
        height, width = (_odd(side * part * factor, multiple) for side, part in zip(base, (tall, wide), strict=True))
        while (height, width) in found or height == base[0] or width == base[1]:
            height, width = height + 2 * multiple, width + 2 * multiple
        found.append((height, width))
    return tuple(found)


def _odd(side: float, multiple: int) -> int:
    return max(1, 2 * round((side / multiple - 1) / 2) + 1) * multiple


def accepted_sizes(network: nn.Module, size: Size, multiple: int) -> Accepted:
    """Try the network, in torch, at `size` and at three others.

    Args:
        network: from normalised images to class maps, in eval mode.
        size: height and width that it is known to take.
        multiple: what it says itself that sides must be multiples of; 1: it says nothing, and multiples are tried.

    Raises:
        ExportError: it takes no other size.
    """
    words = ""
    for candidate in (multiple,) if multiple > 1 else _MULTIPLES:
        base = fitting_size(size, candidate)
        for factor in (1.0, 2.0):  # a deep network may need more pixels than half of them
            others = other_sizes(base, candidate, factor)
            try:
                same = [class_map_size(network, one) == one for one in (base, *others)]
            except Exception as error:
                if out_of_memory(error):
                    raise
                words = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                continue
            return Accepted(candidate, base, others, all(same))
    raise ExportError(
        f"the network itself takes images of {size[0]}x{size[1]} but of no other size that was tried; torch says "
        f"{words}"
    )


def class_map_size(network: nn.Module, size: Size) -> Size:
    """Height and width of the class map of images of that size."""
    with torch.inference_mode():
        found = main_output(network(torch.zeros(1, 3, *size)))
    return int(found.shape[-2]), int(found.shape[-1])


def in_words(size: Size) -> str:
    """`96x128`: height x width."""
    return f"{size[0]}x{size[1]}"


def plain(text: str) -> str:
    """The beginning of what a library says on one line, without colours and codes of its own."""
    return re.sub(r"\x1b\[[0-9;]*m|\[ONNXRuntimeError\] : \d+ : \w+ : ", "", " ".join(text.split()))[:300]
