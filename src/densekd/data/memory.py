"""A data set that keeps what it has read, for sets that fit in memory."""

from __future__ import annotations

import torch

from densekd.data.base import Sample, SegmentationSet


class InMemory:
    """Keeps every sample after its first reading; otherwise the set it wraps.

    Labels are kept in 8 bits where they fit. Each loading process has a memory of its own, so this pays with
    `workers: 0` or for small sets; what comes back is the same with and without it.
    """

    def __init__(self, source: SegmentationSet) -> None:
        self.source = source
        self._kept: dict[int, tuple[torch.Tensor, torch.Tensor, torch.dtype]] = {}

    @property
    def classes(self) -> tuple[str, ...]:
        return self.source.classes

    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]:
        return self.source.palette

    @property
    def ignore_index(self) -> int:
        return self.source.ignore_index

    def __len__(self) -> int:
        return len(self.source)

    def name_of(self, index: int) -> str:
        """As the wrapped set's."""
        return self.source.name_of(index)

    def load(self, index: int) -> Sample:
        """The sample of number `index`; the tensors are the caller's own copies."""
        if index not in self._kept:
            sample = self.source.load(index)
            fits = int(sample.label.min()) >= 0 and int(sample.label.max()) <= 255
            self._kept[index] = (
                sample.image,
                sample.label.to(torch.uint8) if fits else sample.label,
                sample.label.dtype,
            )
        image, label, dtype = self._kept[index]
        return Sample(image.clone(), label.to(dtype, copy=True))
