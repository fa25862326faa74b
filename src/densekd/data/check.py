"""Every file of a data set opened before the work starts, in parallel, with one list of what is wrong."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from densekd.data.images import check_image
from densekd.data.masks import MaskReader
from densekd.errors import DataError

Progress = Callable[[int, int], None]
"""Called with (files done, files in all)."""

Thing = TypeVar("Thing")
Found = TypeVar("Found")

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


class ProblemsError(DataError):
    """Several files cannot be used; the message lists up to ten of them.

    Attributes:
        problems: a line for each, all of them.
        heading: how many there are, in how many files.
    """

    def __init__(self, problems: Sequence[str], files: int, what: str) -> None:
        self.problems = tuple(problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        self.heading = f"{count} in {files} {what}"
        listed = "".join(f"\n  {problem}" for problem in problems[:_LISTED])
        more = f"\n  and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        super().__init__(f"{self.heading}:{listed}{more}")
        self._made_of = (self.problems, files, what)

    def __reduce__(self) -> tuple[type[ProblemsError], tuple[tuple[str, ...], int, str]]:
        """Exceptions are copied by their message alone unless they say how."""
        return type(self), self._made_of


def complain(problems: Sequence[str], files: int, what: str = "image-mask pairs") -> None:
    """Raise one error for all problems, listing up to ten; nothing happens without problems."""
    if problems:
        raise ProblemsError(problems, files, what)


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


def look_at_all(
    things: Sequence[Thing], look: Callable[[Thing], Found], progress: Progress | None
) -> list[Found | DataError]:
    """What `look` finds in each thing, or the DataError it raises, several at a time; in their order."""

    def attempt(thing: Thing) -> Found | DataError:
        try:
            return look(thing)
        except DataError as error:
            return error

    found: list[Found | DataError] = []
    # Pillow and numpy release the interpreter's lock while they decode and count.
    pool = ThreadPoolExecutor(max_workers=min(16, 2 * (os.cpu_count() or 1)))
    try:
        for done, one in enumerate(pool.map(attempt, things), 1):
            found.append(one)
            if progress is not None:
                progress(done, len(things))
    finally:
        pool.shutdown(cancel_futures=True)
    return found
