"""The files that the servers of the benchmarks take: values, names, archive."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from densekd.config import Recipe
from densekd.data.benchmarks.benchmark import Benchmark, Classes
from densekd.data.benchmarks.catalog import BENCHMARKS
from densekd.data.benchmarks.spec import BenchmarkSpec
from densekd.errors import ArgumentError, DataError, RunError, nearest
from densekd.pictures import indexed
from densekd.predict.inputs import listed


@dataclass(frozen=True)
class Submission:
    """What one server takes.

    Attributes:
        name: as in `--submission`.
        benchmark: its classes, in the order of their ids, and the values its files hold.
        stem: what an image's name is like, without suffix; its group 1 goes on to the result.
        called: the same in words.
        file: name of a result below `results/`, with `{}` for group 1.
        archive: name of the archive, a zip or a tar (tgz).
        colored: a palette picture in the benchmark's colours; else plain 8-bit grey.
        size: height and width of all its images; None where they differ.
        count: images in its test set; None where that is not told here.
    """

    name: str
    benchmark: Benchmark
    stem: str
    called: str
    file: str
    archive: str = "results.zip"
    colored: bool = False
    size: tuple[int, int] | None = None
    count: int | None = None

    def files_of(self, images: Sequence[Path]) -> dict[Path, str]:
        """The name of each image's result below `results/`, without suffix.

        Raises:
            DataError: an image that is not named as the benchmark names its own.
        """
        found, strange = {}, []
        for path in images:
            match = re.fullmatch(self.stem, path.stem)
            if match is None:
                strange.append(str(path))
            else:
                found[path] = self.file.format(match.group(1))
        if strange:
            raise DataError(
                f"--submission {self.name}: {len(strange)} of {len(images)} images are not named as "
                f"{self.benchmark.title} names them ({self.called}), and the server tells results apart by name:"
                f"{listed(strange)}"
            )
        return found

    def notices(self, sizes: dict[Path, tuple[int, int]]) -> list[str]:
        """What a server will most likely not take: another number of images, or other sizes, than the test set has."""
        said = []
        if self.count is not None and len(sizes) != self.count:
            said.append(f"{len(sizes)} images; the test set of {self.benchmark.title} has {self.count}")
        other = [path for path, size in sizes.items() if self.size not in (None, size)]
        if other and self.size is not None:
            height, width = sizes[other[0]]
            said.append(
                f"{len(other)} of {len(sizes)} images are not {self.size[1]}x{self.size[0]} as those of "
                f"{self.benchmark.title} ({other[0].name}: {width}x{height}); results have the size of the image given"
            )
        return [f"--submission {self.name}: {line}" for line in said]

    def picture(self, label: Tensor, values: Tensor) -> Image.Image:
        """A result: class ids `(H, W)` as the values that the server reads.

        Args:
            values: for each class its value, int64 `(K,)`.
        """
        coded = values[label]
        if self.colored:
            return indexed(coded, self.benchmark.palette(None))
        return Image.fromarray(coded.to(torch.uint8).numpy())


_CITYSCAPES, _ADE20K, _VOC = BENCHMARKS["cityscapes"], BENCHMARKS["ade20k"], BENCHMARKS["voc"]


def _voc(name: str, folder: str) -> Submission:
    return Submission(
        name,
        _VOC,
        stem=r"(\d{4}_\d{6})",
        called="YYYY_NNNNNN",
        file=f"VOC2012/Segmentation/{folder}_test_cls/{{}}",
        archive="results.tgz",
        colored=True,
        count=1456,
    )


SUBMISSIONS: dict[str, Submission] = {
    one.name: one
    for one in (
        Submission(
            "cityscapes",
            _CITYSCAPES,
            stem=r"([A-Za-z-]+_\d{6}_\d{6})(?:_leftImg8bit)?",
            called="CITY_SSSSSS_FFFFFF_leftImg8bit",
            file="{}_pred_labelIds",
            size=(1024, 2048),
            count=1525,
        ),
        Submission("ade20k", _ADE20K, stem=r"(ADE_(?:train|val|test)_\d{8})", called="ADE_test_NNNNNNNN", file="{}"),
        # comp6 takes results of any training data (ImageNet weights and SBD's masks are such), comp5 of VOC's alone.
        _voc("voc", "comp6"),
        _voc("voc-comp5", "comp5"),
    )
}
"""By the name that `--submission` gives them."""


def submission_of(name: str) -> Submission:
    """The submission of that name.

    Raises:
        ArgumentError: there is none.
    """
    if name not in SUBMISSIONS:
        raise ArgumentError(
            f"--submission {name!r}: no such benchmark{nearest(name, SUBMISSIONS)}; there are {', '.join(SUBMISSIONS)}"
        )
    return SUBMISSIONS[name]


def values_of(submission: Submission, recipe: Recipe, classes: Sequence[str]) -> Tensor:
    """For each class of a run the value that the server reads, int64 `(K,)`.

    Raises:
        RunError: the run does not tell the benchmark's classes apart: other names, another order, or merged ones.
    """
    benchmark, data = submission.benchmark, recipe.data
    if isinstance(data, BenchmarkSpec) and data.benchmark.name == benchmark.name and data.classes is not None:
        return torch.tensor(benchmark.values(_unmerged(submission, data.classes)))
    _require_names(submission, tuple(classes))
    return torch.tensor(benchmark.values())


def _unmerged(submission: Submission, merged: Classes) -> Classes:
    """The run's classes, each with the one official class in it, or with its first label where it has none."""
    official = submission.benchmark.classes
    for name, labels in merged.items():
        inside = [label for label in labels if label in official]
        if len(inside) > 1:
            raise RunError(
                f"--submission {submission.name}: the run's {name!r} merges {' and '.join(map(repr, inside))} "
                f"(data.classes), which {submission.benchmark.title} scores one by one; train a student on the "
                "official classes (data.classes=null)"
            )
    there = {label for labels in merged.values() for label in labels}
    lacking = [name for name in official if name not in there]
    if lacking:
        raise RunError(
            f"--submission {submission.name}: the run has no class for {', '.join(map(repr, lacking))} (data.classes), "
            f"which {submission.benchmark.title} scores; train a student on the official classes (data.classes=null)"
        )
    return {name: tuple(sorted(labels, key=lambda label: label not in official)) for name, labels in merged.items()}


def _require_names(submission: Submission, classes: tuple[str, ...]) -> None:
    """Refuse other names than the benchmark's, or another order: a wrong value would be scored as a wrong class."""
    official, title = submission.benchmark.classes, submission.benchmark.title
    if classes == official:
        return
    begin = f"--submission {submission.name}: the run's classes are not the {len(official)} of {title}"
    unknown = [name for name in classes if name not in official]
    lacking = [name for name in official if name not in classes]
    if not unknown and not lacking:
        place = next(at for at, pair in enumerate(zip(classes, official, strict=True)) if pair[0] != pair[1])
        raise RunError(
            f"{begin} in their order: class {place} is {classes[place]!r}, expected {official[place]!r}; the order of "
            "the ids decides what is written"
        )
    found = f"{len(classes)}, of them unknown: {_some(unknown)}" if unknown else f"{len(classes)}"
    hint = nearest(unknown[0], official) if unknown else ""
    without = f"; without {_some(lacking)}" if lacking else ""
    raise RunError(f"{begin}: it has {found}{hint}{without}")


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
