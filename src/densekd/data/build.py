"""The `data` part of a recipe made real: files found and checked, or scenes set up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from densekd.data.base import SegmentationSet
from densekd.data.check import Facts, Pair, Progress, check_images, check_pairs, complain
from densekd.data.folder import FolderSet, Scan, auto_split, scan_split
from densekd.data.masks import MaskReader, colors_of
from densekd.data.memory import InMemory
from densekd.data.palette import made_palette
from densekd.data.part import Part
from densekd.data.scenes import ScenesSet
from densekd.data.specs import (
    AugmentSpec,
    AutoSplitSpec,
    Color,
    FolderSpec,
    ScenesDataSpec,
    SplitSpec,
    check_names,
)
from densekd.data.unlabelled import ImageSet, WithoutLabels, scan_images
from densekd.errors import ConfigError, DataError


@dataclass(frozen=True)
class DataBundle:
    """The data sets of a run. `notices` are lines for the user: what was left out, split, or looks strange.

    `unlabelled`: images whose every pixel is void, for distillation; None where there are none or nobody asked.
    """

    train: SegmentationSet
    val: SegmentationSet
    extra: dict[str, SegmentationSet]
    classes: tuple[str, ...]
    palette: tuple[Color, ...]
    ignore_index: int
    notices: list[str] = field(default_factory=list)
    unlabelled: SegmentationSet | None = None


def build_data(
    spec: FolderSpec | ScenesDataSpec,
    *,
    progress: Progress | None = None,
    unlabelled: bool = True,
    one_size: bool = True,
) -> DataBundle:
    """The data sets that a recipe's `data` describes.

    Args:
        spec: a folder of files or drawn scenes.
        progress: called with (files checked, files in all) while a folder is checked.
        unlabelled: also the images of `spec.unlabelled`, which only a distillation uses; False leaves them unopened.
        one_size: training images must form batches; False where nothing is trained, so that they may differ in size.

    Raises:
        DataError: files are missing, unreadable or do not fit; up to ten are listed with their reasons.
        ConfigError: classes, palette and masks contradict each other.
    """
    if not unlabelled:
        spec = spec.model_copy(update={"unlabelled": None})
    bundle = _build_folder(spec, progress, one_size) if isinstance(spec, FolderSpec) else _build_scenes(spec)
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


def _read_classes(spec: FolderSpec, root: Path) -> tuple[str, ...]:
    if spec.classes is not None:
        return spec.classes
    path = root / "classes.txt"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise DataError(
            f"{root}: which classes? give data.classes, or write {path} with one name a line in the order of the ids"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    try:
        return check_names(tuple(line.strip() for line in lines if line.strip()))
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None


def _palette(spec: FolderSpec, classes: tuple[str, ...]) -> tuple[Color, ...]:
    if spec.palette is not None:
        if len(spec.palette) != len(classes):
            raise ConfigError(f"data.palette: {len(spec.palette)} colours for {len(classes)} classes")
        return spec.palette
    if spec.masks.colors is not None:
        return tuple(colors_of(spec.masks.colors[name])[0] for name in classes)
    return made_palette(len(classes))


def _build_folder(spec: FolderSpec, progress: Progress | None, one_size: bool) -> DataBundle:
    root = Path(spec.root).expanduser()
    if not root.is_dir():
        raise DataError(f"{root}: no such folder (data.root)")
    classes = _read_classes(spec, root)
    if 0 <= spec.ignore_index < len(classes):
        taken = classes[spec.ignore_index]
        raise ConfigError(f"data.ignore_index: {spec.ignore_index} is the id of {taken!r}; choose 255 or another")
    reader = MaskReader(spec.masks, classes, spec.ignore_index)
    palette = _palette(spec, classes)
    splits, notices = _splits(spec, root)
    notices += _overlaps(splits)
    images, said = ({}, []) if spec.unlabelled is None else scan_images(spec.unlabelled)
    notices += [*said, *_seen_unlabelled(splits, images)]
    if spec.check:
        unique = list({pair.image: pair for pairs in splits.values() for pair in pairs}.values())
        facts = {pair.image: found for pair, found in zip(unique, check_pairs(unique, reader, progress), strict=True)}
        sizes = check_images(list(images.values()), progress) if images else []
        notices.append(_counted(splits, len(images)))
        for name, pairs in splits.items():
            notices += _strange(name, [facts[pair.image] for pair in pairs], classes)
        sizes += [(found.height, found.width) for found in (facts[pair.image] for pair in splits["train"])]
        if one_size:
            _refuse_mixed_sizes(sizes, spec.augment, "training images" + (", labelled or not," if images else ""))
    else:
        notices.append("data.check is off: files are opened only when they are used")
    sets = {name: FolderSet(pairs, reader, palette) for name, pairs in splits.items()}
    extra: dict[str, SegmentationSet] = {name: sets[name] for name in spec.extra if name in sets}
    more = ImageSet(sets["train"], images) if images else None
    return DataBundle(sets["train"], sets["val"], extra, classes, palette, spec.ignore_index, notices, more)


def _splits(spec: FolderSpec, root: Path) -> tuple[dict[str, list[Pair]], list[str]]:
    """The pairs of train, val and every further set; all that is wrong with the file names in one error."""
    asked: dict[str, SplitSpec] = {"train": spec.train}
    if spec.holdout is None:
        if spec.auto_split is None:
            asked["val"] = spec.val or SplitSpec()
        asked |= spec.extra
    scans: dict[str, Scan] = {name: scan_split(root, name, split) for name, split in asked.items()}
    problems = dict.fromkeys(problem for scan in scans.values() for problem in scan.problems)
    complain(list(problems), sum(len(scan.pairs) for scan in scans.values()))
    splits = {name: scan.pairs for name, scan in scans.items()}
    notices = [notice for scan in scans.values() for notice in scan.notices]
    if spec.auto_split is not None:
        train, val, said = auto_split(splits["train"], spec.auto_split)
        splits = {**splits, "train": train, "val": val}
        notices.append(said)
    if spec.holdout is not None:
        splits, said = _held_out(splits["train"], spec)
        notices.append(said)
    return splits, notices


def _held_out(pairs: list[Pair], spec: FolderSpec) -> tuple[dict[str, list[Pair]], str]:
    """Training pairs and the part of them that takes the place of the validation set."""
    held = spec.holdout
    pattern = None if held is None else held.group or (spec.auto_split.group if spec.auto_split else None)
    if held is None or pattern is None:
        raise ConfigError("data.holdout.group: missing; give the pattern that finds a file's group")
    how = AutoSplitSpec(group=pattern, fraction=held.fraction, seed=held.seed)
    train, val, said = auto_split(pairs, how, key="data.holdout")
    return {"train": train, "val": val}, f"{said}; the validation set is not opened"


def _overlaps(splits: Mapping[str, Sequence[Pair]]) -> list[str]:
    trained = {pair.image.resolve() for pair in splits["train"]}
    found = []
    for name, pairs in splits.items():
        shared = sum(pair.image.resolve() in trained for pair in pairs)
        if name != "train" and shared:
            found.append(f"{name}: {shared} of {len(pairs)} images are also in the training set")
    return found


def _seen_unlabelled(splits: Mapping[str, Sequence[Pair]], images: Mapping[str, Path]) -> list[str]:
    """Which of the unlabelled images are used with their labels too, for training or for scores."""
    files = {path.resolve() for path in images.values()}
    found = []
    for name, pairs in splits.items() if files else ():
        shared = sum(pair.image.resolve() in files for pair in pairs)
        if shared:
            flaw = "" if name == "train" else ": the student sees them in training, though not their labels"
            found.append(f"{name}: {shared} of {len(pairs)} images are also among the unlabelled{flaw}")
    return found


def _counted(splits: Mapping[str, Sequence[Pair]], unlabelled: int) -> str:
    line = "files checked: " + ", ".join(f"{name} {len(pairs)}" for name, pairs in splits.items()) + " pairs"
    return f"{line}, unlabelled {unlabelled} images" if unlabelled else line


def _strange(name: str, facts: Sequence[Facts], classes: tuple[str, ...]) -> list[str]:
    pixels = torch.stack([found.pixels for found in facts]).sum(0)
    absent = [classes[i] for i in range(len(classes)) if pixels[i] == 0]
    found = []
    if len(absent) == len(classes):
        raise DataError(f"{name}: every pixel of its {len(facts)} masks is void: there is nothing to learn or score")
    if absent:
        line = f"{name}: no pixel of {', '.join(map(repr, absent))}"
        if len(classes) == 2 and pixels[-1] > 0:
            line += ", only void; if 255 means foreground: masks.format=id_map and masks.id_map={0: 0, 255: 1}"
        found.append(line)
    return found


def _refuse_mixed_sizes(found: Sequence[tuple[int, int]], augment: AugmentSpec, what: str) -> None:
    sizes = sorted(set(found))
    if augment.size is None and augment.crop is None and len(sizes) > 1:
        (low_h, low_w), (high_h, high_w) = sizes[0], sizes[-1]
        raise DataError(
            f"{what} have {len(sizes)} sizes, from {low_h}x{low_w} to {high_h}x{high_w} (height x width), "
            "and cannot form a batch: set data.augment.crop, or data.augment.size"
        )
