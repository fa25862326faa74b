"""The `scenes` data set: procedural street scenes, drawn when they are asked for and stored nowhere."""

from __future__ import annotations

import random
from typing import Literal

import torch
from pydantic import Field, field_validator

from densekd.data.base import Sample
from densekd.data.keyed import keyed_seed
from densekd.data.scene_compose import compose
from densekd.data.scene_paint import paint
from densekd.errors import ArgumentError, DataError
from densekd.spec import Spec

SMALLEST, LARGEST = 32, 2048
CLASSES = ("sky", "building", "road", "pavement", "tree", "car", "person", "pole", "sign", "rider")
PALETTE = (
    (70, 130, 180),
    (70, 70, 70),
    (128, 64, 128),
    (244, 35, 232),
    (107, 142, 35),
    (0, 0, 142),
    (220, 20, 60),
    (153, 153, 153),
    (220, 220, 0),
    (255, 120, 0),
)


def _check_size(size: tuple[int, int]) -> None:
    if len(size) != 2 or not all(isinstance(v, int) and SMALLEST <= v <= LARGEST for v in size):
        raise ArgumentError(
            f"the size of scenes must be (height, width) in pixels, each from {SMALLEST} to {LARGEST}; got {size!r}"
        )


def _check_count(count: int) -> None:
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ArgumentError(f"the number of scenes must be a whole number of at least 1; got {count!r}")


class ScenesSpec(Spec):
    """The part of a recipe that asks for procedural street scenes."""

    name: Literal["scenes"] = Field("scenes", description="procedural street scenes")
    train_count: int = Field(600, description="number of training scenes")
    val_count: int = Field(300, description="number of validation scenes; none of them is a training scene")
    size: tuple[int, int] = Field((96, 128), description="height and width in pixels")
    seed: int = Field(0, description="which collection of scenes; independent of a run's seed")

    @field_validator("size")
    @classmethod
    def _size_fits(cls, size: tuple[int, int]) -> tuple[int, int]:
        _check_size(size)
        return size

    @field_validator("train_count", "val_count")
    @classmethod
    def _count_fits(cls, count: int) -> int:
        _check_count(count)
        return count


class ScenesSet:
    """Street scenes with exact labels of ten classes; implements `SegmentationSet`.

    Scene `index` of a split is drawn by a generator keyed by (seed, "scene", split, index): it is the same
    picture in every process and at every call, whatever was drawn before, and a split with more scenes begins
    with those of a smaller one. No scene is in two of the splits "train", "val" and "unlabelled"; those of the last
    have their labels too (`data.unlabelled` of a recipe drops them). Nothing is void: no label is `ignore_index`.
    """

    def __init__(
        self,
        split: Literal["train", "val", "unlabelled"],
        count: int,
        size: tuple[int, int] = (96, 128),
        seed: int = 0,
    ) -> None:
        """Raises ArgumentError when the split is unknown, the count is below 1, or the size does not fit."""
        if split not in ("train", "val", "unlabelled"):
            raise ArgumentError(f"scenes have the splits 'train', 'val' and 'unlabelled'; got {split!r}")
        _check_count(count)
        _check_size(size)
        self.split, self.count, self.size, self.seed = split, count, size, seed

    @property
    def classes(self) -> tuple[str, ...]:
        """The ten class names, in the order of their ids."""
        return CLASSES

    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]:
        """A colour for each class, close to those of Cityscapes."""
        return PALETTE

    @property
    def ignore_index(self) -> int:
        """255; no scene uses it."""
        return 255

    def __len__(self) -> int:
        return self.count

    def name_of(self, index: int) -> str:
        """For example `train-00042`."""
        return f"{self.split}-{self._checked(index):05d}"

    def load(self, index: int) -> Sample:
        """Draws scene `index`: image uint8 (3, H, W), label int64 (H, W). Raises DataError outside 0..count-1."""
        rng = random.Random(keyed_seed(self.seed, "scene", self.split, self._checked(index)))
        image, label = paint(compose(rng), self.size)
        return Sample(torch.from_numpy(image.transpose(2, 0, 1).copy()), torch.from_numpy(label).long())

    def _checked(self, index: int) -> int:
        if not 0 <= index < self.count:
            raise DataError(f"the {self.split} scenes are numbered 0 to {self.count - 1}; there is no scene {index}")
        return index
