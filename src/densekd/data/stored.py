"""Which files a data set reads its images from: a changed one is told by its size, without opening it."""

from __future__ import annotations

from pathlib import Path

from densekd.data.base import SegmentationSet
from densekd.data.folder import FolderSet
from densekd.data.memory import InMemory
from densekd.data.part import Part
from densekd.data.unlabelled import ImageSet, Joined, WithoutLabels


def image_file(which: SegmentationSet, index: int) -> Path | None:
    """The file of image number `index`; None where it is drawn, or the set is not one of densekd's own."""
    if isinstance(which, FolderSet):
        return which.pairs[index].image
    if isinstance(which, ImageSet):
        return which.files[index][1]
    if isinstance(which, InMemory):
        return image_file(which.source, index)
    if isinstance(which, Part):
        return image_file(which.whole, which.indices[index])
    if isinstance(which, WithoutLabels):
        return image_file(which.like, index)
    if isinstance(which, Joined):
        return image_file(*which.place_of(index))
    return None


def image_size(which: SegmentationSet, index: int) -> int | None:
    """Bytes of that file; None where there is none."""
    path = image_file(which, index)
    return None if path is None else path.stat().st_size
