"""ADE20K in the release of its scene parsing benchmark (SceneParse150): 150 classes, 0 is void."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from densekd.data.benchmarks.ade20k_names import ADE20K_COLORS, ADE20K_NAMES
from densekd.data.benchmarks.benchmark import Benchmark, Encoding, Layout
from densekd.data.benchmarks.layout import by_name, expected_in, left_out, matched
from densekd.data.benchmarks.spec import BenchmarkSpec

# The files hold 1 to 150: the step down to 0 to 149 is made here and nowhere else.
_ENCODING = Encoding(
    "masks of SceneParse150",
    "0 for void and 1 to 150",
    dict(enumerate(ADE20K_NAMES, 1)),
    {name: (name,) for name in ADE20K_NAMES},
    void=(0,),
)
_FOLDERS_LOOKED_INTO = 20


def _needs(root: Path, split: str) -> tuple[str, ...]:
    return f"images/{split}", f"annotations/{split}"


def _full_release(root: Path) -> str | None:
    """Recognises the full ADE20K by its index, or by a mask `*_seg.png` in one of the first folders of images."""
    index = sorted(root.glob("index_ade20k.*"))
    if index:
        return _refusal(index[0].name)
    for count, (_, folders, names) in enumerate(os.walk(root / "images")):
        folders.sort()
        for name in names:
            if name.endswith("_seg.png"):
                return _refusal(name)
        if count == _FOLDERS_LOOKED_INTO:
            break
    return None


def _refusal(seen: str) -> str:
    return (
        f"the full ADE20K ({seen}), whose masks are coded in colours and count thousands of names; expected is the "
        "release of its scene parsing benchmark, ADEChallengeData2016, with masks of 150 ids"
    )


def _find(spec: Ade20kSpec, root: Path, splits: Sequence[str]) -> Layout:
    scans, notices = {}, list[str]()
    for split in splits:
        images, other = by_name(root / "images" / split, ".jpg")
        masks, _ = by_name(root / "annotations" / split, ".png")
        notices += left_out(split, other, ".jpg")
        scans[split] = matched(images, masks, expected_in(root / "annotations" / split, ".png"))
    return Layout(scans, _ENCODING, notices)


ADE20K = Benchmark(
    name="ade20k",
    title="ADE20K (SceneParse150)",
    encodings=(_ENCODING,),
    colors=dict(zip(ADE20K_NAMES, ADE20K_COLORS, strict=True)),
    counts={"training": 20210, "validation": 2000},
    parts=("training", "validation"),
    tree="""
images/{training,validation}/ADE_{train,val}_NNNNNNNN.jpg
annotations/{training,validation}/ADE_{train,val}_NNNNNNNN.png
""",
    group=r"^.*$",
    needs=_needs,
    find=_find,
    images={},
    another=_full_release,
)


class Ade20kSpec(BenchmarkSpec):
    """ADE20K's scene parsing benchmark: `<root>` is the folder ADEChallengeData2016."""

    benchmark: ClassVar[Benchmark] = ADE20K

    name: Literal["ade20k"] = "ade20k"
    train: Literal["training", "validation"] = Field(default="training", description="the split that is trained on")
    val: Literal["training", "validation"] = Field(default="validation", description="the split that is scored")
    extra: tuple[Literal["training", "validation"], ...] = Field(
        default=(), description="further splits to evaluate on"
    )
