"""CamVid: drives through Cambridge, 11 classes: as SegNet released it, in folders, or the original of 32 colours.

Facts: SegNet's tutorial (masks of ids); the original release's table of colours (Brostow et al., 2008); the grouping of
32 labels into 11 as in SegNet's classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from densekd.data.benchmarks.benchmark import Benchmark, Encoding, Layout
from densekd.data.benchmarks.layout import by_name, expected_in, joined, left_out, matched, read_stems
from densekd.data.benchmarks.spec import BenchmarkSpec
from densekd.data.folder import Scan, scan_split
from densekd.data.specs import Color, SplitSpec

_CLASS_COLORS: dict[str, Color] = {
    "Sky": (128, 128, 128),
    "Building": (128, 0, 0),
    "Pole": (192, 192, 128),
    "Road": (128, 64, 128),
    "Pavement": (60, 40, 222),
    "Tree": (128, 128, 0),
    "SignSymbol": (192, 128, 128),
    "Fence": (64, 64, 128),
    "Car": (64, 0, 128),
    "Pedestrian": (64, 64, 0),
    "Bicyclist": (0, 128, 192),
}
_LABEL_COLORS: dict[str, Color] = {
    "Animal": (64, 128, 64),
    "Archway": (192, 0, 128),
    "Bicyclist": (0, 128, 192),
    "Bridge": (0, 128, 64),
    "Building": (128, 0, 0),
    "Car": (64, 0, 128),
    "CartLuggagePram": (64, 0, 192),
    "Child": (192, 128, 64),
    "Column_Pole": (192, 192, 128),
    "Fence": (64, 64, 128),
    "LaneMkgsDriv": (128, 0, 192),
    "LaneMkgsNonDriv": (192, 0, 64),
    "Misc_Text": (128, 128, 64),
    "MotorcycleScooter": (192, 0, 192),
    "OtherMoving": (128, 64, 64),
    "ParkingBlock": (64, 192, 128),
    "Pedestrian": (64, 64, 0),
    "Road": (128, 64, 128),
    "RoadShoulder": (128, 128, 192),
    "Sidewalk": (0, 0, 192),
    "SignSymbol": (192, 128, 128),
    "Sky": (128, 128, 128),
    "SUVPickupTruck": (64, 128, 192),
    "TrafficCone": (0, 0, 64),
    "TrafficLight": (0, 64, 64),
    "Train": (192, 64, 128),
    "Tree": (128, 128, 0),
    "Truck_Bus": (192, 128, 192),
    "Tunnel": (64, 0, 64),
    "VegetationMisc": (192, 192, 0),
    "Void": (0, 0, 0),
    "Wall": (64, 192, 0),
}
_GROUPS = {
    "Sky": ("Sky",),
    "Building": ("Building", "Bridge", "Wall", "Tunnel", "Archway"),
    "Pole": ("Column_Pole", "TrafficCone"),
    "Road": ("Road", "LaneMkgsDriv", "LaneMkgsNonDriv"),
    "Pavement": ("Sidewalk", "ParkingBlock", "RoadShoulder"),
    "Tree": ("Tree", "VegetationMisc"),
    "SignSymbol": ("SignSymbol", "Misc_Text", "TrafficLight"),
    "Fence": ("Fence",),
    "Car": ("Car", "SUVPickupTruck", "Truck_Bus", "Train", "OtherMoving"),
    "Pedestrian": ("Pedestrian", "Child", "CartLuggagePram", "Animal"),
    "Bicyclist": ("Bicyclist", "MotorcycleScooter"),
}
_IDS = Encoding(
    "CamVid's masks of ids",
    "0 to 10, and 11 or 255 for void",
    dict(enumerate(_CLASS_COLORS)),
    {name: (name,) for name in _CLASS_COLORS},
    void=(11, 255),
)
_COLORS = Encoding(
    "CamVid's masks of colours",
    "red, green and blue of 32 labels",
    {color: name for name, color in _LABEL_COLORS.items()},
    _GROUPS,
    void=(),
)
_IMAGES, _MASKS = "701_StillsRaw_full", "LabeledApproved_full"
_PARTS = {"train": ("train",), "val": ("val",), "trainval": ("train", "val"), "test": ("test",)}


def _release(root: Path) -> Literal["segnet", "folders", "original"]:
    """Which of the three layouts a root has; SegNet's where none is recognised."""
    if (root / _IMAGES).is_dir() or (root / _MASKS).is_dir():
        return "original"
    # SegNet's train/ holds pictures, never a folder of this name.
    if any((root / part / "images").is_dir() for part in ("train", "val", "test")):
        return "folders"
    return "segnet"


