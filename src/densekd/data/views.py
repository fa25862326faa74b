"""What the data loaders read: a data set with its transform, every random choice keyed by the sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor
from torch.utils.data import Dataset

from densekd.data.base import SegmentationSet
from densekd.data.keyed import keyed_random
from densekd.data.transforms import EvalTransform, TrainTransform
from densekd.errors import DataError


class TrainEntry(TypedDict):
    """One training sample; a batch of them is made by the data loader's own stacking."""

    image: Tensor
    label: Tensor
    valid: Tensor
    index: int


class EvalEntry(TypedDict):
    """One sample for evaluation; the label keeps its stored size."""

    image: Tensor
    label: Tensor
    index: int


class EvalBatch(TypedDict):
    """Images of one size, labels of any."""

    image: Tensor
    labels: list[Tensor]
    index: list[int]


class TrainView(Dataset[TrainEntry]):
    """Training samples by `(epoch, index)`.

    What comes back depends on `(seed, epoch, index)` alone: not on the order, the worker process, or what was read
    before. The process's own random state is left as it was.
    """

    def __init__(self, source: SegmentationSet, transform: TrainTransform, seed: int) -> None:
        self.source, self.transform, self.seed = source, transform, seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: tuple[int, int]) -> TrainEntry:
        epoch, index = key
        sample = self.source.load(index)
        with keyed_random(self.seed, "sample", epoch, index):
            item = self.transform(sample)
        return {"image": item.image, "label": item.label, "valid": item.valid, "index": index}


class EvalView(Dataset[EvalEntry]):
    """Samples for evaluation by index: the image as the network wants it, the label as stored."""

    def __init__(self, source: SegmentationSet, transform: EvalTransform) -> None:
        self.source, self.transform = source, transform

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> EvalEntry:
        image, label = self.source.load(index)
        return {"image": self.transform(image), "label": label, "index": index}


def eval_collate(entries: Sequence[EvalEntry]) -> EvalBatch:
    """Stack the images of a batch; labels stay a list, because their sizes may differ.

    Raises:
        DataError: the images differ in size, so that they cannot be stacked.
    """
    sizes = sorted({tuple(entry["image"].shape[1:]) for entry in entries})
    if len(sizes) > 1:
        shown = " and ".join(f"{height}x{width}" for height, width in sizes[:2])
        raise DataError(
            f"images of {shown} (height x width) in one evaluation batch: set data.augment.size, or evaluate one "
            "image at a time"
        )
    return {
        "image": torch.stack([entry["image"] for entry in entries]),
        "labels": [entry["label"] for entry in entries],
        "index": [entry["index"] for entry in entries],
    }
