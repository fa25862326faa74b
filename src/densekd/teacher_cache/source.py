"""Stored maps as the teacher of a distiller."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from densekd.errors import ArgumentError, CacheError, ShapeError
from densekd.teacher import Batch
from densekd.teacher_cache.reader import MapReader

_Call = TypeVar("_Call", bound=Callable[..., Any])


def _uncompiled(call: _Call) -> _Call:
    """As `torch.compiler.disable`, which would import the compiler: files are read outside of a graph."""

    @functools.wraps(call)
    def outside(*args: Any, **kwargs: Any) -> Any:
        compiler: Any = sys.modules.get("torch._dynamo")
        return call(*args, **kwargs) if compiler is None else compiler.disable(call)(*args, **kwargs)

    outside._torchdynamo_disable = True  # type: ignore[attr-defined]
    return cast("_Call", outside)


class CachedTeacher:
    """A `TeacherSource` whose maps are read: `maps(batch)` gives those of `batch.samples`, (view, index) of each image.

    Maps come as float32 `(N, C, H, W)` on the device of the images, with the channels that were stored: a class map is
    applied after it as after a live teacher. Images are not looked at, and a `TeacherInput` is not run.

    Args:
        reader: the set. `close()` of this source closes it.
        taps: those to read, default all of the set; what a term does not ask for is better left out.
        threads: that read; default half of the CPU's cores, 8 at most.

    Raises:
        ArgumentError: a tap that is not stored.
    """

    needs_images = False
    nchw = True

    def __init__(self, reader: MapReader, taps: Sequence[str] | None = None, *, threads: int | None = None) -> None:
        self.reader = reader
        self.taps = tuple(reader.header.taps if taps is None else taps)
        reader.read(torch.zeros(0, 2, dtype=torch.int64), self.taps)
        self._readers = _some_threads() if threads is None else threads
        self._pool: ThreadPoolExecutor | None = None
        self._process = 0

    @property
    def class_taps(self) -> tuple[str, ...]:
        """Taps that are the class map."""
        return self.reader.header.class_taps

    def maps(self, batch: Batch) -> dict[str, Tensor]:
        """The stored maps of `batch.samples`.

        Args:
            batch: with `samples`, (view, index) of each image.

        Raises:
            ArgumentError: the batch has no samples, or some that are not stored.
            ShapeError: another number of samples than images; images of another size than those of the set.
            CacheError: a map is damaged.
        """
        return self.submit(batch)()

    @_uncompiled
    def submit(self, batch: Batch) -> Callable[[], dict[str, Tensor]]:
        """Start reading in other threads; the call that is returned waits for them and gives the maps.

        Args:
            batch: with `samples`, (view, index) of each image.

        Raises:
            CacheError, ShapeError, ArgumentError: as `maps`; a damaged map when it is waited for.
        """
        device = self._check(batch)
        pinned = device.type == "cuda"
        wait = self.reader.read_stored(_samples(batch), self.taps, pool=self._threads(), pinned=pinned)
        return _uncompiled(lambda: {tap: stored.to(device).unpacked() for tap, stored in wait().items()})

    def example(self, batch: Batch) -> dict[str, Tensor]:
        """Maps for a dry run: those of the batch's samples, or without any the set's first sample for every image.

        Args:
            batch: of the dry run; it may be without samples.

        Raises:
            ShapeError: images of another size than those of the set.
        """
        if batch.samples is not None:
            return self.maps(batch)
        self._check_size(batch.images)
        first = self.reader.read(torch.zeros(1, 2, dtype=torch.int64), self.taps)
        count = batch.images.shape[0]
        return {tap: tapped.to(batch.images.device).repeat(count, 1, 1, 1) for tap, tapped in first.items()}

    def check_seen(self, samples: Tensor, fingerprints: Tensor) -> None:
        """See that the student gets what the teacher saw: `fingerprints` are CRC-32 of the images that are here.

        Args:
            samples: int64 `(N, 2)` of (view, index).
            fingerprints: of the images as the student sees them now.

        Raises:
            CacheError: they differ; names view and image.
        """
        stored = self.reader.fingerprints(samples)
        for (view, index), there, here in zip(samples.tolist(), stored.tolist(), fingerprints.tolist(), strict=True):
            if there != here:
                raise CacheError(
                    f"{self.reader.folder}: view {view} of image {index} is not what the teacher saw when its maps "
                    "were stored: the image's file, its decoding or an augmentation has changed; remove the set by "
                    "`densekd cache prune` and make it again by `densekd cache build RECIPE`"
                )

    def _check(self, batch: Batch) -> torch.device:
        images, samples = batch.images, _samples(batch)
        if samples.shape[:1] != images.shape[:1]:
            raise ShapeError(
                f"samples: expected one (view, index) for each of the {images.shape[0]} images, got shape "
                f"{tuple(samples.shape)}"
            )
        self._check_size(images)
        return images.device

    def _check_size(self, images: Tensor) -> None:
        expected = self.reader.header.image_size
        if expected is not None and tuple(images.shape[2:]) != tuple(expected):
            raise ShapeError(
                f"the stored maps are of images of {expected[0]}x{expected[1]}, got images of "
                f"{images.shape[2]}x{images.shape[3]}; use the size they were stored for, or store others"
            )

    def _threads(self) -> ThreadPoolExecutor:
        # Threads do not come along when a process is forked.
        if self._pool is None or self._process != os.getpid():
            self._pool, self._process = ThreadPoolExecutor(self._readers, "densekd-maps"), os.getpid()
        return self._pool

    def close(self) -> None:
        """End the reading thread and unmap the files."""
        if self._pool is not None and self._process == os.getpid():
            self._pool.shutdown()
        self._pool = None
        self.reader.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_pool": None, "_process": 0}


def _some_threads() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, cores // 2))


def _samples(batch: Batch) -> Tensor:
    if batch.samples is None:
        raise ArgumentError(
            "the teacher's maps are stored, and nothing says which these images are: call distiller(images, "
            "samples=samples) with an int64 tensor (N, 2), (view, index) of each image"
        )
    return batch.samples
