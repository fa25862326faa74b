"""Pascal VOC 2012: 20 things and the background, with the images and masks that SBD adds (`train_aug`).

Facts: the VOC development kit; SBD (Hariharan et al., ICCV 2011); the list of 10,582 as mmsegmentation makes it: VOC's
train with VOC's own masks, which have a void border, and SBD's train and val without VOC's train and val.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from densekd.data.benchmarks.benchmark import Benchmark, Encoding, Layout
from densekd.data.benchmarks.layout import by_name, matched, read_stems
from densekd.data.benchmarks.sbd import SbdReader, find_sbd
from densekd.data.benchmarks.spec import BenchmarkSpec
from densekd.data.folder import Scan
from densekd.data.specs import Color
from densekd.errors import DataError

_TEXT = """
background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant
sheep sofa train tvmonitor
"""
_NAMES = _TEXT.split()
_LISTS = "ImageSets/Segmentation"
_OWN, _ADDED = "SegmentationClass", "SegmentationClassAug"
# CIRKD's and DeepLab's names for the list of all 10,582, and mmsegmentation's for the 9,118 that are SBD's alone.
_WHOLE, _ONLY_ADDED = ("train_aug.txt", "trainaug.txt"), "aug.txt"


def voc_color(number: int) -> Color:
    """VOC's colour of an id: its bits, three at a time, become the high bits of red, green and blue."""
    red = green = blue = 0
    for place in range(8):
        red |= (number >> (3 * place) & 1) << (7 - place)
        green |= (number >> (3 * place + 1) & 1) << (7 - place)
        blue |= (number >> (3 * place + 2) & 1) << (7 - place)
    return red, green, blue


_ENCODING = Encoding(
    "masks of Pascal VOC",
    "0 to 20 and 255",
    dict(enumerate(_NAMES)),
    {name: (name,) for name in _NAMES},
)


def _needs(root: Path, split: str) -> tuple[str, ...]:
    lists = {"trainval": ("trainval",), "train": ("train",), "val": ("val",), "train_aug": ("train", "val")}[split]
    return ("JPEGImages", _OWN, *(f"{_LISTS}/{name}.txt" for name in lists))


def _find(spec: VocSpec, root: Path, splits: Sequence[str]) -> Layout:
    images, _ = by_name(root / "JPEGImages", ".jpg")
    own, _ = by_name(root / _OWN, ".png")
    scans, notices = {}, list[str]()
    for split in splits:
        if split == "train_aug":
            stems, masks, said, where = _augmented(spec, root, own)
            notices.append(said)
        else:
            stems, masks, where = read_stems(root / _LISTS / f"{split}.txt"), own, str(root / _OWN)
        scans[split] = _listed(root, stems, images, masks, where)
    return Layout(scans, _ENCODING, notices, SbdReader)


def _listed(
    root: Path, stems: Sequence[str], images: Mapping[str, Path], masks: Mapping[str, Path], where: str
) -> Scan:
    here = {stem: images[stem] for stem in stems if stem in images}
    scan = matched(here, {stem: masks[stem] for stem in here if stem in masks}, lambda stem: f"{stem} in {where}")
    absent = [stem for stem in stems if stem not in images]
    scan.problems += [f"{root / 'JPEGImages' / stem}.jpg: listed, but no such image" for stem in absent]
    return scan


def _augmented(spec: VocSpec, root: Path, own: Mapping[str, Path]) -> tuple[list[str], Mapping[str, Path], str, str]:
    """Stems of train_aug, a mask for each, a line that says where they come from, and the folder of SBD's masks."""
    train, val = read_stems(root / _LISTS / "train.txt"), set(read_stems(root / _LISTS / "val.txt"))
    added, where = _added_masks(spec, root)
    known = next((root / _LISTS / name for name in _WHOLE if (root / _LISTS / name).is_file()), None)
    more = root / _LISTS / _ONLY_ADDED
    if known is not None:
        stems, told = set(read_stems(known)), f"of {known.name}"
        if stems & val:
            raise DataError(f"{known}: lists {len(stems & val)} images of val.txt: trained on, they cannot be scored")
    elif more.is_file():
        stems, told = {*train, *read_stems(more)} - val, f"of train.txt and {_ONLY_ADDED}"
    else:
        stems, told = {*train, *added} - val, "of train.txt and all with a mask of SBD, without those of val.txt"
    masks = {**added, **{stem: own[stem] for stem in train if stem in own}}
    count = len(stems.intersection(train))
    said = (
        f"train_aug: images {told}; {count} masks from {_OWN} (VOC's own, with a void border), "
        f"{len(stems) - count} from {where}"
    )
    return sorted(stems), masks, said, where


def _added_masks(spec: VocSpec, root: Path) -> tuple[dict[str, Path], str]:
    """SBD's masks by stem, as PNGs or as .mat files, and what they are called."""
    if spec.sbd is None and (root / _ADDED).is_dir():
        return by_name(root / _ADDED, ".png")[0], _ADDED
    folder = find_sbd(root, spec.sbd)
    return by_name(folder / "cls", ".mat")[0], f"{folder / 'cls'} (without void borders)"


VOC = Benchmark(
    name="voc",
    title="Pascal VOC 2012",
    encodings=(_ENCODING,),
    colors={name: voc_color(number) for number, name in enumerate(_NAMES)},
    counts={"train": 1464, "val": 1449, "trainval": 2913, "train_aug": 10582},
    parts=("train_aug", "val"),
    tree="""
JPEGImages/ID.jpg
SegmentationClass/ID.png
ImageSets/Segmentation/{train,val,trainval}.txt
SegmentationClassAug/ID.png   (train_aug; or benchmark_RELEASE/dataset/cls/ID.mat, see data.sbd)
""",
    group=r"^.*$",
    needs=_needs,
    find=_find,
    images={},
    instead={"train_aug": "train"},
)


class VocSpec(BenchmarkSpec):
    """Pascal VOC 2012: `<root>` is the folder VOC2012, which holds JPEGImages and SegmentationClass."""

    benchmark: ClassVar[Benchmark] = VOC

    name: Literal["voc"] = "voc"
    train: Literal["train", "val", "trainval", "train_aug"] = Field(
        default="train_aug", description="the split that is trained on; train_aug: the 10,582 with SBD's masks"
    )
    val: Literal["train", "val", "trainval", "train_aug"] = Field(default="val", description="the split that is scored")
    extra: tuple[Literal["train", "val", "trainval", "train_aug"], ...] = Field(
        default=(), description="further splits to evaluate on"
    )
    sbd: str | None = Field(
        default=None,
        description="train_aug: SBD's folder benchmark_RELEASE, whose .mat files are read; null: the PNGs of "
        "<root>/SegmentationClassAug, or a benchmark_RELEASE in <root> or up to two folders above",
    )
