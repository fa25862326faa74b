"""Cross-image relations (CIRKD) as a module."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Size, Tensor

from densekd.errors import ArgumentError
from densekd.functional.checks import (
    check_flag,
    check_ignore_index,
    check_labels,
    check_maps,
    check_mask,
    check_temperature,
    working_type,
)
from densekd.functional.crossimage import check_count, crossimage_kl
from densekd.functional.crossimage_memory import crossimage_memory_kl
from densekd.losses.available_memory import available_bytes
from densekd.losses.base import DistillationLoss
from densekd.losses.class_features import class_pixels, class_regions, from_all_ranks
from densekd.losses.class_queue import ClassQueue
from densekd.losses.projector import Projector


class CrossImage(DistillationLoss):
    """How each pixel resembles the pixels of other images; see `densekd.functional.crossimage_kl`.

    With `memory=True` the other images are those of earlier steps: the sum of two
    `densekd.functional.crossimage_memory_kl`, to pixels and to regions (means of a class in an image) of the teacher
    that queues keep per class, after a projector on the student's map (1x1 convolution, batch norm, ReLU, 1x1
    convolution). It needs labels, and `bind` builds queues and projector. In training mode every call first puts the
    batch's features into the queues; under torch.distributed those of all ranks, so that all hold the same.

    Args:
        temperature: of the similarities.
        pool: side of the cells averaged first, by default 2; with a memory there is no pooling.
        memory: compare with a memory instead of within the batch.
        pixel_queue, region_queue: features kept per class.
        pixel_samples, region_samples: features drawn from the queues in a step, over all classes: of each class
            `samples // num_classes + 1`, as far as there are.
        pixels_per_class: pixels that each class of each image gives to its queue in a step.
        ignore_index: the label that means no class.
        num_classes: classes of the labels; default what `bind` is told.

    Raises:
        ArgumentError, DtypeError: an option that cannot be, by its value or its type.

    >>> CrossImage().needs
    frozenset()
    >>> sorted(CrossImage(memory=True).needs)
    ['labels']
    """

    name: ClassVar[str] = "crossimage"
    equal_channels: ClassVar[bool] = False
    batch_wide: ClassVar[bool] = True
    cost: ClassVar[str] = "N^2 C P^2"

    pixels: ClassQueue | None
    regions: ClassQueue | None
    projector: Projector | None

    def __init__(
        self,
        temperature: float = 0.1,
        pool: int | None = None,
        memory: bool = False,
        pixel_queue: int = 20000,
        region_queue: int = 2000,
        pixel_samples: int = 4096,
        region_samples: int = 1024,
        pixels_per_class: int = 16,
        ignore_index: int = 255,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)
        self.memory = check_flag("memory", memory)
        if memory and pool is not None:
            raise ArgumentError(
                f"CrossImage: pool goes with memory=False, got pool={pool} with memory=True: labels cannot be averaged"
            )
        self.pool = 2 if pool is None else check_count("pool", pool)
        self.pixel_queue = check_count("pixel_queue", pixel_queue)
        self.region_queue = check_count("region_queue", region_queue)
        self.pixel_samples = check_count("pixel_samples", pixel_samples)
        self.region_samples = check_count("region_samples", region_samples)
        self.pixels_per_class = check_count("pixels_per_class", pixels_per_class)
        self.ignore_index = check_ignore_index(ignore_index)
        self.num_classes = None if num_classes is None else check_count("num_classes", num_classes, 2)
        self.needs = frozenset({"labels"} if memory else ())
        self.pixels = self.regions = self.projector = None

    def bind(self, student_shape: Size, teacher_shape: Size, num_classes: int | None) -> None:
        """Build queues and projector; without memory there is nothing to build.

        Args:
            student_shape: of the student's map, adapted.
            teacher_shape: of the teacher's map.
            num_classes: of the labels; None where nobody knows.

        Raises:
            ArgumentError: the number of classes is unknown or below 2, or not the one given before; queues that do
                not fit in memory.
        """
        if not self.memory:
            return
        classes = _classes(self.num_classes, num_classes)
        channels = teacher_shape[1]
        self._require_memory(classes, channels)
        self.pixels = ClassQueue(classes, self.pixel_queue, channels)
        self.regions = ClassQueue(classes, self.region_queue, channels)
        self.projector = Projector(student_shape[1], channels)

    def forward(
        self,
        student_map: Tensor,
        teacher_map: Tensor,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        if self.memory:
            return self._with_memory(student_map, teacher_map, labels, mask)
        return crossimage_kl(student_map, teacher_map, temperature=self.temperature, pool=self.pool, mask=mask)

    def _with_memory(self, student: Tensor, teacher: Tensor, labels: Tensor | None, mask: Tensor | None) -> Tensor:
        if self.pixels is None or self.regions is None or self.projector is None:
            raise ArgumentError("CrossImage(memory=True): call bind(student_shape, teacher_shape, num_classes) first")
        valid = self._valid(student, teacher, labels, mask, len(self.pixels.filled))
        features = teacher.detach().flatten(2).transpose(1, 2).to(self.pixels.entries.dtype)
        if self.training and labels is not None:
            self._remember(self.pixels, self.regions, features, labels.flatten(1), valid)
        rows = self.projector(student.flatten(2).transpose(1, 2)[valid])
        targets = teacher.detach().flatten(2).transpose(1, 2)[valid]
        # Depends on the map and every parameter of the projector, and is zero whatever they hold.
        value = rows.reshape(-1)[:0].sum().to(working_type(student, teacher))
        for queue, samples in ((self.pixels, self.pixel_samples), (self.regions, self.region_samples)):
            known = queue.sample(samples // len(queue.filled) + 1)
            if len(rows) and len(known):
                value = value + crossimage_memory_kl(rows.T[None], targets.T[None], known, temperature=self.temperature)
        return value

    def _valid(
        self, student: Tensor, teacher: Tensor, labels: Tensor | None, mask: Tensor | None, classes: int
    ) -> Tensor:
        """(N, P), True where a pixel has a class and is not masked."""
        check_maps(student, teacher, same_channels=False)
        check_mask(mask, student)
        if labels is None:
            raise ArgumentError("CrossImage(memory=True) needs labels (N, *spatial) at the size of the maps")
        check_labels(labels, student, classes, self.ignore_index)
        valid = labels != self.ignore_index
        return (valid if mask is None else valid & mask).flatten(1)

    @torch.no_grad()
    def _remember(
        self, pixels: ClassQueue, regions: ClassQueue, features: Tensor, labels: Tensor, valid: Tensor
    ) -> None:
        # Regions are means of directions: a pixel of large features counts no more than another.
        lengths = torch.linalg.vector_norm(features, dim=2, keepdim=True)
        features = features / torch.where(lengths > 0, lengths, 1.0)
        classes = len(pixels.filled)
        pixels.put(*from_all_ranks(*class_pixels(features, labels, valid, classes, self.pixels_per_class)))
        regions.put(*from_all_ranks(*class_regions(features, labels, valid, classes)))

    def _require_memory(self, classes: int, channels: int) -> None:
        size = 4 * classes * (self.pixel_queue + self.region_queue) * channels
        free = available_bytes()
        if 3 * size > free:
            raise ArgumentError(
                f"CrossImage(memory=True): {self._size(classes, channels)}, and twice that again while a checkpoint is "
                f"written; {free / 1e9:.2f} GB are available; lower pixel_queue and region_queue"
            )

    def _size(self, classes: int, channels: int) -> str:
        size = 4 * classes * (self.pixel_queue + self.region_queue) * channels
        return (
            f"the memory of {classes} classes x ({self.pixel_queue} + {self.region_queue}) features x {channels} "
            f"channels takes {size / 1e9:.2f} GB"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CrossImage:
        try:
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        except torch.OutOfMemoryError as error:
            if self.pixels is None:
                raise
            classes, _, channels = self.pixels.entries.shape
            raise ArgumentError(
                f"CrossImage(memory=True): {self._size(classes, channels)}, which the device does not have; lower "
                "pixel_queue and region_queue"
            ) from error
        return self

    def extra_repr(self) -> str:
        shown = f"temperature={self.temperature}, memory={self.memory}"
        if not self.memory:
            return f"{shown}, pool={self.pool}"
        return f"{shown}, pixel_queue={self.pixel_queue}, region_queue={self.region_queue}"


def _classes(own: int | None, told: int | None) -> int:
    if own is not None and told is not None and told != own and told != 1:
        raise ArgumentError(f"CrossImage: num_classes={own} was given, but there are {told} classes; leave it out")
    classes = told if own is None else own
    if classes is None or classes < 2:
        came = "unknown" if classes is None else f"{classes}"
        raise ArgumentError(
            f"CrossImage(memory=True) keeps features per class and needs at least two classes, but their number is "
            f"{came}; give num_classes (2 for a background and one class in a single channel)"
        )
    return classes
