"""A set filled: views loaded, the teacher run on them, its maps stored; to be gone on with after any end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from densekd.distiller import Distiller
from densekd.evaluate import autocast
from densekd.failures import told
from densekd.runs.assemble import Parts
from densekd.taps import preserved
from densekd.teacher import Batch, FrozenTeacher
from densekd.training.loading import loaded
from densekd.training.signals import Interrupted, StopSignals

Sample = tuple[int, int]
"""View and index of an image."""


class Writer(Protocol):
    """What fills a set, as `densekd.teacher_cache.MapWriter`."""

    def write(self, view: int, index: int, maps: Mapping[str, Tensor], fingerprint: int) -> None: ...

    def commit(self) -> None: ...


class Filler:
    """The teacher of a distiller, to be run on views of the training images.

    Args:
        parts: data, device and precision of the run.
        distiller: still with the teacher that runs; its source, what that wants of its images, and how its maps are
            read are taken from it.
    """

    def __init__(self, parts: Parts, distiller: Distiller) -> None:
        self.parts, self._distiller = parts, distiller
        self.sides = {plan.teacher.tap: plan.teacher for plan in distiller.plans}

    @property
    def shapes(self) -> dict[str, tuple[int, int, int]]:
        """Channels, height and width of each tap's map."""
        return {tap: (side.shape[1], side.shape[2], side.shape[3]) for tap, side in self.sides.items()}

    @property
    def precision(self) -> str:
        """Number format that the teacher runs in."""
        source = self._distiller.source
        return source.report.dtype if isinstance(source, FrozenTeacher) else self.parts.recipe.runtime.precision

    @property
    def class_taps(self) -> tuple[str, ...]:
        """The taps that are the class map."""
        return tuple(tap for tap, side in self.sides.items() if side.is_class_map)

    @cached_property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the student's images."""
        example = self.parts.example(1)
        return example.shape[2], example.shape[3]

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """The teacher's maps `(N, C, H, W)` of images as the student sees them, in its own precision."""
        images = images.to(self.parts.device, non_blocking=True).contiguous(memory_format=self.parts.layout)
        prepare, source = self._distiller.teacher_images, self._distiller.source
        with torch.no_grad(), autocast(self.parts.device, self.parts.recipe.runtime.precision):
            batch = Batch((images if prepare is None else prepare(images),), {})
            found = source.maps(batch)
        size = (batch.images.shape[2], batch.images.shape[3])
        return {tap: side.layout.to_nchw(found[tap], size) for tap, side in self.sides.items()}

    def batches(self, samples: Sequence[Sample], workers: int = 0) -> Iterator[dict[str, Any]]:
        """The views of these samples in their order, as many at a time as a step of the run has."""
        count = self.parts.recipe.train.batch_size + self.parts.unlabelled_per_batch
        groups = [list(samples[start : start + count]) for start in range(0, len(samples), count)]
        patience = self.parts.recipe.runtime.patience
        return loaded(self.parts.train_view(), workers=workers, patience=patience, batch_sampler=groups)

    def fill(
        self, writer: Writer, samples: Sequence[Sample], watch: Callable[[int], None], said: Callable[[str], None]
    ) -> None:
        """Store the maps of these samples.

        Args:
            writer: of the set.
            samples: what is missing in it.
            watch: called with the samples stored by this call so far.
            said: called with a line for the user when a signal asks to stop.

        Raises:
            Interrupted: SIGINT or SIGTERM came: the batch at work was stored, and everything so far is kept.
            DensekdError: an image cannot be read, or the disk is full; what was stored before is kept.
        """
        done = 0
        batches = self.batches(samples, self.parts.recipe.runtime.workers)
        network = self._distiller.teacher
        kept = preserved(network) if isinstance(network, torch.nn.Module) else preserved()
        with told(), kept, StopSignals(said) as signals, closing(batches):  # type: ignore[type-var]
            for batch in batches:
                maps = self.maps(batch["image"])
                for place, (view, index) in enumerate(batch["sample"].tolist()):
                    own = {tap: stored[place] for tap, stored in maps.items()}
                    writer.write(view, index, own, int(batch["fingerprint"][place]))
                done += len(batch["sample"])
                watch(done)
                if signals.asked is not None:
                    writer.commit()
                    raise Interrupted(
                        f"stopped: {done} of {len(samples)} views that were missing are stored and kept; the same "
                        "command goes on",
                        signals.asked,
                    )
        writer.commit()
