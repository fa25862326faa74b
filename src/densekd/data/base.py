"""What every data set looks like to the layers above: a numbered collection of images with their labels."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor


class Sample(NamedTuple):
    """One image and its label, as stored: before any resizing or augmentation."""

    image: Tensor
    """uint8, `(3, H, W)`, RGB, 0 to 255."""
    label: Tensor
    """`(H, W)`: class ids `0 .. K-1`, or the set's `ignore_index` where nothing is known. int64, or uint8, in which
    they fit as a rule and are resized faster; what the views give is int64."""


@runtime_checkable
class SegmentationSet(Protocol):
    """A data set for semantic segmentation.

    `load(index)` depends on `index` alone: not on earlier calls, nor on the process or thread that asks.
    A set can be pickled, because the data loader's workers receive a copy.
    """

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; the position of a name is its id in the labels."""
        ...

    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]:
        """A colour (red, green, blue; 0 to 255) for each class, for pictures."""
        ...

    @property
    def ignore_index(self) -> int:
        """The label of positions that count neither for the loss nor for the metrics."""
        ...

    def __len__(self) -> int: ...

    def load(self, index: int) -> Sample:
        """The image and the label of number `index`."""
        ...

    def name_of(self, index: int) -> str:
        """A short name for the sample, for messages and file names."""
        ...
