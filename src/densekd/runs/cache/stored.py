"""A set that is whole, open for reading: the teacher of a run, and what its record says of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch

from densekd.data.seen import SeenView
from densekd.data.views import TrainView
from densekd.distiller import Distiller
from densekd.records import CacheRecord, MapError
from densekd.runs import words
from densekd.runs.cache.sets import built
from densekd.teacher_cache import CachedTeacher, CacheKey, MapReader

_MUCH = 0.01
"""Relative error of softened maps beyond which a user is told: what `teacher.engine` allows a number format."""


@dataclass(frozen=True)
class Stored:
    """A whole set, open for reading, and the part of it that was asked for.

    Attributes:
        wanted: the key of the maps that were asked for; the set may hold more taps and views.
        taps: those that were asked for.
    """

    reader: MapReader
    wanted: CacheKey
    taps: tuple[str, ...]

    def take_over(self, distiller: Distiller) -> None:
        """In the place of the distiller's teacher, whose hooks go: nothing holds it here any more."""
        live = distiller.source
        distiller.read_from(CachedTeacher(self.reader, self.taps))
        close = getattr(live, "close", None)
        if close is not None:
            close()

    @cached_property
    def fingerprints(self) -> torch.Tensor:
        """int64 `(views, images)`: of what the teacher saw, for the views that were asked for."""
        views, images = self.wanted.values["views"], self.reader.header.images
        samples = torch.cartesian_prod(torch.arange(views), torch.arange(images)).view(-1, 2)
        return self.reader.fingerprints(samples).view(views, images)

    def checked(self, view: TrainView) -> SeenView:
        """The view with every image compared with what the teacher saw."""
        return SeenView(view, self.fingerprints, str(self.reader.folder))

    def unread(self, epochs: float) -> list[str]:
        """A line about views that so many passes over the images never come to."""
        views = int(self.wanted.values["views"])
        if views < epochs + 1:
            return []
        return [
            f"distill.cache.views: {views}, and the run sees each image {epochs:.3g} times: distill.cache.views="
            f"{max(1, math.ceil(epochs))} stores no more than is read"
        ]

    def doubts(self) -> list[str]:
        """Lines about taps whose maps lost more than 1% to the encoding."""
        header, errors = self.reader.header, self.reader.summary.error
        better = "distill.cache.encoding=bfloat16 loses less; " if header.encoding == "int8" else ""
        return [
            f"cache: the softened maps of {tap!r} err by {100 * errors[tap].mean:.2g}% as {header.encoding}: {better}"
            "distill.cache=null runs the teacher in every step"
            for tap in self.taps
            if errors[tap].mean > _MUCH
        ]

    def record(self) -> CacheRecord:
        """For the record of a run or a study."""
        header, summary, values = self.reader.header, self.reader.summary, self.wanted.values
        errors = {tap: summary.error[tap] for tap in self.taps}
        return CacheRecord(
            folder=str(self.reader.folder),
            sha256=self.wanted.digest,
            views=values["views"],
            seed=values["seed"],
            encoding=header.encoding,
            images=header.images,
            taps={tap: header.taps[tap] for tap in self.taps},
            bytes=summary.bytes,
            raw_bytes=summary.raw_bytes,
            build_seconds=round(float(built(self.reader.folder).get("seconds", 0.0)), 3),
            errors={tap: MapError(mean=found.mean, max=found.max) for tap, found in errors.items()},
        )

    def words(self) -> str:
        """What is read, and how far it is from what the teacher gave."""
        record = self.record()
        errors = "; ".join(
            f"{tap} {100 * found.mean:.2g}% mean, {100 * found.max:.2g}% at most"
            for tap, found in record.errors.items()
        )
        return (
            f"cache: reading {record.folder}: {record.views} views of {record.images} images, {record.encoding}, "
            f"{words.size(record.bytes)}; error of the softened maps: {errors}"
        )
