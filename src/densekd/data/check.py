"""Every file of a data set opened before the work starts, in parallel, with one list of what is wrong."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from densekd.data.images import check_image
from densekd.data.masks import MaskReader
from densekd.errors import DataError

Progress = Callable[[int, int], None]
"""Called with (files done, files in all)."""

_LISTED = 10


@dataclass(frozen=True)
class Pair:
    """An image file, its mask file, and the stem they share (with sub-folders, `/` between them)."""

    stem: str
    image: Path
    mask: Path


@dataclass(frozen=True)
class Facts:
    """What the check learned about one pair: size in pixels, and pixels of each class and (last) of void."""

    height: int
    width: int
    pixels: Tensor


def complain(problems: Sequence[str], files: int) -> None:
    """Raise one error for all problems, listing up to ten; nothing happens without problems."""
    if not problems:
        return
    listed = "".join(f"\n  {problem}" for problem in problems[:_LISTED])
    more = f"\n  and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    raise DataError(f"{count} in {files} image-mask pairs:{listed}{more}")


def check_pair(pair: Pair, reader: MaskReader) -> Facts:
    """Open both files of a pair.

    Raises:
        DataError: one of them cannot be read or used, or their sizes differ.
    """
    height, width = check_image(pair.image)
    label = reader.read(pair.mask)
    if tuple(label.shape) != (height, width):
        raise DataError(
            f"{pair.mask}: sizes differ: mask {label.shape[1]}x{label.shape[0]}, image {width}x{height} "
            "(width x height, after the image's EXIF rotation)"
        )
    count = len(reader.classes)
    known = torch.where(label == reader.ignore_index, count, label)
    return Facts(height, width, torch.bincount(known.flatten(), minlength=count + 1))


def check_pairs(pairs: Sequence[Pair], reader: MaskReader, progress: Progress | None = None) -> list[Facts]:
    """Open every pair, several at a time; facts in the order of the pairs.

    Raises:
        DataError: the files that cannot be used and the reason for each: up to ten, and how many more.
    """

    def look(pair: Pair) -> Facts | str:
        try:
            return check_pair(pair, reader)
        except DataError as error:
            return str(error)

    facts: list[Facts] = []
    problems: list[str] = []
    # Pillow and numpy release the interpreter's lock while they decode and count.
    pool = ThreadPoolExecutor(max_workers=min(16, 2 * (os.cpu_count() or 1)))
    try:
        for done, found in enumerate(pool.map(look, pairs), 1):
            if isinstance(found, Facts):
                facts.append(found)
            else:
                problems.append(found)
            if progress is not None:
                progress(done, len(pairs))
    finally:
        pool.shutdown(cancel_futures=True)
    complain(problems, len(pairs))
    return facts