def _needs(root: Path, split: str) -> tuple[str, ...]:
    release, parts = _release(root), _PARTS[split]
    if release == "original":
        return (_IMAGES, _MASKS, *(f"{part}.txt" for part in parts))
    if release == "folders":
        return tuple(f"{part}/{kind}" for part in parts for kind in ("images", "masks"))
    return tuple(folder for part in parts for folder in (part, f"{part}annot"))


def _find(spec: CamVidSpec, root: Path, splits: Sequence[str]) -> Layout:
    release = _release(root)
    scan = {"original": _of_original, "folders": _of_folders, "segnet": _of_segnet}[release]
    parts = {part: scan(root, part) for part in dict.fromkeys(part for split in splits for part in _PARTS[split])}
    said = {
        "original": "the original release, masks of 32 colours",
        "folders": "folders images and masks",
        "segnet": "SegNet's release",
    }[release]
    found = {split: joined(parts[part] for part in _PARTS[split]) for split in splits}
    return Layout(found, _COLORS if release == "original" else _IDS, [f"camvid: {said}"])


def _of_folders(root: Path, part: str) -> Scan:
    return scan_split(root, part, SplitSpec())


def _of_segnet(root: Path, part: str) -> Scan:
    images, other = by_name(root / part, ".png")
    masks, _ = by_name(root / f"{part}annot", ".png")
    scan = matched(images, masks, expected_in(root / f"{part}annot", ".png"))
    scan.notices += left_out(part, other, ".png")
    return scan


def _of_original(root: Path, part: str) -> Scan:
    """The stems of `<part>.txt`: a line begins with an image, by its stem, its file name or a path to it."""
    stems = read_stems(root / f"{part}.txt")
    images, _ = by_name(root / _IMAGES, ".png")
    masks, _ = by_name(root / _MASKS, "_L.png")
    here = {stem: images[stem] for stem in stems if stem in images}
    scan = matched(here, {stem: masks[stem] for stem in here if stem in masks}, expected_in(root / _MASKS, "_L.png"))
    absent = [stem for stem in stems if stem not in images]
    scan.problems += [f"{root / _IMAGES / stem}.png: in {part}.txt, but no such image" for stem in absent]
    return scan


CAMVID = Benchmark(
    name="camvid",
    title="CamVid",
    encodings=(_IDS, _COLORS),
    colors={**_LABEL_COLORS, **_CLASS_COLORS},
    counts={"train": 367, "val": 101, "trainval": 468, "test": 233},
    parts=("train", "val", "test"),
    tree="""
{train,val,test}/NAME.png, {train,val,test}annot/NAME.png                             (SegNet's release), or
{train,val,test}/images/NAME.*, {train,val,test}/masks/NAME.png                       (the same in folders), or
701_StillsRaw_full/NAME.png, LabeledApproved_full/NAME_L.png, {train,val,test}.txt    (the original, with lists)
""",
    group=r"^[^_]+",
    needs=_needs,
    find=_find,
    images={},
)
_Split = Literal["train", "val", "trainval", "test"]


class CamVidSpec(BenchmarkSpec):
    """CamVid in any of its three layouts, which is recognised and said."""

    benchmark: ClassVar[Benchmark] = CAMVID

    name: Literal["camvid"] = "camvid"
    train: _Split = Field(default="train", description="the split that is trained on")
    val: _Split = Field(default="val", description="the split that is scored")
    extra: tuple[_Split, ...] = Field(default=(), description="further splits to evaluate on")
