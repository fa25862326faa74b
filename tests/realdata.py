"""Tiny data sets in the layouts and encodings of the published ones, for tests of what reads them.

Names of folders and files, modes and palettes of PNGs, MATLAB structs and lists are the real ones; pictures are blocks
of noise. The label values are drawn from all that the real files hold, void among them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Values = Sequence[Any]
Size = tuple[int, int]
SMALL: Size = (24, 48)

COCO_ABSENT = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
COCO_RAW = tuple(value for value in range(182) if value not in COCO_ABSENT)
CAMVID_COLORS = ((128, 128, 128), (0, 128, 64), (0, 0, 64), (192, 0, 64), (64, 192, 128), (192, 192, 0), (0, 64, 64))


def make(name: str, root: Path, **options: Any) -> dict[str, Any]:
    """Write the data set `name` below `root`; the `data` part of a recipe that reads it with its usual splits."""
    return {"name": name, "root": str(WRITERS[name](root, **options))}


def voc_palette() -> list[int]:
    """The 256 colours of VOC's PNGs, by its rule: three bits of the index at a time, highest bit of a colour first."""
    found = []
    for index in range(256):
        color = [0, 0, 0]
        for place in range(8):
            for channel in range(3):
                color[channel] |= ((index >> (3 * place + channel)) & 1) << (7 - place)
        found += color
    return found


