"""Images without labels: found, read with every pixel void, and placed behind the labelled ones.

Void labels are all it takes: the task's loss leaves those pixels out, while the mask `valid`, which distillation
looks at, is about padding alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from densekd.data.base import Sample, SegmentationSet
from densekd.data.check import complain
from densekd.data.folder import Scan, by_stem, kept_stems, listed_stems, nothing_left
from densekd.data.images import IMAGE_SUFFIXES, read_image
from densekd.data.specs import UnlabelledFilesSpec
from densekd.errors import ConfigError, DataError, no_folder

# Folders of masks, and the folder of their images.
_MASKS_BESIDE = {
    "masks": "images",
    "annotations": "images",
    "gtFine": "leftImg8bit",
    "SegmentationClass": "JPEGImages",
    "SegmentationClassAug": "JPEGImages",
    "SegmentationObject": "JPEGImages",
    "trainannot": "train",
    "valannot": "val",
    "testannot": "test",
    "LabeledApproved_full": "701_StillsRaw_full",
}


def scan_images(spec: UnlabelledFilesSpec) -> tuple[dict[str, Path], list[str]]:
    """The images of `spec` by stem, in the order of the stems, and notices about other files.

    Raises:
        DataError: the folder is missing or holds masks too, a file is listed and not there, two files have one stem,
            or nothing is left.
    """
    root = Path(spec.root).expanduser()
    if not root.is_dir():
        raise DataError(f"{root}: {no_folder(root)} (data.unlabelled.root)")
    listed = None if spec.list is None else listed_stems(root, spec.list)
    scan = Scan()
    images, others = by_stem(root, IMAGE_SUFFIXES, scan)
    _refuse_masks(root, images.values())
    files = len(images) + len(scan.problems)
    absent = sorted((listed or set()) - images.keys())
    scan.problems += [f"{root / stem}: in {spec.list}, but no such image (.jpg, .png, .tif)" for stem in absent]
    complain(scan.problems, files, "images without masks")
    kept = kept_stems(images, spec, listed)
    if not kept:
        raise DataError(f"{root}: no images without masks{nothing_left(spec, len(images))}")
    strange = [path.name for path in others.values() if spec.list is None or path != root / spec.list]
    notices = []
    if strange:
        notices.append(f"unlabelled: {len(strange)} files are no images and are left out: {', '.join(strange[:3])}")
    return {stem: images[stem] for stem in sorted(kept)}, notices


def _refuse_masks(root: Path, files: Iterable[Path]) -> None:
    """Refuse files of a folder of masks that stands beside its folder of images, at any depth below `root`."""
    seen: set[Path] = set()
    for file in files:
        for folder in file.parents:
            if folder in seen:
                break
            seen.add(folder)
            images = _MASKS_BESIDE.get(folder.name)
            if images is not None and (folder.parent / images).is_dir():
                raise DataError(
                    f"{root}: {folder} holds masks, and they would be taken for images; set data.unlabelled.root to "
                    f"{folder.parent / images}"
                )
            if folder == root:
                break


class _Void:
    """Classes, colours and void of the set `like`; every label is void."""

    def __init__(self, like: SegmentationSet) -> None:
        self.like = like

    @property
    def classes(self) -> tuple[str, ...]:
        return self.like.classes

    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]:
        return self.like.palette

    @property
    def ignore_index(self) -> int:
        return self.like.ignore_index

    def _void(self, image: Tensor) -> Sample:
        return Sample(image, torch.full(tuple(image.shape[1:]), self.ignore_index, dtype=torch.int64))


class ImageSet(_Void):
    """Image files as a data set in which every pixel is void.

    Args:
        like: the labelled set they are mixed with.
        images: files by stem, as `scan_images` finds them.
    """

    def __init__(self, like: SegmentationSet, images: Mapping[str, Path]) -> None:
        super().__init__(like)
        self.files = tuple(images.items())

    def __len__(self) -> int:
        return len(self.files)

    def load(self, index: int) -> Sample:
        """Read image number `index`.

        Raises:
            DataError: it cannot be read (files may have changed since they were checked).
        """
        return self._void(read_image(self.files[index][1]))

    def name_of(self, index: int) -> str:
        """The file stem."""
        return self.files[index][0]


class WithoutLabels(_Void):
    """A data set whose labels are dropped."""

    def __len__(self) -> int:
        return len(self.like)

    def load(self, index: int) -> Sample:
        """The image of number `index`, every pixel void."""
        return self._void(self.like.load(index).image)

    def name_of(self, index: int) -> str:
        """As the set's own."""
        return self.like.name_of(index)


class Joined:
    """Labelled images, numbered as they were, and the unlabelled ones behind them."""

    def __init__(self, labelled: SegmentationSet, unlabelled: SegmentationSet) -> None:
        self.labelled, self.unlabelled = labelled, unlabelled

    @property
    def classes(self) -> tuple[str, ...]:
        return self.labelled.classes

    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]:
        return self.labelled.palette

    @property
    def ignore_index(self) -> int:
        return self.labelled.ignore_index

    def __len__(self) -> int:
        return len(self.labelled) + len(self.unlabelled)

    def load(self, index: int) -> Sample:
        """Sample `index` of the labelled images, or `index - len(labelled)` of the others."""
        which, place = self.place_of(index)
        return which.load(place)

    def name_of(self, index: int) -> str:
        """As the set's own to which it belongs."""
        which, place = self.place_of(index)
        return which.name_of(place)

    def place_of(self, index: int) -> tuple[SegmentationSet, int]:
        """The set that sample `index` is of, and its number there."""
        first = len(self.labelled)
        return (self.labelled, index) if index < first else (self.unlabelled, index - first)


def unlabelled_per_batch(ratio: float, batch_size: int) -> int:
    """Unlabelled images beside `batch_size` labelled ones, so that they are a share of `ratio` of the batch.

    `batch_size * ratio / (1 - ratio)`, to the nearest whole number.

    Raises:
        ConfigError: that number is 0.
    """
    count = round(batch_size * ratio / (1 - ratio))
    if count == 0:
        raise ConfigError(
            f"data.unlabelled.ratio: {ratio:g} of a batch with {batch_size} labelled images is less than half an "
            f"image; one image is {1 / (batch_size + 1):.3g} of it: raise the ratio, or train.batch_size"
        )
    return count
