"""How the images of a step are shared out: over processes, and over micro-batches one after the other."""

from __future__ import annotations

from dataclasses import dataclass

from densekd.errors import ConfigError
from densekd.launch import Launch
from densekd.records import RunRecord
from densekd.training.specs import TrainSpec


@dataclass(frozen=True)
class Share:
    """`images` labelled images a step: `world` processes x `batch_size` images x `accumulate` micro-batches.

    `unit`: so many micro-batches, over processes first, are one batch to the mean over labelled pixels.
    """

    world: int
    batch_size: int
    accumulate: int
    unit: int

    @property
    def images(self) -> int:
        return self.world * self.batch_size * self.accumulate

    def __str__(self) -> str:
        return (
            f"{self.images} images a step: {_of(self.world, 'process', 'processes')} x "
            f"{_of(self.batch_size, 'image', 'images')} x {_of(self.accumulate, 'micro-batch', 'micro-batches')}"
        )


def images_of_step(train: TrainSpec, world: int) -> int:
    """Labelled images of a step where so many processes begin the run."""
    return train.global_batch_size or train.batch_size * train.accumulate * world


def share_out(train: TrainSpec, launch: Launch, before: RunRecord | None = None) -> Share:
    """The share of the processes there are now; a run that began with another number of them keeps its images a step.

    Args:
        before: the record of the run to go on with.

    Raises:
        ConfigError: the images of a step cannot be made of these processes; the numbers that could are named.
    """
    began = launch.world if before is None else before.processes
    images, each = images_of_step(train, began), launch.world * train.batch_size
    if images % each:
        raise ConfigError(_indivisible(train, launch.world, images, began))
    accumulate = images // each
    unit = launch.world * accumulate if train.global_batch_size else began
    return Share(launch.world, train.batch_size, accumulate, unit)


def _indivisible(train: TrainSpec, world: int, images: int, began: int) -> str:
    size = train.batch_size
    here = f"{_of(world, 'process', 'processes')} x {_of(size, 'image', 'images')}"
    counts = [str(count) for count in range(1, images // size + 1) if images % (count * size) == 0]
    fitting = f"{' or '.join(counts)} processes fit" if counts else "nor of any other number of processes"
    if train.global_batch_size:
        below = images // (world * size) * world * size
        near = " or ".join(str(near) for near in (below, below + world * size) if near)
        return (
            f"train.global_batch_size: {images} images cannot be made of {here} (train.batch_size): {fitting}; with "
            f"{_of(world, 'process', 'processes')} {near}"
        )
    return (
        f"train.batch_size: the run began with {_of(began, 'process', 'processes')} and {images} images a step, which "
        f"cannot be made of {here}: {fitting}"
    )


def _of(count: int, one: str, more: str) -> str:
    return f"{count} {one if count == 1 else more}"
