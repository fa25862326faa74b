"""The `data` part of a recipe made real: files found and checked, or scenes set up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from densekd.data.base import SegmentationSet
from densekd.data.check import Facts, Pair, Progress, check_pair, look_at_all
from densekd.data.find import data_of
from densekd.data.folder import FolderSet
from densekd.data.found import overlaps, seen_unlabelled
from densekd.data.images import check_image
from densekd.data.kinds import AnyDataSpec, FilesSpec
from densekd.data.left_out import LeftOut, in_words, settle
from densekd.data.masks import MaskReader
from densekd.data.memory import InMemory
from densekd.data.part import Part
from densekd.data.scenes import ScenesSet
from densekd.data.specs import AugmentSpec, Color, OnError, ScenesDataSpec
from densekd.data.unlabelled import ImageSet, WithoutLabels, scan_images
from densekd.errors import DataError

_NAMED = 10


@dataclass(frozen=True)
class DataBundle:
    """The data sets of a run. `notices` are lines for the user: what was left out, split, or looks strange.

    `unlabelled`: images whose every pixel is void, for distillation; None where there are none or nobody asked.
    `left_out`: what is not in these sets because its files cannot be used, by split; splits that lack nothing are not
    there.
    """

    train: SegmentationSet
    val: SegmentationSet
    extra: dict[str, SegmentationSet]
    classes: tuple[str, ...]
    palette: tuple[Color, ...]
    ignore_index: int
    notices: list[str] = field(default_factory=list)
    unlabelled: SegmentationSet | None = None
    left_out: dict[str, LeftOut] = field(default_factory=dict)

    def lacking(self, which: SegmentationSet) -> int:
        """Images left out of one of these sets."""
        sets = {"train": self.train, "val": self.val, "unlabelled": self.unlabelled, **self.extra}
        return sum(one.count for name, one in self.left_out.items() if sets.get(name) is which)


def build_data(
    spec: AnyDataSpec,
    *,
    progress: Progress | None = None,
    unlabelled: bool = True,
    one_size: bool = True,
) -> DataBundle:
    """The data sets that a recipe's `data` describes.

    Args:
        spec: a folder of files, a benchmark, or drawn scenes.
        progress: called with (files checked, files in all) while they are checked.
        unlabelled: also the images of `spec.unlabelled`, which only a distillation uses; False leaves them unopened.
        one_size: training images must form batches; False where nothing is trained, so that they may differ in size.

    Raises:
        DataError: files are missing, unreadable or do not fit; up to ten are listed with their reasons.
        ConfigError: classes, palette and masks contradict each other.
    """
    if not unlabelled:
        spec = spec.model_copy(update={"unlabelled": None})
    bundle = _build_scenes(spec) if isinstance(spec, ScenesDataSpec) else _build_files(spec, progress, one_size)
    if not spec.in_memory:
        return bundle
    extra: dict[str, SegmentationSet] = {name: InMemory(one) for name, one in bundle.extra.items()}
    more = None if bundle.unlabelled is None else InMemory(bundle.unlabelled)
    return replace(bundle, train=InMemory(bundle.train), val=InMemory(bundle.val), extra=extra, unlabelled=more)


def _build_scenes(spec: ScenesDataSpec) -> DataBundle:
    drawn = ScenesSet("train", spec.train_count, spec.size, spec.seed)
    train: SegmentationSet = drawn
    val: SegmentationSet = ScenesSet("val", spec.val_count, spec.size, spec.seed)
    notices = []
    if spec.holdout is not None:
        first = spec.train_count - min(max(1, round(spec.holdout.fraction * spec.train_count)), spec.train_count - 1)
        train, val = Part(drawn, range(first)), Part(drawn, range(first, spec.train_count))
        notices = [f"data.holdout: training on {len(train)} scenes, scored on {len(val)} of the training set"]
    bundle = DataBundle(train, val, {}, drawn.classes, drawn.palette, drawn.ignore_index, notices)
    if spec.unlabelled is None:
        return bundle
    return replace(
        bundle, unlabelled=WithoutLabels(ScenesSet("unlabelled", spec.unlabelled.count, spec.size, spec.seed))
    )


def _build_files(spec: FilesSpec, progress: Progress | None, one_size: bool) -> DataBundle:
    found = data_of(spec)
    splits, reader = found.splits, found.reader
    notices = [*found.notices, *overlaps(splits)]
    images, said = ({}, []) if spec.unlabelled is None else scan_images(spec.unlabelled)
    notices += [*said, *seen_unlabelled(splits, images)]
    left_out: dict[str, LeftOut] = {}
    if spec.check:
        seen = dict(zip(found.pairs, look_at_all(found.pairs, lambda p: check_pair(p, reader), progress), strict=True))
        left_out = settle(splits, seen, spec.on_error, "image-mask pairs")
        facts = {pair: one for pair, one in seen.items() if isinstance(one, Facts)}
        splits = {name: [pair for pair in pairs if pair in facts] for name, pairs in splits.items()}
        images, sizes, more_left_out = _checked_images(images, spec.on_error, progress)
        left_out |= more_left_out
        notices += [_counted(splits, len(images)), *in_words(left_out)]
        for name, pairs in splits.items():
            notices += _strange(name, [facts[pair] for pair in pairs], reader)
        sizes += [(fact.height, fact.width) for fact in (facts[pair] for pair in splits["train"])]
        if one_size:
            _refuse_mixed_sizes(sizes, spec.augment, "training images" + (", labelled or not," if images else ""))
    else:
        notices.append("data.check is off: files are opened only when they are used")
    sets = {name: FolderSet(pairs, reader, found.palette) for name, pairs in splits.items()}
    extra: dict[str, SegmentationSet] = {name: one for name, one in sets.items() if name not in ("train", "val")}
    more = ImageSet(sets["train"], images) if images else None
    return DataBundle(
        sets["train"], sets["val"], extra, reader.classes, found.palette, reader.ignore_index, notices, more, left_out
    )


def _checked_images(
    images: dict[str, Path], on_error: OnError, progress: Progress | None
) -> tuple[dict[str, Path], list[tuple[int, int]], dict[str, LeftOut]]:
    """The unlabelled images that can be used, their (height, width), and what is left out of them."""
    paths = list(images.values())
    seen = dict(zip(paths, look_at_all(paths, check_image, progress), strict=True)) if paths else {}
    left_out = settle({"unlabelled": paths}, seen, on_error, "images without masks")
    sizes = {path: one for path, one in seen.items() if not isinstance(one, DataError)}
    return {stem: path for stem, path in images.items() if path in sizes}, list(sizes.values()), left_out


def _counted(splits: Mapping[str, Sequence[Pair]], unlabelled: int) -> str:
    line = "files checked: " + ", ".join(f"{name} {len(pairs)}" for name, pairs in splits.items()) + " pairs"
    return f"{line}, unlabelled {unlabelled} images" if unlabelled else line


def _strange(name: str, facts: Sequence[Facts], reader: MaskReader) -> list[str]:
    pixels, classes = torch.stack([found.pixels for found in facts]).sum(0), reader.classes
    absent = [classes[i] for i in range(len(classes)) if pixels[i] == 0]
    found = []
    if len(absent) == len(classes):
        raise DataError(f"{name}: every pixel of its {len(facts)} masks is void: there is nothing to learn or score")
    if absent:
        more = f" and {len(absent) - _NAMED} more classes" if len(absent) > _NAMED else ""
        line = f"{name}: no pixel of {', '.join(map(repr, absent[:_NAMED]))}{more}"
        if len(classes) == 2 and pixels[-1] > 0 and reader.kind is None:
            line += ", only void; if 255 means foreground: masks.format=id_map and masks.id_map={0: 0, 255: 1}"
        found.append(line)
    return found


def _refuse_mixed_sizes(found: Sequence[tuple[int, int]], augment: AugmentSpec, what: str) -> None:
    sizes = sorted({augment.resized(*size) for size in found})
    if augment.crop is None and len(sizes) > 1:
        (low_h, low_w), (high_h, high_w) = sizes[0], sizes[-1]
        raise DataError(
            f"{what} have {len(sizes)} sizes, from {low_h}x{low_w} to {high_h}x{high_w} (height x width), "
            "and cannot form a batch: set data.augment.crop, or data.augment.size"
        )
