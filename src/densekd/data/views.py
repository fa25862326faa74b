"""What the data loaders read: a data set with its transform, every random choice keyed by the sample."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NotRequired, TypedDict, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from densekd.data.base import SegmentationSet
from densekd.data.keyed import keyed_random
from densekd.data.transforms import EvalTransform, TrainTransform

Item = TypeVar("Item")


class TrainEntry(TypedDict):
    """One training sample; a batch of them is made by the data loader's own stacking.

    Where each image has a fixed number of views: `sample`, int64 (view, index), and the image's `fingerprint`.
    """

    image: Tensor
    label: Tensor
    valid: Tensor
    index: int
    sample: NotRequired[Tensor]
    fingerprint: NotRequired[int]


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


def fingerprint(image: Tensor) -> int:
    """CRC-32 of a tensor's bytes: 32 bits that tell an image from a changed one, no protection against design."""
    return zlib.crc32(image.contiguous().numpy().data)


class TrainView(Dataset[TrainEntry]):
    """Training samples by `(epoch, index)`.

    What comes back depends on `(seed, epoch, index)` alone: not on the order, the worker process, or what was read
    before. The process's own random state is left as it was.

    Args:
        source: the images and labels.
        transform: augments one of them.
        seed: of the random choices.
        views: each image has so many views, one for each `epoch mod views`, the same again and again; None: a new one
            in every epoch.
    """

    def __init__(self, source: SegmentationSet, transform: TrainTransform, seed: int, views: int | None = None) -> None:
        self.source, self.transform, self.seed, self.views = source, transform, seed, views

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: tuple[int, int]) -> TrainEntry:
        epoch, index = key
        view = epoch if self.views is None else epoch % self.views
        sample = self.source.load(index)
        with keyed_random(self.seed, "sample", view, index):
            item = self.transform(sample)
        entry: TrainEntry = {"image": item.image, "label": item.label, "valid": item.valid, "index": index}
        if self.views is not None:
            entry["sample"] = torch.tensor((view, index))
            entry["fingerprint"] = fingerprint(item.image)
        return entry


class EvalView(Dataset[EvalEntry]):
    """Samples for evaluation by index: the image as the network wants it, the label as stored."""

    def __init__(self, source: SegmentationSet, transform: EvalTransform) -> None:
        self.source, self.transform = source, transform

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> EvalEntry:
        image, label = self.source.load(index)
        return {"image": self.transform(image), "label": label.to(torch.int64), "index": index}


def of_one_size(items: Iterable[Item], size_of: Callable[[Item], object], count: int) -> Iterator[list[Item]]:
    """Neighbours of one size, in their order and up to `count` at a time: what can be one batch."""
    group: list[Item] = []
    for item in items:
        if group and (len(group) == count or size_of(item) != size_of(group[0])):
            yield group
            group = []
        group.append(item)
    if group:
        yield group


def eval_collate(entries: Sequence[EvalEntry]) -> list[EvalBatch]:
    """Stack the images of each size; one batch per size, small images first, equal ones in their order.

    Labels stay a list, because theirs may differ.
    """

    def size(entry: EvalEntry) -> tuple[int, ...]:
        return tuple(entry["image"].shape[1:])

    return [
        {
            "image": torch.stack([entry["image"] for entry in group]),
            "labels": [entry["label"] for entry in group],
            "index": [entry["index"] for entry in group],
        }
        for group in of_one_size(sorted(entries, key=size), size, len(entries))
    ]
