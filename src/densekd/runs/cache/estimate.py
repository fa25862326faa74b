"""What a set will cost before it is built: a few views are loaded, run and encoded, and the rest is multiplied."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from densekd.runs.cache.build import Filler, Sample
from densekd.runs.words import duration, size
from densekd.teacher_cache.encoding import Encoding, encode

_MOST = 4


@dataclass(frozen=True)
class Estimate:
    """Measured on `measured` views.

    Attributes:
        missing: views still to be stored; `seconds` and `bytes` are of these.
        seconds: of all processes together at work.
        free: bytes free where the set will lie.
    """

    missing: int
    measured: int
    seconds: float
    bytes: int
    free: int

    @property
    def fits(self) -> bool:
        """Whether the disk has the room."""
        return self.bytes <= self.free

    def words(self) -> str:
        """Size, time and free disk, for a question or an error."""
        return (
            f"about {size(self.bytes)} and {duration(self.seconds)} for {self.missing} views (measured on "
            f"{self.measured}); {size(self.free)} of disk are free"
        )


def estimate(filler: Filler, missing: Sequence[Sample], encoding: Encoding, root: Path, world: int = 1) -> Estimate:
    """Load, run and encode a few of the missing views; the teacher and the random states stay as they were.

    Args:
        filler: runs the teacher.
        missing: not empty.
        encoding: of the set.
        root: where the set will lie; the nearest folder above it that exists tells the free disk.
        world: processes that build it, each its share.
    """
    some = list(missing[:: max(1, len(missing) // _MOST)][:_MOST])
    begin = time.perf_counter()
    with closing(filler.batches(some)) as batches:  # type: ignore[type-var]
        images = torch.cat([batch["image"] for batch in batches])
    loading = (time.perf_counter() - begin) / len(some)
    computing, stored = _teacher_and_encoding(filler, images, encoding)
    workers = filler.parts.recipe.runtime.workers
    each = max(loading / workers, computing) if workers else loading + computing
    return Estimate(
        missing=len(missing),
        measured=len(some),
        seconds=each * len(missing) / world,
        bytes=round(stored * len(missing)),
        free=shutil.disk_usage(_existing(root)).free,
    )


def _teacher_and_encoding(filler: Filler, images: torch.Tensor, encoding: Encoding) -> tuple[float, float]:
    """Seconds and bytes of one view; the first forward pass, which may choose kernels, is not counted."""
    filler.maps(images[:1])
    begin = time.perf_counter()
    maps = filler.maps(images)
    total = sum(len(encode(one, encoding).data) for tapped in maps.values() for one in tapped)
    return (time.perf_counter() - begin) / len(images), total / len(images)


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())
