"""Cityscapes: street scenes of 50 cities, 34 labels, 19 of them learned (`leftImg8bit` and `gtFine`).

Facts: cityscapesScripts' table of labels. The PNGs of the download hold label ids; `_labelTrainIds.png` are made by
its script `csCreateTrainIdLabelImgs`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

from numpy.typing import NDArray
from pydantic import Field

from densekd.data.benchmarks.benchmark import VOID, Benchmark, Encoding, Layout
from densekd.data.benchmarks.layout import by_name, joined, left_out, matched
from densekd.data.benchmarks.spec import BenchmarkSpec
from densekd.data.folder import Scan
from densekd.data.masks import MaskReader
from densekd.data.specs import Color
from densekd.errors import DataError


class Label(NamedTuple):
    """A row of the official table; `train_id` is 255 where the label is not learned."""

    name: str
    label_id: int
    train_id: int
    color: Color


LABELS = (
    Label("unlabeled", 0, VOID, (0, 0, 0)),
    Label("ego vehicle", 1, VOID, (0, 0, 0)),
    Label("rectification border", 2, VOID, (0, 0, 0)),
    Label("out of roi", 3, VOID, (0, 0, 0)),
    Label("static", 4, VOID, (0, 0, 0)),
    Label("dynamic", 5, VOID, (111, 74, 0)),
    Label("ground", 6, VOID, (81, 0, 81)),
    Label("road", 7, 0, (128, 64, 128)),
    Label("sidewalk", 8, 1, (244, 35, 232)),
    Label("parking", 9, VOID, (250, 170, 160)),
    Label("rail track", 10, VOID, (230, 150, 140)),
    Label("building", 11, 2, (70, 70, 70)),
    Label("wall", 12, 3, (102, 102, 156)),
    Label("fence", 13, 4, (190, 153, 153)),
    Label("guard rail", 14, VOID, (180, 165, 180)),
    Label("bridge", 15, VOID, (150, 100, 100)),
    Label("tunnel", 16, VOID, (150, 120, 90)),
    Label("pole", 17, 5, (153, 153, 153)),
    Label("polegroup", 18, VOID, (153, 153, 153)),
    Label("traffic light", 19, 6, (250, 170, 30)),
    Label("traffic sign", 20, 7, (220, 220, 0)),
    Label("vegetation", 21, 8, (107, 142, 35)),
    Label("terrain", 22, 9, (152, 251, 152)),
    Label("sky", 23, 10, (70, 130, 180)),
    Label("person", 24, 11, (220, 20, 60)),
    Label("rider", 25, 12, (255, 0, 0)),
    Label("car", 26, 13, (0, 0, 142)),
    Label("truck", 27, 14, (0, 0, 70)),
    Label("bus", 28, 15, (0, 60, 100)),
    Label("caravan", 29, VOID, (0, 0, 90)),
    Label("trailer", 30, VOID, (0, 0, 110)),
    Label("train", 31, 16, (0, 80, 100)),
    Label("motorcycle", 32, 17, (0, 0, 230)),
    Label("bicycle", 33, 18, (119, 11, 32)),
)
"""The 34 labels that files hold; the licence plate, -1, is in none."""

_LEARNED = sorted((label for label in LABELS if label.train_id != VOID), key=lambda label: label.train_id)
_CLASSES = {label.name: (label.name,) for label in _LEARNED}
_IDS = Encoding(
    "Cityscapes labelIds",
    "0 to 33 (a file of 0 to 18 and 255 holds train ids, and is named _gtFine_labelTrainIds.png)",
    {label.label_id: label.name for label in LABELS},
    _CLASSES,
    void=(),  # 0 to 6 are labels; 255 would be a sign of train ids
)
_TRAIN_IDS = Encoding(
    "Cityscapes labelTrainIds",
    "0 to 18 and 255 (a file of 0 to 33 holds label ids, and is named _gtFine_labelIds.png)",
    {label.train_id: label.name for label in _LEARNED},
    _CLASSES,
)
_HIGHEST_TRAIN_ID = max(label.train_id for label in _LEARNED)
_IMAGE = "_leftImg8bit.png"
_SUFFIXES = {"labelIds": "_gtFine_labelIds.png", "labelTrainIds": "_gtFine_labelTrainIds.png"}
_PARTS = {"train": ("train",), "val": ("val",), "trainval": ("train", "val")}


class LabelIdsReader(MaskReader):
    """Refuses a file of labelIds whose values could all be train ids: those names are easily mistaken.

    No street is without a car, a plant, the sky and every sign: label ids above 18 are in every file of the download.
    """

    def _from_ids(self, values: NDArray, path: Path) -> NDArray:
        if values.size and values.max() <= _HIGHEST_TRAIN_ID:
            raise DataError(
                f"{path}: no value above {_HIGHEST_TRAIN_ID}: these seem to be train ids under the name of labelIds; "
                "data.labels=labelIds reads it as label ids all the same"
            )
        return super()._from_ids(values, path)


def _needs(root: Path, split: str) -> tuple[str, ...]:
    return tuple(f"{kind}/{part}" for part in _PARTS[split] for kind in ("leftImg8bit", "gtFine"))


def _masks(root: Path, part: str) -> dict[str, dict[str, Path]]:
    """The mask files of a part by stem, for each of the two kinds."""
    return {kind: by_name(root / "gtFine" / part, suffix)[0] for kind, suffix in _SUFFIXES.items()}


def _find(spec: CityscapesSpec, root: Path, splits: Sequence[str]) -> Layout:
    parts = list(dict.fromkeys(part for split in splits for part in _PARTS[split]))
    images, masks, notices = {}, {}, list[str]()
    for part in parts:
        images[part], other = by_name(root / "leftImg8bit" / part, _IMAGE)
        notices += left_out(part, other, _IMAGE)
        masks[part] = _masks(root, part)
    kind, said = _kind(spec, images, masks)
    other_kind = next(one for one in _SUFFIXES if one != kind)

    def scan(part: str) -> Scan:
        def expected(stem: str) -> str:
            path = root / "gtFine" / part / f"{stem}{_SUFFIXES[kind]}"
            there = stem in masks[part][other_kind]
            return f"{path}" + (f"; its {other_kind} are there, and all must be of one kind" if there else "")

        return matched(images[part], masks[part][kind], expected)

    scans = {part: scan(part) for part in parts}
    found = {split: joined(scans[part] for part in _PARTS[split]) for split in splits}
    encoding, guessed = (_IDS, spec.labels == "auto") if kind == "labelIds" else (_TRAIN_IDS, False)
    return Layout(found, encoding, [*notices, *said], LabelIdsReader if guessed else MaskReader)


def _kind(
    spec: CityscapesSpec, images: dict[str, dict[str, Path]], masks: dict[str, dict[str, dict[str, Path]]]
) -> tuple[str, list[str]]:
    """Which kind of mask files is read, and a line that says so.

    Asked for nothing: labelIds, which tell all 34 labels apart, unless more images have labelTrainIds.
    """
    count = {kind: sum(len(images[part].keys() & masks[part][kind].keys()) for part in images) for kind in _SUFFIXES}
    if spec.labels != "auto":
        return spec.labels, []
    kind = "labelIds" if count["labelIds"] >= count["labelTrainIds"] else "labelTrainIds"
    return kind, [f"data.labels: read are the files *{_SUFFIXES[kind]}"]


CITYSCAPES = Benchmark(
    name="cityscapes",
    title="Cityscapes",
    encodings=(_IDS, _TRAIN_IDS),
    colors={label.name: label.color for label in LABELS},
    counts={"train": 2975, "val": 500, "trainval": 3475},
    parts=("train", "val"),
    tree="""
leftImg8bit/{train,val,test}/CITY/CITY_SSSSSS_FFFFFF_leftImg8bit.png
gtFine/{train,val}/CITY/CITY_SSSSSS_FFFFFF_gtFine_labelIds.png   (or _gtFine_labelTrainIds.png)
""",
    group=r"^[^/_]+",
    needs=_needs,
    find=_find,
    images={"test": "leftImg8bit/test"},
)


class CityscapesSpec(BenchmarkSpec):
    """Cityscapes: `<root>/leftImg8bit` and `<root>/gtFine`."""

    benchmark: ClassVar[Benchmark] = CITYSCAPES

    name: Literal["cityscapes"] = "cityscapes"
    train: Literal["train", "val", "trainval"] = Field(default="train", description="the split that is trained on")
    val: Literal["train", "val", "trainval"] = Field(default="val", description="the split that is scored")
    extra: tuple[Literal["train", "val", "trainval"], ...] = Field(
        default=(), description="further splits to evaluate on"
    )
    labels: Literal["auto", "labelIds", "labelTrainIds"] = Field(
        default="auto",
        description="which mask files are read: the download's labelIds, or the labelTrainIds that Cityscapes' scripts "
        "make of them; auto: labelIds where they are there, and a notice says which",
    )
