"""COCO-Stuff 164k: COCO's 80 things and 91 kinds of stuff (`stuffthingmaps_trainval2017`).

Facts: labels.txt of COCO-Stuff; the 171 consecutive ids as mmsegmentation makes them (`_labelTrainIds.png`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from densekd.data.benchmarks.benchmark import Benchmark, Classes, Encoding, Layout
from densekd.data.benchmarks.cocostuff_names import COCOSTUFF_ABSENT, COCOSTUFF_NAMES
from densekd.data.benchmarks.layout import by_name, expected_in, left_out, matched
from densekd.data.benchmarks.spec import BenchmarkSpec
from densekd.data.palette import made_palette
from densekd.errors import ConfigError

_KEPT = tuple(name for value, name in enumerate(COCOSTUFF_NAMES) if value not in COCOSTUFF_ABSENT)
_CLASSES = {name: (name,) for name in _KEPT}
_ALL = {name: (name,) for name in COCOSTUFF_NAMES}
_RAW = Encoding(
    "COCO-Stuff's masks of raw ids",
    "0 to 181, without the eleven that never occur, and 255 (ids 0 to 170 are in files *_labelTrainIds.png)",
    {value: name for value, name in enumerate(COCOSTUFF_NAMES) if value not in COCOSTUFF_ABSENT},
    _CLASSES,
)
_RAW_182 = Encoding("COCO-Stuff's masks of raw ids", "0 to 181 and 255", dict(enumerate(COCOSTUFF_NAMES)), _ALL)
_TRAIN_IDS = Encoding("COCO-Stuff's labelTrainIds", "0 to 170 and 255", dict(enumerate(_KEPT)), _CLASSES)
_CONVERTED = ("_labelTrainIds.png", "_instanceTrainIds.png")


def _needs(root: Path, split: str) -> tuple[str, ...]:
    return f"images/{split}", f"annotations/{split}"


def _of_10k(root: Path) -> str | None:
    if (root / "imageLists").is_dir() and (root / "annotations").is_dir():
        return "COCO-Stuff 10k (imageLists, .mat files); expected is COCO-Stuff 164k, stuffthingmaps_trainval2017"
    return None


def _find(spec: CocoStuffSpec, root: Path, splits: Sequence[str]) -> Layout:
    images, raw, converted, notices = {}, {}, {}, list[str]()
    for split in splits:
        images[split], other = by_name(root / "images" / split, ".jpg")
        notices += left_out(split, other, ".jpg")
        masks, _ = by_name(root / "annotations" / split, ".png")
        raw[split] = {stem: path for stem, path in masks.items() if not path.name.endswith(_CONVERTED)}
        converted[split], _ = by_name(root / "annotations" / split, _CONVERTED[0])
    counts = [sum(len(images[split].keys() & kind[split].keys()) for split in splits) for kind in (raw, converted)]
    use_raw = counts[0] >= counts[1] if spec.labels == "auto" else spec.labels == "raw"
    ending = ".png" if use_raw else _CONVERTED[0]
    if spec.labels == "auto":
        notices.append(f"data.labels: read are the files *{ending}" + (" (raw ids)" if use_raw else ""))
    if spec.outputs == 182 and not use_raw:
        raise ConfigError("data.outputs: 182 needs the masks of raw ids; only *_labelTrainIds.png are read here")
    scans = {}
    for split in splits:
        masks = (raw if use_raw else converted)[split]
        scans[split] = matched(images[split], masks, expected_in(root / "annotations" / split, ending))
    encoding = (_RAW_182 if spec.outputs == 182 else _RAW) if use_raw else _TRAIN_IDS
    return Layout(scans, encoding, notices)


COCOSTUFF = Benchmark(
    name="cocostuff",
    title="COCO-Stuff 164k",
    encodings=(_RAW, _TRAIN_IDS),
    colors=dict(zip(COCOSTUFF_NAMES, made_palette(len(COCOSTUFF_NAMES)), strict=True)),
    counts={"train2017": 118287, "val2017": 5000},
    parts=("train2017", "val2017"),
    tree="""
images/{train2017,val2017}/NNNNNNNNNNNN.jpg
annotations/{train2017,val2017}/NNNNNNNNNNNN.png   (stuffthingmaps_trainval2017.zip; or *_labelTrainIds.png)
""",
    group=r"^.*$",
    needs=_needs,
    find=_find,
    images={},
    another=_of_10k,
)


class CocoStuffSpec(BenchmarkSpec):
    """COCO-Stuff 164k: `<root>/images` and `<root>/annotations`."""

    benchmark: ClassVar[Benchmark] = COCOSTUFF

    name: Literal["cocostuff"] = "cocostuff"
    train: Literal["train2017", "val2017"] = Field(default="train2017", description="the split that is trained on")
    val: Literal["train2017", "val2017"] = Field(default="val2017", description="the split that is scored")
    extra: tuple[Literal["train2017", "val2017"], ...] = Field(default=(), description="further splits to evaluate on")
    labels: Literal["auto", "raw", "labelTrainIds"] = Field(
        default="auto",
        description="which mask files are read: the download's raw ids, or the labelTrainIds made of them; auto: the "
        "raw ones where they are there, and a notice says which",
    )
    outputs: Literal[171, 182] = Field(
        default=171,
        description="182: the raw ids are the classes, with the eleven that never occur (for networks trained so)",
    )

    @property
    def wanted_classes(self) -> Classes | None:
        """The 182 raw ids where they are asked for."""
        return _ALL if self.outputs == 182 else self.classes

    @model_validator(mode="after")
    def _one_choice(self) -> CocoStuffSpec:
        if self.outputs == 182 and self.classes is not None:
            raise ValueError("outputs: 182 and classes are both given: keep one of them")
        return self
