"""The files of any data set that consists of files."""

from __future__ import annotations

from collections.abc import Sequence

from densekd.data.benchmarks.find import find_all, find_benchmark
from densekd.data.find_folder import find_folder, folder_palette
from densekd.data.found import FoundData
from densekd.data.kinds import AnyDataSpec, FilesSpec
from densekd.data.scenes import PALETTE
from densekd.data.specs import Color, FolderSpec, ScenesDataSpec


def data_of(spec: FilesSpec, *, every: bool = False) -> FoundData:
    """The files of a data set, found and matched; none of them is opened.

    Args:
        spec: a recipe's `data`, of any kind but drawn scenes.
        every: of a benchmark, all official splits that are there under their own names, those without labels too;
            otherwise `train`, `val` and the further ones that the recipe asks for.

    Raises:
        DataError: folders, lists or files are missing; for a benchmark with its expected layout.
        ConfigError: classes, palette and masks contradict each other.
    """
    if isinstance(spec, FolderSpec):
        return find_folder(spec)
    return find_all(spec) if every else find_benchmark(spec)


def palette_of(spec: AnyDataSpec, classes: Sequence[str]) -> tuple[Color, ...]:
    """A colour for each of the classes, without looking at any file.

    Args:
        spec: a recipe's `data`.
        classes: the names of its classes; only a folder needs them.
    """
    if isinstance(spec, ScenesDataSpec):
        return PALETTE
    if isinstance(spec, FolderSpec):
        return folder_palette(spec, tuple(classes))
    return spec.benchmark.palette(spec.wanted_classes)
