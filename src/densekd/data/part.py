"""A part of a data set."""

from __future__ import annotations

from collections.abc import Sequence

from densekd.data.base import Sample, SegmentationSet


class Part:
    """Some samples of a data set, in the order of `indices`."""

    def __init__(self, whole: SegmentationSet, indices: Sequence[int]) -> None:
        self.whole, self.indices = whole, indices

    @property
    def classes(self) -> tuple[str, ...]:
        return self.whole.classes

    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]:
        return self.whole.palette

    @property
    def ignore_index(self) -> int:
        return self.whole.ignore_index

    def __len__(self) -> int:
        return len(self.indices)

    def load(self, index: int) -> Sample:
        """Sample `indices[index]` of the whole."""
        return self.whole.load(self.indices[index])

    def name_of(self, index: int) -> str:
        """As the whole's."""
        return self.whole.name_of(self.indices[index])
