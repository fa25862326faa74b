"""Which images a run began with: a resume that finds others would go on with another order of them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from densekd.data.base import SegmentationSet
from densekd.data.build import DataBundle
from densekd.errors import RunError
from densekd.records import ImageList, LeftOutRecord, RunRecord

_LISTED = 100


def images_of(data: DataBundle) -> dict[str, ImageList]:
    """The images that decide what is learned and which student is the best: train, val, and unlabelled if any."""
    sets = {"train": data.train, "val": data.val, "unlabelled": data.unlabelled}
    return {name: _listed(which) for name, which in sets.items() if which is not None}


def _listed(which: SegmentationSet) -> ImageList:
    digest = hashlib.sha256()
    for index in range(len(which)):
        digest.update(which.name_of(index).encode("utf-8", "surrogatepass") + b"\0")  # no file's name holds a zero
    return ImageList(count=len(which), sha256=digest.hexdigest())


def left_out_of(data: DataBundle) -> dict[str, LeftOutRecord]:
    """What the check left out of each set, with up to a hundred of the reasons."""
    return {
        name: LeftOutRecord(count=one.count, of=one.of, problems=list(one.problems[:_LISTED]))
        for name, one in data.left_out.items()
    }


def require_same_images(folder: Path, before: RunRecord, now: dict[str, ImageList]) -> None:
    """Refuse to go on with other images than the run began with.

    Names and their order are compared, not the files' contents. A record of an earlier version holds none: then nothing
    is compared.

    Raises:
        RunError: images came or went, or have other names.
    """
    if not before.images:
        return
    changed = [
        f"{name}: {_count(before.images.get(name))} when it began, now {_count(now.get(name))}"
        for name in dict.fromkeys([*before.images, *now])
        if before.images.get(name) != now.get(name)
    ]
    if changed:
        raise RunError(
            f"{folder}: the images are other ones than those this run began with ({'; '.join(changed)}): their order "
            "would be another too; put them back, or start again with --force"
        )


def _count(images: ImageList | None) -> str:
    return "0 images" if images is None else f"{images.count} images (names {images.sha256[:8]})"
