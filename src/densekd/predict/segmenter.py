"""What turns images into class ids: the student of a run, or one that was exported."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Protocol

from torch import Tensor

from densekd.pictures import Palette


class Segmenter(Protocol):
    """A student with all that turns an image into class ids.

    Attributes:
        classes: names; the position of a name is its id.
        palette: a colour for each class.
    """

    classes: tuple[str, ...]
    palette: Palette

    def size_of(self, stored: tuple[int, int]) -> Hashable:
        """What images of that height and width are brought to; those of one value can share a forward pass."""
        ...

    def segment(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Class ids `(H, W)`, int64, on the CPU, of images uint8 `(3, H, W)` that are brought to one size."""
        ...