def blocks(key: str, values: Values, size: Size = SMALL) -> np.ndarray:
    """A label of 4 x 4 blocks, each of one of `values`; the first values of a key's own order surely occur."""
    generator = np.random.default_rng(sum(map(ord, key)))
    height, width = -(-size[0] // 4), -(-size[1] // 4)
    order = generator.permutation(len(values))
    places = np.concatenate([order, generator.integers(0, len(values), height * width)])[: height * width]
    chosen = np.array(values)[places].reshape(height, width, *np.shape(values)[1:])
    return chosen.repeat(4, 0).repeat(4, 1)[: size[0], : size[1]].astype(np.uint8)


def write_image(path: Path, size: Size = SMALL) -> Path:
    """A picture of noisy blocks, as a JPEG or a PNG after its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colors = np.random.default_rng(len(path.name)).integers(0, 256, (9, 3))
    noise = np.random.default_rng(7).integers(-9, 9, (*size, 3))
    Image.fromarray((blocks(path.stem, colors, size) + noise).clip(0, 255).astype(np.uint8)).save(path)
    return path


def write_grey(path: Path, label: np.ndarray) -> Path:
    """A PNG of one channel (mode L), or of three where the label is of colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(label).save(path)
    return path


def write_indexed(path: Path, label: np.ndarray) -> Path:
    """A palette PNG (mode P) with VOC's colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(label).convert("L")
    picture.putpalette(voc_palette())
    picture.save(path)
    return path


def write_mat(path: Path, label: np.ndarray) -> Path:
    """A file of SBD's `cls`: the struct GTcls with Boundaries, Segmentation and CategoriesPresent."""
    from scipy.io import savemat

    path.parent.mkdir(parents=True, exist_ok=True)
    present = np.setdiff1d(label, [0])[:, None]
    boundaries = np.empty((20, 1), object)
    for number in range(20):
        boundaries[number, 0] = (label == number + 1).astype(np.uint8)
    struct = {"Boundaries": boundaries, "Segmentation": label, "CategoriesPresent": present}
    savemat(str(path), {"GTcls": struct}, do_compression=True)
    return path


def write_lines(path: Path, lines: Sequence[str]) -> Path:
    """A list file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def cityscapes(
    root: Path,
    train: int = 3,
    val: int = 2,
    test: int = 1,
    size: Size = SMALL,
    kinds: Sequence[str] = ("labelIds",),
    cities: Sequence[str] = ("aachen", "bochum"),
) -> Path:
    """leftImg8bit and gtFine; cities take turns. Kinds: labelIds (0 to 33), labelTrainIds (0 to 18 and 255)."""
    held = {"labelIds": tuple(range(34)), "labelTrainIds": (*range(19), 255)}
    for split, count in (("train", train), ("val", val), ("test", test)):
        for number in range(count):
            city = cities[number % len(cities)] if split == "train" else {"val": "frankfurt", "test": "berlin"}[split]
            stem = f"{city}/{city}_{number:06d}_000019"
            write_image(root / "leftImg8bit" / split / f"{stem}_leftImg8bit.png", size)
            for kind in kinds if split != "test" else ():
                write_grey(root / "gtFine" / split / f"{stem}_gtFine_{kind}.png", blocks(stem, held[kind], size))
            if split != "test":
                write_image(root / "gtFine" / split / f"{stem}_gtFine_color.png", (4, 4))
                (root / "gtFine" / split / f"{stem}_gtFine_polygons.json").write_text("{}")
    return root


def voc(
    root: Path,
    train: int = 3,
    val: int = 2,
    added: int = 2,
    size: Size = SMALL,
    masks: str = "png",
    lists: bool = False,
) -> Path:
    """VOCdevkit/VOC2012, whose path comes back, and masks for `added` images more and for VOC's own.

    Args:
        masks: png: SegmentationClassAug (mode L, as it is passed around); mat: benchmark_RELEASE beside VOCdevkit;
            none: neither.
        lists: also ImageSets/Segmentation/train_aug.txt.
    """
    place = root / "VOCdevkit" / "VOC2012"
    stems = {
        "train": [f"2007_{number:06d}" for number in range(train)],
        "val": [f"2008_{number:06d}" for number in range(val)],
        "added": [f"2009_{number:06d}" for number in range(added)],
    }
    segmentation = place / "ImageSets" / "Segmentation"
    for split in ("train", "val"):
        write_lines(segmentation / f"{split}.txt", stems[split])
    write_lines(segmentation / "trainval.txt", [*stems["train"], *stems["val"]])
    if lists:
        write_lines(segmentation / "train_aug.txt", [*stems["train"], *stems["added"]])
    for split, names in stems.items():
        for stem in names:
            write_image(place / "JPEGImages" / f"{stem}.jpg", size)
            if split != "added":
                write_indexed(place / "SegmentationClass" / f"{stem}.png", blocks(stem, (*range(21), 255), size))
            without_border = blocks(stem, range(21), size)
            if masks == "png":
                write_grey(place / "SegmentationClassAug" / f"{stem}.png", without_border)
            elif masks == "mat":
                write_mat(root / "benchmark_RELEASE" / "dataset" / "cls" / f"{stem}.mat", without_border)
    return place


def ade20k(root: Path, train: int = 3, val: int = 2, size: Size = SMALL) -> Path:
    """ADEChallengeData2016, whose path comes back: 0 for void, 1 to 150."""
    place = root / "ADEChallengeData2016"
    for split, short, count in (("training", "train", train), ("validation", "val", val)):
        for number in range(1, count + 1):
            stem = f"ADE_{short}_{number:08d}"
            write_image(place / "images" / split / f"{stem}.jpg", size)
            write_grey(place / "annotations" / split / f"{stem}.png", blocks(stem, range(151), size))
    (place / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tName\n")
    return place


def camvid(root: Path, train: int = 4, val: int = 2, test: int = 2, size: Size = SMALL, layout: str = "segnet") -> Path:
    """CamVid, whose path comes back: `segnet`, `folders` (void 255), or `original` (colours, one folder, lists)."""
    place = root / "CamVid"
    drives = ("0001TP", "0006R0", "Seq05VD")
    for split, first, count in (("train", 0, train), ("val", 100, val), ("test", 200, test)):
        stems = [f"{drives[number % 3]}_{first + number:06d}" for number in range(count)]
        for stem in stems:
            if layout == "segnet":
                write_image(place / split / f"{stem}.png", size)
                write_grey(place / f"{split}annot" / f"{stem}.png", blocks(stem, range(12), size))
            elif layout == "folders":
                write_image(place / split / "images" / f"{stem}.jpg", size)
                write_grey(place / split / "masks" / f"{stem}.png", blocks(stem, (*range(11), 255), size))
            else:
                write_image(place / "701_StillsRaw_full" / f"{stem}.png", size)
                write_grey(
                    place / "LabeledApproved_full" / f"{stem}_L.png", blocks(stem, (*CAMVID_COLORS, (0, 0, 0)), size)
                )
        both = [f"/SegNet/CamVid/{split}/{stem}.png /SegNet/CamVid/{split}annot/{stem}.png" for stem in stems]
        if layout != "folders":
            write_lines(place / f"{split}.txt", both)
    return place


def cocostuff(root: Path, train: int = 3, val: int = 2, size: Size = SMALL, kinds: Sequence[str] = ("raw",)) -> Path:
    """images and annotations: raw (0 to 181 without the absent ids, and 255), labelTrainIds (0 to 170 and 255)."""
    held = {"raw": (".png", (*COCO_RAW, 255)), "labelTrainIds": ("_labelTrainIds.png", (*range(171), 255))}
    for split, first, count in (("train2017", 9, train), ("val2017", 139, val)):
        for number in range(first, first + count):
            stem = f"{number:012d}"
            write_image(root / "images" / split / f"{stem}.jpg", size)
            for kind in kinds:
                ending, values = held[kind]
                write_grey(root / "annotations" / split / f"{stem}{ending}", blocks(stem, values, size))
    return root


WRITERS: dict[str, Callable[..., Path]] = {
    "cityscapes": cityscapes,
    "voc": voc,
    "ade20k": ade20k,
    "camvid": camvid,
    "cocostuff": cocostuff,
}
